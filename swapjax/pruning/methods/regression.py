"""One stage of the regression: supports and dampings tried, judged by the loss."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from swapjax.core import trees
from swapjax.core.types import Leaves, Status
from swapjax.pruning.method import Problem, Solution, rows_of
from swapjax.pruning.solvers import conjugate_gradients
from swapjax.pruning.solvers.candidates import lowest, pick, stack
from swapjax.pruning.solvers.conjugate_gradients import Algebra, prefers_cg
from swapjax.pruning.solvers.hard_thresholding import iht
from swapjax.pruning.solvers.natural_step import FRACTIONS
from swapjax.pruning.solvers.refit import Refit, prepare, refit
from swapjax.pruning.solvers.targets import Target
from swapjax.sparsity import scores
from swapjax.sparsity.budget import Budget, select
from swapjax.sparsity.masks import apply_masks

Support = Literal["magnitude", "obd", "iht"]


def solve(
    problem: Problem,
    budget: Budget,
    *,
    target: Target,
    damping: tuple[float, ...],
    support: tuple[Support, ...],
    first_order: bool,
    reference: str,
    iterations: int,
    rounds: int,
    tolerance: float,
    algebra: Algebra,
) -> Solution:
    """Prune by regression on a target; the arguments are those of `swap`, checked.

    Every support is factorised once. On each, every damping is tried, and from every
    re-fit a few lengths of the first-order step; the weights with the lowest loss on
    the stage's examples are the answer.

    Raises:
        ValueError: for a problem without rows.
    """
    rows = rows_of(problem)
    wbar = problem.weights if reference == "current" else problem.initial
    y = rows.project(wbar)
    # Averaging b examples shrinks the Fisher of the rows by b; the damping with it.
    dampings = jnp.asarray(damping, y.dtype) / rows.batch
    state = target.prepare(y)

    def choose_support(rule: Support) -> tuple[Leaves, jax.Array]:
        if rule == "obd":
            ranked = scores.fisher_diagonal(problem.weights, rows.mean_squares())
        else:
            ranked = scores.magnitude(problem.weights)
        mask = select(ranked, budget, problem.within)
        if rule != "iht":
            return mask, jnp.zeros((), jnp.int32)
        path = iht(
            rows, mask, problem.weights, wbar, y, target, state, budget,
            damping=dampings[0], iterations=iterations, tolerance=tolerance,
            within=problem.within,
        )  # fmt: skip
        return path.support, path.swaps

    limits: dict[str, Any] = {"rounds": rounds, "tolerance": tolerance}
    solves = len(damping) * (rounds if target.moves else 1)
    if algebra == "auto":
        algebra = "cg" if prefers_cg(rows, wbar, solves) else "gram"

    def fit_on(mask: Leaves) -> tuple[Refit, jax.Array, jax.Array]:
        if algebra == "cg":
            make = lambda lam: conjugate_gradients.refit(  # noqa: E731
                rows, mask, wbar, y, target, state, damping=lam, **limits
            )
        else:
            # Factorised once, for every damping.
            ground = prepare(rows, mask, wbar, y, target, state)
            make = lambda lam: refit(rows, ground, y, target, damping=lam, **limits)  # noqa: E731
        found, losses = jax.lax.map(lambda lam: advance(make(lam)), dampings)
        best = lowest(losses)
        return pick(best, found), dampings[best], losses[best]

    def advance(fit: Refit) -> tuple[Refit, jax.Array]:
        """Follow the mean gradient as far as the loss falls."""

        def move(fraction: jax.Array) -> tuple[Leaves, jax.Array]:
            step = (fraction * fit.length).astype(y.dtype)
            moved = optax.tree.add_scale(fit.weights, -step, fit.step)
            moved = trees.cast_like(moved, wbar)
            return moved, rows.loss(moved)

        fractions = jnp.asarray(FRACTIONS if first_order else (0.0,), y.dtype)
        trials, losses = jax.lax.map(move, fractions)
        best = lowest(losses)
        length = fractions[best] * fit.length * rows.batch
        fit = fit._replace(weights=pick(best, trials), length=length, step=())
        return fit, losses[best]

    # Mapped and not unrolled: the program holds the network and the n x n algebra once.
    supports, swaps = stack([choose_support(rule) for rule in support])
    fits, used, losses = jax.lax.map(fit_on, supports)
    # The loss decides: at high sparsity every support is far from the reference, where
    # the local model cannot tell them apart, and noise calls for more damping.
    best = lowest(losses)
    mask, fit, used, loss, swaps = pick(best, (supports, fits, used, losses, swaps))

    thresholded = apply_masks(wbar, mask)
    finite = jnp.isfinite(fit.objective[-1]) & jnp.isfinite(loss)
    finite &= jnp.stack([jnp.all(jnp.isfinite(w)) for w in fit.weights]).all()
    transported = fit.couplings.get("transport_converged", jnp.asarray(True))
    status = jnp.select(
        [~finite, fit.deficient & (used == 0), ~transported, ~fit.settled],
        [
            Status.NOT_FINITE,
            Status.RANK_DEFICIENT,
            Status.TRANSPORT_NOT_CONVERGED,
            Status.ITERATION_LIMIT,
        ],
        Status.CONVERGED,
    )
    return Solution(
        weights=jax.tree.map(
            lambda new, old: jnp.where(finite, new, old), fit.weights, thresholded
        ),
        masks=mask,
        objective=fit.objective,
        iterations=fit.rounds,
        status=status.astype(jnp.int32),
        details={
            "support_rule": best,
            "support_swaps": swaps,
            "loss": loss,
            "damping": used * rows.batch,
            # 1 follows the mean gradient in full, 0 not at all.
            "first_order": fit.length,
            **fit.couplings,
        },
    )
