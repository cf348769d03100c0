"""When layer-wise optimal brain surgery would remove each weight, as scores.

Under the Kronecker-factored T of `swapjax.pruning.solvers.kfac` every output of a layer
is a quadratic of its own, and the greedy order of Optimal Brain Compression
(arXiv:2208.11580) is affordable. Where much is removed at once it finds supports that
no score of single weights does: those that are good once what is left is re-fitted.
"""

import functools
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp

from swapjax.activations.layer import Layer
from swapjax.core import trees
from swapjax.core.types import Leaves
from swapjax.pruning.solvers import layer_curves, layer_parts, layer_quadratic
from swapjax.pruning.solvers.kfac import Kronecker
from swapjax.pruning.solvers.layer_parts import Part
from swapjax.sparsity.budget import Budget
from swapjax.sparsity.scores import fisher_diagonal

# Errors of outputs count by gamma, so that gradients share the budget among layers, or
# all of a layer alike, in units of what it gives, so that none do.
Rule = Literal["obs", "layerwise"]

GREEDY_WORK = 3e10  # outputs * inputs^3: seconds on one core, not minutes
_DAMPING = 0.01  # in units of the mean of the diagonal, as of `layerwise_obs`
_BLOCK = 128  # inputs of a block of the column order, as of `layerwise_obs`
_TOTAL_WORK = 10 * GREEDY_WORK  # of all layers in the greedy order
_DEEP = 0.51  # of what is left, the most that may stay for the order to pay: a half


def work(layer: Layer) -> int:
    """Estimate the work of the greedy order, and of a re-fit, for one layer of a leaf.

    A stack is worked on as its layers would be alone, however many there are.
    """
    groups, inputs, outputs = layer.index.shape
    return groups // layer.layers * outputs * inputs**3


def scores(
    held: Kronecker,
    weights: Leaves,
    within: Leaves | None,
    budget: Budget,
    rules: Sequence[Rule],
) -> tuple[Leaves, ...]:
    """Score weights by when they go in the greedy order under T, by each of some rules.

    Or by ``w^2 T_qq``, where little goes, whole units do, or a leaf could not be
    followed. All leaves alike, since the rises along a path are not those of weights
    that go alone. The order does not look at patterns. A layer too large for it goes by
    the curve of its error.

    Args:
        held: T.
        weights: the leaves of the problem.
        within: outside of which weights go first.
        budget: what is kept.
        rules: what errors count.

    Returns:
        Scores of each rule, of the shapes of the weights, in float32 or wider.
    """
    dtype = trees.wide(weights)

    def alone() -> tuple[Leaves, ...]:
        found = _cast(fisher_diagonal(weights, held.diagonal()), dtype)
        return (found,) * len(rules)

    if budget.units is not None or any(layer is None for layer in held.layers):
        return alone()
    allowed = tuple(w != 0 for w in weights)
    if within is not None:
        allowed = tuple(a & m for a, m in zip(allowed, within, strict=True))
    left = sum(jnp.sum(a, dtype=jnp.float32) for a in allowed)
    kept = jnp.sum(budget.keep, dtype=jnp.float32)
    # Where each layer has a budget of its own only the order within it counts.
    shared = len(set(budget.groups)) < len(budget.groups)
    order = functools.partial(_order, held, weights, allowed, dtype, shared, rules)
    return jax.lax.cond(kept <= _DEEP * left, order, alone)


def _order(
    held: Kronecker,
    weights: Leaves,
    allowed: Leaves,
    dtype: jnp.dtype,
    shared: bool,
    rules: Sequence[Rule],
) -> tuple[Leaves, ...]:
    layers = [layer for layer in held.layers if layer is not None]
    greedy = [work(layer) <= GREEDY_WORK for layer in layers]
    total = sum(
        work(layer) * layer.layers
        for layer, is_greedy in zip(layers, greedy, strict=True)
        if is_greedy
    )
    if total > _TOTAL_WORK:
        greedy = [work(layer) == 0 for layer in layers]
    systems = layer_quadratic.of_layers(layers, _DAMPING)
    leaves, inside = held.unpack(weights), held.unpack(allowed)
    parts = []
    for layer, system, leaf, left in zip(layers, systems, leaves, inside, strict=True):
        matrix = layer.matrix(leaf).astype(layer.moment.dtype)
        part = Part(
            layer=layer,
            weights=matrix,
            # Of those that are not left none comes before another.
            ranks=jnp.where(layer.matrix(left) & (layer.reads > 0), 0, -1),
            factor=jnp.ones((matrix.shape[0], 1, matrix.shape[2]), matrix.dtype),
            system=system,
            pattern=None,
            along=jnp.asarray(True),
        )
        parts.append(part)
    # What errors of an output count does not change the order of its weights.
    paths = layer_parts.paths(parts, greedy)

    def score(i: int, factor: jax.Array) -> jax.Array:
        if greedy[i]:
            return jnp.where(paths[i] < 0, paths[i], factor * paths[i])
        part = parts[i]._replace(factor=factor)
        return layer_curves.scores(part, _BLOCK) if shared else part.saliency()

    found: list[Leaves] = []
    for i, leaf in enumerate(leaves):
        factors = jnp.stack([_factor(rule, held, parts[i], i) for rule in rules])
        each = jax.lax.map(functools.partial(score, i), factors)
        found.append(tuple(parts[i].layer.leaf(x, leaf.shape) for x in each))
    by_rule = zip(*found, strict=True)
    return tuple(held.pack(_cast(one, dtype)) for one in by_rule)


def _factor(rule: Rule, held: Kronecker, part: Part, i: int) -> jax.Array:
    """Tell what errors of the outputs of a leaf count, [groups, 1, outputs]."""
    if rule == "obs":
        gamma = held.gammas[i]
        assert gamma is not None
        return gamma.astype(part.weights.dtype)
    layer = part.layer
    return layer_quadratic.relative(layer.moment, part.weights, layer.layers)


def _cast(leaves: Leaves, dtype: jnp.dtype) -> Leaves:
    return tuple(x.astype(dtype) for x in leaves)
