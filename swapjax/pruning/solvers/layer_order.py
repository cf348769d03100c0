"""When layer-wise optimal brain surgery would remove each weight, as scores.

Under the Kronecker-factored T of `swapjax.pruning.solvers.kfac` every output of a layer
is a quadratic of its own, and the greedy order of Optimal Brain Compression
(arXiv:2208.11580) is affordable. Where much is removed at once it finds supports that
no score of single weights does: those that are good once what is left is re-fitted.
"""

import functools

import jax
import jax.numpy as jnp

from swapjax.activations.layer import Layer
from swapjax.core import trees
from swapjax.core.types import Leaves
from swapjax.pruning.solvers import layer_quadratic, obc_order
from swapjax.pruning.solvers.kfac import Kronecker
from swapjax.sparsity.budget import Budget
from swapjax.sparsity.scores import fisher_diagonal

GREEDY_WORK = 3e10  # outputs * inputs^3: seconds on one core, not minutes
_DAMPING = 0.01  # in units of the mean of the diagonal, as of `layerwise_obs`
_TOTAL_WORK = 10 * GREEDY_WORK  # of all layers
_DEEP = 0.51  # of what is left, the most that may stay for the order to pay: a half


def work(layer: Layer) -> int:
    """Estimate the work of the greedy order, and of a re-fit, for one layer of a leaf.

    A stack is worked on as its layers would be alone, however many there are.
    """
    groups, inputs, outputs = layer.index.shape
    return groups // layer.layers * outputs * inputs**3


def scores(
    held: Kronecker, weights: Leaves, within: Leaves | None, budget: Budget
) -> Leaves:
    """Score weights by when they go in the greedy order under T.

    Or by ``w^2 T_qq``, where little goes, whole units do, a leaf could not be followed,
    or layers are too large. All leaves alike, since the rises along a path are not
    those of weights that go alone. The order does not look at patterns.

    Args:
        held: T.
        weights: the leaves of the problem.
        within: outside of which weights go first.
        budget: what is kept.

    Returns:
        Scores of the shapes of the weights, in float32 or wider.
    """
    dtype = trees.wide(weights)

    def alone() -> Leaves:
        return _cast(fisher_diagonal(weights, held.diagonal()), dtype)

    layers = [layer for layer in held.layers if layer is not None]
    works = [work(layer) for layer in layers]
    if (
        budget.units is not None
        or len(layers) < len(held.layers)
        or max(works, default=0) > GREEDY_WORK
        or sum(w * layer.layers for w, layer in zip(works, layers, strict=True))
        > _TOTAL_WORK
    ):
        return alone()
    allowed = tuple(w != 0 for w in weights)
    if within is not None:
        allowed = tuple(a & m for a, m in zip(allowed, within, strict=True))
    left = sum(jnp.sum(a, dtype=jnp.float32) for a in allowed)
    kept = jnp.sum(budget.keep, dtype=jnp.float32)
    order = functools.partial(_order, held, weights, allowed, dtype)
    return jax.lax.cond(kept <= _DEEP * left, order, alone)


def _order(
    held: Kronecker, weights: Leaves, allowed: Leaves, dtype: jnp.dtype
) -> Leaves:
    found = []
    for layer, gamma, leaf, left in zip(
        held.layers, held.gammas, held.unpack(weights), held.unpack(allowed),
        strict=True,
    ):  # fmt: skip
        if leaf.size == 0:
            found.append(leaf)
            continue
        assert layer is not None
        assert gamma is not None
        score = obc_order.order(
            layer_quadratic.of_layer(layer, _DAMPING).hessian,
            layer.matrix(leaf).astype(layer.moment.dtype),
            layer.matrix(left) & (layer.reads > 0),
            gamma.astype(layer.moment.dtype),
        )
        found.append(layer.leaf(score, leaf.shape))
    return held.pack(_cast(tuple(found), dtype))


def _cast(leaves: Leaves, dtype: jnp.dtype) -> Leaves:
    return tuple(x.astype(dtype) for x in leaves)
