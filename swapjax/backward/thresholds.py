"""Thresholds from the assumption that gradients are normal, and what follows from it.

With deviation sigma and t = Phi^-1((1 + P)/2), a fraction P of the entries is below
``t sigma`` in magnitude; sigma is ``sqrt(pi/2)`` times the mean magnitude.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from scipy import special

from swapjax.core.checks import require_fraction

_DEVIATION = math.sqrt(math.pi / 2)  # of a normal number, in means of its magnitude
_PEAK = 1 / math.sqrt(2 * math.pi)


def quantile(rate: Any) -> Any:
    """Compute t, the threshold in deviations: ``sqrt(2) erfinv(P)``.

    Args:
        rate: P in [0, 1), a number or a traced one.
    """
    if isinstance(rate, jax.Array):
        return jnp.sqrt(2.0).astype(rate.dtype) * jax.lax.erf_inv(rate)
    return math.sqrt(2) * float(special.erfinv(rate))


def expected_zeros(rate: float) -> float:
    """Compute the fraction of normal gradients that become zero at a rate.

    ``z(P) = P - (2/t) (phi(0) - phi(t))``, less than P: of the entries below the
    threshold some become the threshold itself.

    Args:
        rate: P, the fraction of entries below the threshold.

    Raises:
        ValueError: for a rate outside [0, 1).
    """
    require_fraction("rate", rate)
    t = quantile(rate)
    return rate - 2 / t * _drop(t) if t > 0 else 0.0


def added_variance(rate: float) -> float:
    """Compute the variance that pruning adds to an entry, in that of the gradient.

    ``v(P) = 2 t (phi(0) - phi(t)) - (P - 2 t phi(t))`` for normal gradients.

    Args:
        rate: P, the fraction of entries below the threshold.

    Raises:
        ValueError: for a rate outside [0, 1).
    """
    require_fraction("rate", rate)
    t = quantile(rate)
    return 2 * t * _drop(t) - (rate - 2 * t * (_PEAK - _drop(t)))


def _drop(t: float) -> float:
    """Compute phi(0) - phi(t), without cancellation for small t."""
    return -_PEAK * math.expm1(-t * t / 2)


def deviation(statistics: jax.Array, *, dense: bool = False) -> jax.Array:
    """Estimate the deviation of a gradient from its statistics.

    Args:
        statistics: ``float32[..., 3 or more]``: the sum of magnitudes, the number of
            entries, and how many of them are zero.
        dense: whether entries that are zero do not count.

    Returns:
        ``float32[...]``, 0 for a gradient without entries.
    """
    total, n, zeros = (statistics[..., i] for i in range(3))
    return _DEVIATION * total / jnp.maximum(n - zeros if dense else n, 1)


def predicted(deviations: jax.Array, filled: jax.Array) -> jax.Array:
    """Predict the deviation of a step from those of the last ones.

    Args:
        deviations: ``float32[..., depth]``.
        filled: ``int32[...]``, how many of them are known.

    Returns:
        ``float32[...]``, their mean; 0 until all are known, with which nothing is
        pruned. That is ours: the authors' way to begin is not known.
    """
    full = filled >= deviations.shape[-1]
    return jnp.where(full, jnp.mean(deviations, axis=-1), 0.0)


def pushed(
    deviations: jax.Array, filled: jax.Array, new: jax.Array, counts: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Let the deviation of a step in, and the oldest one out.

    Args:
        deviations: ``float32[..., depth]``, the oldest first.
        filled: ``int32[...]``.
        new: ``float32[...]``; one that is not finite stays out.
        counts: ``float32[...]``, entries that it was found from; of none nothing is
            known, as in a branch that was not taken.
    """
    takes = jnp.isfinite(new) & (counts > 0)
    moved = jnp.concatenate([deviations[..., 1:], new[..., None]], axis=-1)
    depth = deviations.shape[-1]
    return (
        jnp.where(takes[..., None], moved, deviations),
        jnp.where(takes, jnp.minimum(filled + 1, depth), filled),
    )
