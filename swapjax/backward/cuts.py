"""Cuts of a network: values that all gradients of what comes before them go through."""

from collections.abc import Sequence

from swapjax.backward.address import Site
from swapjax.backward.graph import Graph
from swapjax.backward.products import Product, Source


def find_cuts(
    graph: Graph, known: Sequence[Source], products: Sequence[Product]
) -> list[Site]:
    """Find where the examples of a gradient may be dropped once for all before.

    A cut is the only value at its point of the program that depends on weights and data
    and that is used later: in a residual network the sum that a block ends with, in a
    chain of layers the output of each. Where an example of its gradient is zero, so it
    is in all gradients before, unless something mixes examples, as batch norm does, or
    the cut is in the body of a loop whose steps all read a learned value from before
    it: behind its reader a cut is found, which the gradients of other steps go around.
    Dropping is without bias there as well.

    Of the cuts between a product of a weight and the next one there, the first counts;
    what comes before the first product has no use for one.

    Args:
        graph: of a program.
        known: what its values depend on.
        products: of weights with data, in order.

    Returns:
        Sites at the outputs of equations, in the order of the program, named after the
        last product before each, ``"after block1/out"``.
    """
    alive = graph.before(graph.outputs[:1])
    learned = {v for v in alive if known[v].learned}
    end = len(graph.nodes)
    last = {v: max(graph.readers[v], default=-1) for v in learned}
    last.update((v, end) for v in graph.outputs if v in learned)
    names = {product.node: product.name for product in products}
    found: list[Site] = []
    after, living = "", set[int]()
    for number, node in enumerate(graph.nodes):
        living = {v for v in living if last[v] > number}
        living.update(v for v in node.outputs if v in learned and last[v] > number)
        after = names.get(number, after)
        if (
            after
            and not (found and found[-1].name == _named(after))
            and node.eqn is not None
            and not node.closed
            and len(node.outputs) == 1
            and living == set(node.outputs)
        ):
            aval = graph.avals[node.outputs[0]]
            found.append(
                Site(
                    name=_named(after),
                    kind="output",
                    address=node.address,
                    shape=tuple(aval.shape),
                    dtype=aval.dtype,
                    levels=node.levels,
                )
            )
    return found


def _named(product: str) -> str:
    return f"after {product}"
