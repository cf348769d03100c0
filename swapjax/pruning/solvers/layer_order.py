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
_DEEP = 0.5  # of what is left that must go for the order to be worth its time


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
    or a layer is too large. All leaves alike, since the rises along a path are not
    those of weights that go alone.

    Args:
        held: T.
        weights: the leaves of the problem.
        within: outside of which weights go first.
        budget: what is kept.

    Returns:
        Scores of the shapes of the weights, in float32 or wider.
    """

    def alone() -> Leaves:
        return _wide(fisher_diagonal(weights, held.diagonal()))

    if budget.units is not None or not all(
        layer is not None and work(layer) <= GREEDY_WORK for layer in held.layers
    ):
        return alone()
    here = sum(jnp.sum(w != 0, dtype=jnp.float32) for w in weights)
    kept = jnp.sum(budget.keep, dtype=jnp.float32)
    order = functools.partial(_order, held, weights, within)
    return jax.lax.cond(kept <= (1 - _DEEP) * here, order, alone)


def _order(held: Kronecker, weights: Leaves, within: Leaves | None) -> Leaves:
    allowed = tuple(w != 0 for w in weights)
    if within is not None:
        allowed = tuple(a & m for a, m in zip(allowed, within, strict=True))
    found = []
    for layer, gamma, leaf, left in zip(
        held.layers, held.gammas, held.unpack(weights), held.unpack(allowed),
        strict=True,
    ):  # fmt: skip
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
            gamma,
        )
        found.append(layer.leaf(score, leaf.shape))
    return _wide(held.pack(tuple(found)))


def _wide(leaves: Leaves) -> Leaves:
    return tuple(x.astype(jnp.promote_types(x.dtype, jnp.float32)) for x in leaves)
