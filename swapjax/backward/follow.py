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
from swapjax.backward.products import PRODUCTS, Source
from swapjax.roles.program.primitives import BENT, LINEAR, MOVES, SAME

_BESIDE = {"concatenate", "dynamic_update_slice", "stack"}  # puts several side by side
_MOVES = MOVES | {"dynamic_slice", "gather", "pad", "slice", "split", "tile", "unstack"}
_SUMS = {"add", "add_any", "sub"}


class Reached(NamedTuple):
    """What lies between the output of a product and a value.

    Attributes:
        bent: whether an activation, a gate or max-pooling, on every way.
        summed: whether something else was added that depends on weights and data, and
            a way into the sum skips a product.
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
        after, met = _step(graph, number, seen, known)
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
    graph: Graph, number: int, seen: list[Reached | None], known: Sequence[Source]
) -> tuple[Reached | None, list[int]]:
    """Go through a node.

    Returns:
        What lies before its results, None where they are not followed; and the
        operands whose entries a statistic of theirs meets.
    """
    node = graph.nodes[number]
    name = node.name
    (which, first), *others = [(i, r) for i, r in enumerate(seen) if r is not None]
    if name in SAME or name in _BESIDE or name == LINK:
        return first, []
    if name in _MOVES:
        return (first if which == 0 else None), []
    if name.startswith("reduce_"):
        keeps = name.endswith("_sum")
        return first._replace(bent=first.bent or not keeps, place=number), []
    if name in PRODUCTS:
        rest = (known[v] for i, v in enumerate(node.inputs) if i != which)
        if others or any(source.data or source.leaves for source in rest):
            return None, []
        return first._replace(place=number), []  # a constant averages or pools
    if name in LINEAR or (name in BENT and not name.startswith("cum")):
        return _entrywise(graph, number, seen, known)
    return None, []


def _entrywise(
    graph: Graph, number: int, seen: list[Reached | None], known: Sequence[Source]
) -> tuple[Reached, list[int]]:
    """Go through a node that works entry by entry."""
    node = graph.nodes[number]
    followed = [r for r in seen if r is not None]
    foreign = any(
        r is None and known[v].learned for r, v in zip(seen, node.inputs, strict=True)
    )
    adds = node.name in _SUMS
    bent = (all if adds else any)(r.bent for r in followed)
    after = Reached(
        bent or not (adds or _scales(node.name, seen, foreign=foreign)),
        any(r.summed for r in followed)
        or (adds and foreign and _skips(graph, number, known)),
        any(r.mixed for r in followed),
        followed[0].place,
    )
    places = {r.place for r in followed}
    if len(places) == 1:
        return after, []
    met = [i for i, r in enumerate(seen) if r is not None and r.place == min(places)]
    return after._replace(bent=True, mixed=True, place=number), met


def _skips(graph: Graph, number: int, known: Sequence[Source]) -> bool:
    """Whether one way into a sum leaves out a product that is on another.

    That is, unless each summand is of a product for this place alone, and what one of
    them multiplies does not lead to another.
    """
    inputs = [v for v in graph.nodes[number].inputs if known[v].learned]
    products = [_product(graph, value, known) for value in inputs]
    data = {v for p in products if p for v in p.inputs if known[v].data}
    return None in products or any(_before(graph, v, number) & data for v in data)


def _product(graph: Graph, value: int, known: Sequence[Source]) -> Node | None:
    """Find the product that a value is of, if nothing else is made of it."""
    while len(graph.readers[value]) == len(graph.writers[value]) == 1:
        node = graph.nodes[graph.writers[value][0]]
        if node.name in PRODUCTS:
            return node
        learned = [v for v in node.inputs if known[v].learned]
        if len(learned) > 1 or node.name not in LINEAR | _MOVES | {LINK}:
            return None
        (value,) = learned
    return None


def _before(graph: Graph, value: int, end: int) -> set[int]:
    """Find the values that a value is made of, as far back as a node."""
    found, left = set[int](), [value]
    while left:
        for i in graph.writers[left.pop()]:
            if i != end:
                new = set(graph.nodes[i].inputs) - found
                found |= new
                left.extend(new)
    return found


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
