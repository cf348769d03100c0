"""The regression behind every method: Q, its gradient, exact steps.

With ``x = G w`` and a coupling held fixed, the objective is a quadratic in x and a
ridge in w:

    Q(w) = 1/2 (x - t)^T M (x - t) + constant + n lambda/2 |w - wbar|^2

`Fit` holds its part in R^n. Linear regression has ``t = y``, ``M = I``; a transport
plan moves the targets t; smoothing over neighbours makes M a plan. All formulas below
hold for every one of them.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from swapjax.core.types import Leaves

_HIGHEST = jax.lax.Precision.HIGHEST


class Fit(NamedTuple):
    """The part of the objective that depends on the projections x only.

    Attributes:
        targets: t, [n].
        metric: M: None for the identity, [n] for a diagonal, [n, n] for a symmetric
            positive semidefinite matrix whose rows sum to 1.
        constant: what does not depend on x while the coupling is held.
    """

    targets: jax.Array
    metric: jax.Array | None
    constant: jax.Array


def misfit(fit: Fit, x: jax.Array) -> jax.Array:
    """Evaluate the part in R^n; add `ridge` for Q."""
    residual = x - fit.targets
    return 0.5 * jnp.vdot(residual, apply_metric(fit.metric, residual)) + fit.constant


def slope(fit: Fit, x: jax.Array) -> jax.Array:
    """Differentiate `misfit` in x; G pulls it back to the gradient in w.

    For a plan with row sums a and ``M = diag(n a)`` this is ``n (a x - Pi y)``, which
    by the envelope theorem is also the gradient through a converged Sinkhorn.
    """
    return apply_metric(fit.metric, x - fit.targets)


def ridge(
    weights: Leaves, reference: Leaves, n: int, damping: jax.Array | float
) -> jax.Array:
    """``n lambda/2 |w - wbar|^2``."""
    return (
        0.5
        * n
        * damping
        * optax.tree.norm(optax.tree.sub(weights, reference), squared=True)
    )


def gradient(
    pulled: Leaves,
    weights: Leaves,
    reference: Leaves,
    n: int,
    damping: jax.Array | float,
) -> Leaves:
    """Form the gradient of Q in w, from ``G^T slope``."""
    return tuple(
        g + n * damping * (w - r)
        for g, w, r in zip(pulled, weights, reference, strict=True)
    )


def line_step(
    fit: Fit,
    x: jax.Array,
    direction: Leaves,
    moved: jax.Array,
    offset: Leaves,
    damping: jax.Array | float,
) -> jax.Array:
    """Find the exact minimiser tau of Q along ``w - tau d``, the coupling held.

    Args:
        fit: the part in R^n.
        x: ``G w``.
        direction: d.
        moved: ``G d``.
        offset: ``w - wbar``.
        damping: lambda.

    Returns:
        A scalar; 0 along a direction that changes nothing.
    """
    n = x.shape[0]
    rise = jnp.vdot(moved, slope(fit, x)) + n * damping * optax.tree.vdot(
        direction, offset
    )
    bend = jnp.vdot(moved, apply_metric(fit.metric, moved)) + n * damping * (
        optax.tree.norm(direction, squared=True)
    )
    return jnp.where(bend > 0, rise / jnp.where(bend > 0, bend, 1), 0)


def support_limit(weights: Leaves, gradient: Leaves, support: Leaves) -> jax.Array:
    """tau_c: how far ``w - tau g`` may go before its top-k leaves the support.

    Closed form, O(p). Weights must be zero off the support.

    Returns:
        The largest such tau; infinity if no step leaves the support.
    """
    reach = jnp.stack(
        [
            jnp.max(jnp.where(s, 0, jnp.abs(g)), initial=0)
            for g, s in zip(gradient, support, strict=True)
        ]
    ).max()

    def bound(w: jax.Array, g: jax.Array, s: jax.Array) -> jax.Array:
        shrinks = w * g > 0
        rate = jnp.where(shrinks, reach + jnp.abs(g), reach - jnp.abs(g))
        meets = s & (rate > 0)
        limit = jnp.abs(w) / jnp.where(meets, rate, 1)
        return jnp.min(jnp.where(meets, limit, jnp.inf), initial=jnp.inf)

    bounds = [
        bound(w, g, s) for w, g, s in zip(weights, gradient, support, strict=True)
    ]
    return jnp.stack(bounds).min()


def apply_metric(metric: jax.Array | None, v: jax.Array) -> jax.Array:
    """``M v``, for the metric of a `Fit`."""
    if metric is None:
        return v
    if metric.ndim == 1:
        return metric * v
    return jnp.matmul(metric, v, precision=_HIGHEST)
