"""Scores by which entries compete for a place in the support: large means keep.

All but magnitude are in float32 or wider: squares of float16 leave its range.
"""

import jax.numpy as jnp

from swapjax.core import trees
from swapjax.core.types import Leaves


def magnitude(weights: Leaves) -> Leaves:
    """Score by magnitude, ``|w|``."""
    return tuple(jnp.abs(w) for w in weights)


def saliency(weights: Leaves, gradient: Leaves) -> Leaves:
    """Score by ``|w_q g_q|``, the change of the loss without an entry, to first order.

    SNIP (arXiv:1810.02340).

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
    """Score by ``w_q (H g)_q``, what ``g^T g / 2`` loses with it, to first order.

    Removing entry q moves the weights by ``-w_q e_q`` and ``g^T g`` by
    ``-2 w_q (H g)_q``. GraSP (arXiv:2002.07376) ranks by ``-w (H g)`` and removes the
    largest.

    Args:
        weights: the leaves.
        curved: ``H g``, with the gradient g and the Hessian H of the mean loss.
    """
    wide = trees.wide(weights)
    return tuple(
        w.astype(wide) * c.astype(wide) for w, c in zip(weights, curved, strict=True)
    )


def fisher_diagonal(weights: Leaves, mean_squares: Leaves) -> Leaves:
    """Score by ``|w_q| sqrt(F_qq)``, the root of what the entry alone is worth.

    ``w_q^2 F_qq`` is twice the rise of the loss without it; of tiny weights and
    gradients, where both squares vanish, the root does not.

    Optimal Brain Damage with the diagonal of the empirical Fisher for the Hessian.
    Nothing is added to F: a constant would drown scores in float32.

    Args:
        weights: the leaves.
        mean_squares: ``F_qq = (1/n) sum_i G_iq^2``, the rows' `mean_squares`.
    """
    wide = trees.wide(weights)
    return tuple(
        jnp.abs(w.astype(wide)) * jnp.sqrt(f.astype(wide))
        for w, f in zip(weights, mean_squares, strict=True)
    )
