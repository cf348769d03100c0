"""Who judges re-fits on the same rows: the loss, or rows left out in closed form.

A fit is too good on the rows that it was made of, and a loss on wrong data prefers what
is wrong with them. What a re-fit without row i would make of row i follows from the
n x n system, whose matrix ``A = I - K (K + n lambda I)^-1`` takes a residual r to what
is left of it:

============ ==========================================================================
``"loo"``    ``(A r)_i / A_ii``, by leaving out each row in turn (Allen, 1974)
``"gcv"``    ``(A r)_i / mean(A_ii)``, generalised cross-validation, which no single row
             of high leverage decides (Golub, Heath and Wahba, 1979)
============ ==========================================================================

Squared and averaged, either is an error of projections: of supports, dampings and
ridges alike, in the same unit.
"""

from typing import Literal

import jax
import jax.numpy as jnp

from swapjax.pruning.solvers.dual_system import System

Judge = Literal["loss", "gcv", "loo", "none"]

# A row of leverage 1 is fitted by itself alone: leaving it out says nothing.
LEAST = 1e-6


def check_judge(judge: str, algebra: str, first_order: bool) -> bool:
    """Check who judges, and tell whether it takes the n x n system.

    Args:
        judge: one of `Judge`.
        algebra: that is asked for.
        first_order: whether the mean gradient is followed, as far as rows left out
            confirm it where no loss is asked.

    Raises:
        ValueError: for another judge, and one that the algebra cannot serve.
    """
    if judge not in ("loss", "gcv", "loo", "none"):
        raise ValueError(f"judge must be 'loss', 'gcv', 'loo' or 'none', got {judge!r}")
    if judge == "loss" or (judge == "none" and not first_order):
        return False
    if algebra == "cg":
        hint = "" if judge != "none" else ", or first_order=False"
        raise ValueError(
            f"judge: {judge!r} looks at rows left out, of which algebra='cg' knows "
            f"nothing; take algebra='gram'{hint}"
        )
    return True


def left_out(
    judge: Judge, system: System, targets: jax.Array, start: jax.Array, y: jax.Array
) -> jax.Array | tuple[()]:
    """Tell how far the projections of rows left out are from their own.

    Targets are held, and with a plan as the metric this is an approximation.

    Args:
        judge: who asks.
        system: of the support.
        targets: t, what the fit is drawn to, [n].
        start: the projections that it starts from, [n].
        y: what the projections were, [n].

    Returns:
        The mean of ``(y_i - x_i)^2``, with x_i the projection of row i by a re-fit
        without it; nothing for a judge that does not look at it.
    """
    if judge not in ("gcv", "loo"):
        return ()
    left = system.rest_diagonal()
    if judge == "gcv":
        left = jnp.mean(left)
    missed = system.rest(targets - start) / jnp.maximum(left, LEAST)
    return jnp.mean(jnp.square(y - targets + missed))


def named(judge: Judge, value: jax.Array) -> dict[str, jax.Array]:
    """Name what re-fits were chosen by, as details do."""
    if judge == "none":
        return {}
    return {"loss" if judge == "loss" else "left_out": value}
