"""Scores by which entries compete for a place in the support: large means keep.

All but magnitude are in float32 or wider: squares of float16 leave its range.
"""

import jax.numpy as jnp

from swapjax.core import trees
from swapjax.core.types import Leaves


def magnitude(weights: Leaves) -> Leaves:
    """``|w|``."""
    return tuple(jnp.abs(w) for w in weights)


def saliency(weights: Leaves, gradient: Leaves) -> Leaves:
    """``|w_q g_q|``: what the loss changes by, to first order, without the entry.

    Args:
        weights: the leaves.
        gradient: of the mean loss.
    """
    wide = trees.wide(weights)
    return tuple(
        jnp.abs(w.astype(wide) * g.astype(wide))
        for w, g in zip(weights, gradient, strict=True)
    )


def gradient_flow(weights: Leaves, curved: Leaves) -> Leaves:
    """``w_q (H g)_q``: what half of ``g^T g`` loses, to first order, with the entry.

    Removing entry q moves the weights by ``-w_q e_q`` and ``g^T g`` by
    ``-2 w_q (H g)_q``. GraSP, which ranks by ``-w (H g)`` and removes the largest.

    Args:
        weights: the leaves.
        curved: ``H g``, with the gradient g and the Hessian H of the mean loss.
    """
    wide = trees.wide(weights)
    return tuple(
        w.astype(wide) * c.astype(wide) for w, c in zip(weights, curved, strict=True)
    )


def fisher_diagonal(weights: Leaves, mean_squares: Leaves) -> Leaves:
    """``w_q^2 F_qq``: what the loss rises by, twice, if the entry alone is removed.

    Optimal Brain Damage with the diagonal of the empirical Fisher for the Hessian.
    Nothing is added to F: a constant would drown scores in float32.

    Args:
        weights: the leaves.
        mean_squares: ``F_qq = (1/n) sum_i G_iq^2``, the rows' `mean_squares`.
    """
    wide = trees.wide(weights)
    return tuple(
        jnp.square(w.astype(wide)) * f.astype(wide)
        for w, f in zip(weights, mean_squares, strict=True)
    )
