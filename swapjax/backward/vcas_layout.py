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
from swapjax.backward.graph import LINK, Graph
from swapjax.backward.products import (
    Product,
    Source,
    products_of,
    site_of,
)
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
from swapjax.core import programs, trees
from swapjax.core.types import Params

_PRODUCTS = ("dot_general", "conv_general_dilated")
Placed = tuple[int, tuple[int, ...], float]
"""A node, the lengths of the loops around it, and multiplications on the way back."""


class Cost(NamedTuple):
    """Multiplications of a backward pass beside a product, a step of the loops.

    Attributes:
        weight: for the gradient of its weight.
        data: for the gradient of its data, 0 for the first of a network; and for all
            gradients of products before it whose rows are not sampled, those of data
            with data, as in attention, and those of groups of channels.
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
        rest: multiplications of products behind all of these, which are done in full.
        sliced: the products that take a slice of their leaf in each step of the loops
            around them; all of them, outside of loops.
        measure: whether variances are measured, and rows not sampled.
    """

    traced: Traced
    examples: int
    cuts: tuple[Site, ...]
    products: tuple[Site, ...]
    costs: dict[str, Cost]
    rest: float
    sliced: frozenset[str]
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

        Products whose rows are not sampled take the share of the examples of the next
        one where they are, which is no less than their own.

        Args:
            products: cotangents of the probes of the products.
        """
        done, whole = jnp.float32(self.rest), self.rest
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
    paths = trees.paths(params)
    known, products = products_of(graph, paths, shapes)
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
    names = {site.name for site in sites}
    others = [product for product in products if product.name not in names]
    costs, before = {}, [*_between(graph, known), *_whole(graph, others)]
    for site in sites:
        product = nodes[site.name]
        own = programs.multiplications(equation_at(program.jaxpr, site.address))
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
    rest = float(sum(math.prod(levels) * cost for _, levels, cost in before))
    sliced = frozenset(
        name
        for name in names
        if _is_sliced(graph, graph.inputs[leaf_of(paths, name)], nodes[name])
    )
    return Layout(traced, examples, cuts, sites, costs, rest, sliced, measure)


def leaf_of(paths: Sequence[str], name: str) -> int:
    """Return the number of the leaf that a product is named after."""
    return paths.index(name if name in paths else name.rpartition("#")[0])


def _is_sliced(graph: Graph, leaf: int, product: Product) -> bool:
    """Whether each step of all loops around a product takes a slice of a leaf."""
    node = graph.nodes[product.node]
    weights = graph.before([node.inputs[1 - product.data]])
    rank = len(graph.avals[leaf].shape) - len(node.levels)
    found, left = {leaf}, [leaf]
    while left:
        value = left.pop()
        own = len(graph.avals[value].shape)
        if own == rank and value in weights:
            return True
        for i in graph.readers[value]:
            # A scan links a stack with its slices, which have an axis less.
            if graph.nodes[i].name in (LINK, "convert_element_type"):
                new = {
                    v
                    for v in graph.nodes[i].outputs
                    if v not in found and len(graph.avals[v].shape) <= own
                }
                found |= new
                left.extend(new)
    return False


def _is_sampled(equation: Any) -> bool:
    """Whether rows of a product can be told; groups of channels share none."""
    groups = ("feature_group_count", "batch_group_count")
    return all(equation.params.get(name, 1) == 1 for name in groups)


def _whole(graph: Graph, products: Sequence[Product]) -> list[Placed]:
    """List products that are not sampled in rows, with the cost of both gradients."""
    return [
        (
            product.node,
            graph.nodes[product.node].levels,
            programs.multiplications(graph.nodes[product.node].eqn)
            * (1 + product.needs_gradient),
        )
        for product in products
    ]


def _between(graph: Graph, known: Sequence[Source]) -> list[Placed]:
    """List the products of data with data."""
    alive = graph.before(graph.outputs[:1])
    found: list[Placed] = []
    for number, node in enumerate(graph.nodes):
        if node.name not in _PRODUCTS or alive.isdisjoint(node.outputs):
            continue
        if all(known[value].data for value in node.inputs):
            learned = sum(known[value].learned for value in node.inputs)
            found.append(
                (number, node.levels, learned * programs.multiplications(node.eqn))
            )
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
