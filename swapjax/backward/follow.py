"""Where the output of a product goes, until its gradient may come from anywhere.

From the output on, all is followed that is made of it entry by entry, moved or pooled.
What its gradient looks like shows where that ends: it is as dense as what comes back
from there, unless the output went through an activation first, which multiplies the
gradient entry by entry, by zeros if it is a ReLU.
"""

import heapq
from collections.abc import Sequence
from typing import NamedTuple

from swapjax.backward.graph import LINK, Graph, Node
from swapjax.backward.products import Source
from swapjax.roles.program.primitives import BENT, LINEAR, MOVES, SAME

_BESIDE = {"concatenate", "dynamic_update_slice", "stack"}  # puts several side by side
_MOVES = MOVES | {"dynamic_slice", "gather", "pad", "slice", "split", "tile", "unstack"}
_SUMS = {"add", "add_any", "sub"}


class Reached(NamedTuple):
    """What lies between the output of a product and a value.

    Attributes:
        bent: whether an activation, a gate or max-pooling, on every way.
        summed: whether something else was added that depends on weights and data.
        mixed: whether a statistic of the output, as a mean, met its entries.
        place: the last node that pooled; entries of two places are not side by side.
    """

    bent: bool = False
    summed: bool = False
    mixed: bool = False
    place: int = -1


class End(NamedTuple):
    """Where a value is not followed on, or where a statistic of it meets it.

    Attributes:
        node: the number of the node, -1 for a result of the program.
        operand: which of its operands.
        reached: what lies before.
    """

    node: int
    operand: int
    reached: Reached


def follow(
    graph: Graph, start: int, known: Sequence[Source], alive: set[int]
) -> list[End]:
    """Follow a value.

    Args:
        graph: of a program.
        start: the value.
        known: what each value depends on.
        alive: the values that gradients of the loss come to.

    Returns:
        All ends from which gradients come; or some, the last one without an activation
        before it.
    """
    found = {start: Reached()}
    ends: dict[tuple[int, int], Reached] = {}
    left = list(graph.readers[start])  # in order, so a heap
    while left:
        number = heapq.heappop(left)
        node = graph.nodes[number]
        if node.name == "stop_gradient" or (left and left[0] == number):
            continue
        seen = [found.get(value) for value in node.inputs]
        after, met = _step(number, node, seen, known)
        if not alive.isdisjoint(node.outputs):
            here = {
                (number, i): reached
                for i, reached in enumerate(seen)
                if reached is not None
                and node.inputs[i] in alive
                and (after is None or i in met)
            }
            ends |= here
            if not all(reached.bent for reached in here.values()):
                break
        if after is None:
            continue
        for value in node.outputs:
            joins = node.name == LINK and value in found
            new = _either(found[value], after) if joins else after
            if found.get(value) != new:
                found[value] = new
                for reader in graph.readers[value]:
                    heapq.heappush(left, reader)
    results = [End(-1, i, found[v]) for i, v in enumerate(graph.outputs) if v in found]
    return [End(*place, reached) for place, reached in ends.items()] + results


def _step(
    number: int, node: Node, seen: list[Reached | None], known: Sequence[Source]
) -> tuple[Reached | None, list[int]]:
    """Go through a node.

    Returns:
        What lies before its results, None where they are not followed; and the
        operands whose entries a statistic of theirs meets.
    """
    name = node.name
    (which, first), *others = [(i, r) for i, r in enumerate(seen) if r is not None]
    if name in SAME or name in _BESIDE or name == LINK:
        return first, []
    if name in _MOVES:
        return (first if which == 0 else None), []
    if name.startswith("reduce_"):
        keeps = name.endswith("_sum")
        return first._replace(bent=first.bent or not keeps, place=number), []
    if name in ("dot_general", "conv_general_dilated"):
        rest = (known[v] for i, v in enumerate(node.inputs) if i != which)
        if others or any(source.data or source.leaves for source in rest):
            return None, []
        return first._replace(place=number), []  # a constant averages or pools
    if name in LINEAR or (name in BENT and not name.startswith("cum")):
        return _entrywise(number, node, seen, known)
    return None, []


def _entrywise(
    number: int, node: Node, seen: list[Reached | None], known: Sequence[Source]
) -> tuple[Reached, list[int]]:
    """Go through a node that works entry by entry."""
    followed = [r for r in seen if r is not None]
    foreign = any(
        r is None and known[v].learned for r, v in zip(seen, node.inputs, strict=True)
    )
    adds = node.name in _SUMS
    bent = (all if adds else any)(r.bent for r in followed)
    after = Reached(
        bent or not (adds or _scales(node.name, seen, foreign=foreign)),
        any(r.summed for r in followed) or (adds and foreign),
        any(r.mixed for r in followed),
        followed[0].place,
    )
    places = {r.place for r in followed}
    if len(places) == 1:
        return after, []
    met = [i for i, r in enumerate(seen) if r is not None and r.place == min(places)]
    return after._replace(bent=True, mixed=True, place=number), met


def _scales(name: str, seen: list[Reached | None], *, foreign: bool) -> bool:
    """Whether a node multiplies what is followed with what does not depend on it."""
    if foreign:
        return False
    if name == "mul":
        return None in seen
    if name == "select_n":
        return seen[0] is None
    return name == "neg" or (name == "div" and seen[1] is None)


def _either(one: Reached, other: Reached) -> Reached:
    """Join what lies before a value that comes one way or the other."""
    return Reached(
        one.bent and other.bent,
        one.summed or other.summed,
        one.mixed or other.mixed,
        one.place,
    )
