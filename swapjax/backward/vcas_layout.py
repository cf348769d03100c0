"""What VCAS samples in the program of a loss, and what its backward pass costs."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from swapjax.backward.address import Site, equation_at
from swapjax.backward.cuts import find_cuts
from swapjax.backward.graph import Graph
from swapjax.backward.products import Source, multiplications, products_of, site_of
from swapjax.backward.rewrite import Do
from swapjax.backward.shared import Traced
from swapjax.backward.vcas_control import Place
from swapjax.backward.vcas_product import (
    RowProduct,
    RowRate,
    cut,
    examples_axis,
    sampled,
)
from swapjax.core import trees
from swapjax.core.types import Params


class Cost(NamedTuple):
    """Multiplications of a backward pass beside a product, a step of the loops.

    Attributes:
        weight: for the gradient of its weight.
        data: for the gradient of its data, 0 for the first of a network; and for those
            of products of data with data before it, as in attention.
    """

    weight: float
    data: float


class Layout(NamedTuple):
    """What is sampled in the program of a loss, for batches of one size.

    Attributes:
        traced: the loss.
        examples: in a batch.
        cuts: where examples are dropped, in order.
        products: whose rows are dropped.
        costs: of each product.
        measure: whether variances are measured, and rows not sampled.
    """

    traced: Traced
    examples: int
    cuts: tuple[Site, ...]
    products: tuple[Site, ...]
    costs: dict[str, Cost]
    measure: bool

    def order(self) -> tuple[Place, ...]:
        """List the cuts of all steps of loops, from the first to the last."""
        places: list[tuple[tuple[int, ...], Place]] = []
        for site in self.cuts:
            for index in np.ndindex(*site.levels):
                when = _time(self.traced.program.jaxpr, site, index)
                places.append((when, (site.name, index)))
        return tuple(place for _, place in sorted(places, key=lambda pair: pair[0]))

    def replace(
        self, equation: core.JaxprEqn, operands: list, site: Site, how: Any, do: Do
    ) -> list:
        """Sample at a site; see `swapjax.backward.rewrite.Replace`."""
        if isinstance(how, RowRate):
            return [sampled(self._product(equation, site), *operands, how)]
        (result,) = do(operands)
        return [cut(self.examples, self.measure, result, how)]

    def uniforms(self, site: Site) -> int:
        """Count the numbers to draw at a site, in a step of the loops around it."""
        if site in self.cuts:
            return self.examples
        if self.measure:
            return 0
        equation = equation_at(self.traced.program.jaxpr, site.address)
        return self._product(equation, site).count_rows()

    def _product(self, equation: core.JaxprEqn, site: Site) -> RowProduct:
        return RowProduct(equation, site.operand, self.examples, self.measure)

    def left(self, products: Mapping[str, jax.Array]) -> jax.Array:
        """Return the share of the multiplications of the backward pass that is left.

        Args:
            products: cotangents of the probes of the products.
        """
        done, whole = jnp.float32(0), 0.0
        for site in self.products:
            told, cost = products[site.name], self.costs[site.name]
            examples, rows = told[..., 0], told[..., 1]
            done += jnp.sum(examples * (cost.data + rows * cost.weight))
            whole += math.prod(site.levels) * (cost.data + cost.weight)
        return done / whole


def layout_of(
    traced: Traced,
    params: Params,
    examples: int,
    *,
    measure: bool = False,
) -> Layout:
    """Find what to sample, from shapes alone.

    Args:
        traced: the loss.
        params: of the network.
        examples: in the batch.
        measure: whether variances are to be measured.

    Raises:
        ValueError: for a loss without a product of params and data.
    """
    program = traced.program
    graph = Graph(program)
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(params)]
    known, products = products_of(graph, trees.paths(params), shapes)
    sites = tuple(
        site_of(graph, product, at_input=False)
        for product in products
        if _is_sampled(graph.nodes[product.node].eqn)
    )
    if not sites:
        raise ValueError(
            "loss_fn: must multiply a leaf of params with data in a product whose rows "
            "can be sampled; convolutions with groups of channels cannot"
        )
    nodes = {product.name: product for product in products}
    costs, before = {}, _between(graph, known)
    for site in sites:
        product = nodes[site.name]
        own = multiplications(equation_at(program.jaxpr, site.address))
        extra = sum(
            cost
            for number, levels, cost in before
            if number < product.node and levels == site.levels
        )
        before = [
            kept
            for kept in before
            if not (kept[0] < product.node and kept[1] == site.levels)
        ]
        costs[site.name] = Cost(own, extra + own * product.needs_gradient)
    cuts = tuple(
        site
        for site in find_cuts(graph, known, products)
        if examples_axis(site.shape, examples) is not None
    )
    return Layout(traced, examples, cuts, sites, costs, measure)


def _is_sampled(equation: Any) -> bool:
    """Whether rows of a product can be told; groups of channels share none."""
    groups = ("feature_group_count", "batch_group_count")
    return all(equation.params.get(name, 1) == 1 for name in groups)


def _between(
    graph: Graph, known: Sequence[Source]
) -> list[tuple[int, tuple[int, ...], float]]:
    """List the products of data with data: where, in which loops, at which cost."""
    alive = graph.before(graph.outputs[:1])
    found: list[tuple[int, tuple[int, ...], float]] = []
    for number, node in enumerate(graph.nodes):
        if node.name != "dot_general" or alive.isdisjoint(node.outputs):
            continue
        if all(known[value].data for value in node.inputs):
            learned = sum(known[value].learned for value in node.inputs)
            found.append((number, node.levels, learned * multiplications(node.eqn)))
    return found


def _time(program: core.Jaxpr, site: Site, index: tuple[int, ...]) -> tuple[int, ...]:
    """Tell when a site is passed, for some steps of the loops around it.

    Args:
        program: that the site lies in.
        site: with an address of equations and of programs that they call, by turns.
        index: of the steps.

    Returns:
        The address, with the step in place of the program of a scan; what compares as
        smaller is passed before.
    """
    steps, found = list(index), list(site.address)
    for i in range(1, len(found), 2):
        equation = equation_at(program, site.address[:i])
        if equation.primitive.name == "scan":
            step = steps.pop(0)
            last = equation.params["length"] - 1
            found[i] = last - step if equation.params["reverse"] else step
    return tuple(found)
