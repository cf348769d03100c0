"""Products of weights with data in a program, wherever it calls them."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from swapjax.backward.address import Site
from swapjax.backward.graph import Graph, Node

PRODUCTS = ("conv_general_dilated", "dot_general")
_RANDOM = ("random_", "rng_", "threefry2x32")
_NOTHING: frozenset[int] = frozenset()


class Source(NamedTuple):
    """What a value depends on.

    Attributes:
        data: whether on the batch.
        leaves: the leaves of params it depends on; of a value that depends on data
            too, some of them.
        trains: whether gradients go from here to leaves, not stopped on the way.
    """

    data: bool = False
    leaves: frozenset[int] = _NOTHING
    trains: bool = False

    @property
    def learned(self) -> bool:
        """Whether it is data that went through something with leaves."""
        return bool(self.leaves) and self.data


class Product(NamedTuple):
    """A product of weights with data.

    Attributes:
        name: of the leaf, with ``#2`` for its second product.
        node: number of the node.
        data: which operand is the data, 0 or 1.
        needs_gradient: whether that depends on weights before it, whose gradients
            need its own.
    """

    name: str
    node: int
    data: int
    needs_gradient: bool


def products_of(
    graph: Graph, paths: Sequence[str], shapes: Sequence[tuple[int, ...]]
) -> tuple[list[Source], list[Product]]:
    """Find the products of weights with data in the order of the program.

    Without those in functions whose derivative is a rule of their author, which no
    change of their program reaches, those of derivatives that the loss takes, and those
    that no gradient of the loss comes to, as of targets and attacks. If
    no leaf meets the batch, the arrays that the loss closes over count as data.

    Args:
        graph: of a program that takes leaves first, then the batch.
        paths: of the leaves.
        shapes: of the leaves.

    Returns:
        What each value depends on; and the products, named after the largest leaf that
        is in their weights.

    Raises:
        ValueError: for a program without any.
    """
    for closed_over in (False, True):
        known = _sources(graph, len(paths), closed_over=closed_over)
        found = _products(graph, known, paths, shapes)
        if found:
            return known, found
    raise ValueError(
        "loss_fn: must multiply a leaf of params with data, by dot_general or "
        "conv_general_dilated, for gradients to be pruned there; got a loss without "
        "such a product"
    )


def site_of(graph: Graph, product: Product, *, at_input: bool) -> Site:
    """Make the site at the output or the input of a product."""
    node = graph.nodes[product.node]
    aval = graph.avals[node.inputs[product.data] if at_input else node.outputs[0]]
    return Site(
        name=f"{product.name}:input" if at_input else product.name,
        kind="input" if at_input else "output",
        address=node.address,
        shape=tuple(aval.shape),
        dtype=aval.dtype,
        levels=node.levels,
        operand=product.data,
    )


def _sources(graph: Graph, leaves: int, *, closed_over: bool) -> list[Source]:
    """Tell what each value of a program depends on.

    Random bits depend on nothing, whoever brought their key.
    """
    known = [Source()] * len(graph.avals)
    if closed_over:
        for value, writers in enumerate(graph.writers):
            if not writers and graph.avals[value].shape:
                known[value] = Source(data=True)
    for i, value in enumerate(graph.inputs):
        leaf = Source(leaves=frozenset({i}), trains=True)
        known[value] = leaf if i < leaves else Source(data=True)
    changed = True
    while changed:  # loops hand on what they find last
        changed = False
        for node in graph.nodes:
            if node.name.startswith(_RANDOM):
                continue
            after = _joined([known[value] for value in node.inputs])
            if node.name == "stop_gradient":
                after = after._replace(trains=False)
            for value in node.outputs:
                new = _joined([known[value], after])
                changed |= new != known[value]
                known[value] = new
    return known


def _products(
    graph: Graph,
    known: Sequence[Source],
    paths: Sequence[str],
    shapes: Sequence[tuple[int, ...]],
) -> list[Product]:
    found: list[Product] = []
    count: dict[str, int] = {}
    alive = graph.before(graph.outputs[:1])
    for i, node in enumerate(graph.nodes):
        if node.closed or not _multiplies(node) or alive.isdisjoint(node.outputs):
            continue
        operands = [known[value] for value in node.inputs]
        which = 0 if operands[0].data else 1
        data, weights = operands[which], operands[1 - which]
        if not data.data or weights.data or not weights.leaves:
            continue
        leaf = max(weights.leaves, key=lambda i: (math.prod(shapes[i]), -i))
        count[paths[leaf]] = number = count.get(paths[leaf], 0) + 1
        name = paths[leaf] if number == 1 else f"{paths[leaf]}#{number}"
        found.append(Product(name, i, which, needs_gradient=data.trains))
    return found


def _multiplies(node: Node) -> bool:
    """Whether a node sums over products of its operands, on the way forward."""
    if node.eqn is None or node.name not in PRODUCTS:
        return False
    numbers = node.eqn.params["dimension_numbers"]
    if node.name == "dot_general" and not numbers[0][0]:
        return False
    return "transpose(" not in str(node.eqn.source_info.name_stack)


def _joined(several: Sequence[Source]) -> Source:
    """Join what something depends on; of data it is enough to know one leaf."""
    data = any(source.data for source in several)
    leaves = _NOTHING.union(*(source.leaves for source in several))
    return Source(
        data,
        frozenset(sorted(leaves)[:1]) if data else leaves,
        any(source.trains for source in several),
    )
