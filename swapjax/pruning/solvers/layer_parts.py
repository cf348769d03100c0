"""A leaf as its layer: what methods that prune layer by layer start from."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from swapjax.activations.layer import Layer
from swapjax.core.types import Leaves
from swapjax.pruning.method import Problem, layers_of, rows_of
from swapjax.pruning.solvers import layer_quadratic, obc_order, sparsegpt_order
from swapjax.sparsity.budget import Budget
from swapjax.sparsity.patterns import NM

Weigh = Literal["equal", "layer", "output", "fisher"]


class Part(NamedTuple):
    """A leaf as its layer; arrays are [groups, inputs, outputs].

    Attributes:
        layer: what it reads, its inputs in the order that its pattern calls for.
        weights: the reference, in float32 or wider.
        ranks: int32: 0 for weights that compete, -1 for those that go before them
            since they are zero already or read nothing, -2 for those outside within.
        factor: [groups, 1, outputs], what an error of an output counts.
        system: the damped quadratic.
        pattern: of the leaf, if its groups lie along the inputs of one output.
        along: whether they do; True without a pattern, False where whole units are
            kept, so that the support stays as it is.
    """

    layer: Layer
    weights: jax.Array
    ranks: jax.Array
    factor: jax.Array
    system: layer_quadratic.Quadratic
    pattern: NM | None
    along: jax.Array

    def saliency(self) -> jax.Array:
        """Score each weight by the error if it went alone; -1 for those that go."""
        score = self.factor * layer_quadratic.saliency(self.system.root, self.weights)
        return jnp.where(self.ranks == 0, score, -1)

    def sweep(self, support: jax.Array, block: int) -> tuple[jax.Array, jax.Array]:
        """Prune in the column order, from a first support, by blocks of inputs.

        Returns:
            The weights, zero off the support, and the support.
        """
        return sparsegpt_order.sweep(
            self.system.root,
            self.weights,
            self.ranks,
            support,
            block=block,
            pattern=self.pattern,
            adapt=self.along,
        )

    def error(self, weights: jax.Array) -> jax.Array:
        """Evaluate the output error E of other weights, every output alike."""
        return layer_quadratic.error(self.system.hessian, weights, self.weights)

    def weighed_errors(self, weights: jax.Array) -> jax.Array:
        """Evaluate the error of each group, [groups], with what its outputs count."""
        change = weights - self.weights
        read = jnp.matmul(
            self.system.hessian, change, precision=jax.lax.Precision.HIGHEST
        )
        return jnp.sum(self.factor * change * read, axis=(1, 2))


def paths(parts: Sequence[Part], greedy: Sequence[bool]) -> dict[int, jax.Array]:
    """Score weights by when they go in the greedy order.

    Args:
        parts: of all leaves.
        greedy: which of them to order.

    Returns:
        The scores of each of those, [groups, inputs, outputs], by its number.
    """
    found: dict[int, jax.Array] = {}
    ordered = [i for i, is_greedy in enumerate(greedy) if is_greedy]
    for pattern in dict.fromkeys(parts[i].pattern for i in ordered):
        places = [i for i in ordered if parts[i].pattern == pattern]
        some = [parts[i] for i in places]
        scores = obc_order.order(
            [part.system.hessian for part in some],
            [part.weights for part in some],
            [part.ranks == 0 for part in some],
            [part.factor for part in some],
            pattern,
            [part.along for part in some],
        )
        found.update(zip(places, scores, strict=True))
    return found


def check_weigh(weigh: str) -> None:
    """Raise ValueError for a name that is none."""
    if weigh not in get_args(Weigh):
        known = ", ".join(map(repr, get_args(Weigh)))
        raise ValueError(f"weigh must be one of {known}, got {weigh!r}")


def make_parts(
    problem: Problem, wbar: Leaves, budget: Budget, damping: float, weigh: Weigh
) -> list[Part]:
    """Make each leaf of a problem its layer.

    Args:
        problem: what to prune; with rows, if they weigh.
        wbar: the reference leaves.
        budget: for the patterns.
        damping: in units of the mean of the diagonal of H.
        weigh: what the error of an output counts, as in `layerwise_obs`.

    Raises:
        ValueError: for a problem without layers, or without rows where they weigh.
    """
    squares = rows_of(problem).mean_squares() if weigh == "fisher" else None
    aligned = [
        _align(layer, leaf.shape, budget.pattern(i))
        for i, (leaf, layer) in enumerate(zip(wbar, layers_of(problem), strict=True))
    ]
    systems = layer_quadratic.of_layers([layer for layer, _ in aligned], damping)
    parts = []
    for i, (leaf, (layer, along)) in enumerate(zip(wbar, aligned, strict=True)):
        pattern = budget.pattern(i)
        weights = layer.matrix(leaf).astype(layer.moment.dtype)
        ranks = jnp.where((weights != 0) & (layer.reads > 0), 0, -1)
        if problem.within is not None:
            ranks = jnp.where(layer.matrix(problem.within[i]), ranks, -2)
        if layer.filled:
            ranks = jnp.where(layer.index >= 0, ranks, -2)
        factor = jnp.ones((weights.shape[0], 1, weights.shape[2]), weights.dtype)
        if weigh == "layer":
            factor = layer_quadratic.relative(layer.moment, weights, layer.layers)
        if weigh == "output":
            factor = layer_quadratic.relative(layer.moment, weights)
        if squares is not None:
            each = layer.matrix(squares[i]).astype(weights.dtype)
            factor = _curvature(each, layer.reads)
        inputs = weights.shape[1]
        parts.append(
            Part(
                layer=layer,
                weights=weights,
                ranks=ranks,
                factor=factor,
                system=systems[i],
                pattern=pattern
                if inputs % (pattern.m if pattern else 1) == 0
                else None,
                # Whole units stay as they are chosen.
                along=along & (budget.units is None),
            )
        )
    return parts


def _curvature(squares: jax.Array, reads: jax.Array) -> jax.Array:
    """Average the squared gradient of the loss in each output, [groups, 1, outputs].

    That of a weight is the product of what it reads and the gradient in its output. If
    the two are independent, as K-FAC assumes (arXiv:1503.05671), their squares are too.
    """

    def one(group: tuple[jax.Array, jax.Array]) -> jax.Array:
        top, total = (jnp.sum(x, axis=0, keepdims=True) for x in group)
        return top / jnp.where(total > 0, total, 1)

    return jax.lax.map(one, (squares, reads))


def _align(
    layer: Layer, shape: tuple[int, ...], pattern: NM | None
) -> tuple[Layer, jax.Array]:
    """Order the inputs so that those of a group of the pattern follow each other.

    Returns:
        The layer, and whether that can be: not if the groups lie along outputs. The
        order is then as it was.
    """
    groups, inputs, outputs = layer.index.shape
    if pattern is None or inputs % pattern.m:
        return layer, jnp.asarray(pattern is None)
    # A group goes by the place of its first member in the leaf.
    group = layer.matrix(pattern.firsts(shape))
    if layer.filled:
        group = jnp.where(layer.index < 0, math.prod(shape), group)
    order = jnp.argsort(group[:, :, 0], axis=1, stable=True)
    ordered = jnp.take_along_axis(group, order[:, :, None], axis=1)
    ordered = ordered.reshape(groups, -1, pattern.m, outputs)
    along = jnp.all(ordered == ordered[:, :, :1])
    order = jnp.where(along, order, jnp.arange(inputs, dtype=order.dtype))
    moment = jnp.take_along_axis(layer.moment, order[:, :, None], axis=1)
    moment = jnp.take_along_axis(moment, order[:, None, :], axis=2)
    index = jnp.take_along_axis(layer.index, order[:, :, None], axis=1)
    return dataclasses.replace(layer, moment=moment, index=index), along
