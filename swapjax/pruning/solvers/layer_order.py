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

    def alone() -> Leaves:
        return _wide(fisher_diagonal(weights, held.diagonal()), weights)

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
    order = functools.partial(_order, held, weights, allowed)
    return jax.lax.cond(kept <= _DEEP * left, order, alone)


def _order(held: Kronecker, weights: Leaves, allowed: Leaves) -> Leaves:
    leaves, found = held.unpack(weights), []
    for layer, gamma, leaf, left in zip(
        held.layers, held.gammas, leaves, held.unpack(allowed), strict=True
    ):
        if leaf.size == 0:
            found.append(leaf)
            continue
        assert layer is not None
        assert gamma is not None
        reads = jnp.diagonal(layer.moment, axis1=1, axis2=2)[:, :, None]
        system = layer_quadratic.damp(
            layer.moment,
            _DAMPING,
            layers=layer.layers,
            inside=jnp.any(layer.index >= 0, axis=2) if layer.filled else None,
        )
        score = obc_order.order(
            system.hessian,
            layer.matrix(leaf).astype(layer.moment.dtype),
            layer.matrix(left) & (reads > 0),
            gamma.astype(layer.moment.dtype),
        )
        found.append(layer.leaf(score, leaf.shape))
    return _wide(held.pack(_wide(tuple(found), leaves)), weights)


def _wide(scores: Leaves, weights: Leaves) -> Leaves:
    """Give scores the dtypes of their weights, or float32 where those are narrower."""
    return tuple(
        s.astype(jnp.promote_types(w.dtype, jnp.float32))
        for s, w in zip(scores, weights, strict=True)
    )
