"""SWAP, linear regression and magnitude: the methods of one regression."""

import functools
import math
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from swapjax import scores, transport, trees
from swapjax.masks import apply_masks
from swapjax.oneshot import official as released
from swapjax.oneshot import targets
from swapjax.oneshot.first_order import FRACTIONS
from swapjax.oneshot.iht import iht
from swapjax.oneshot.problem import Method, Problem, Solution
from swapjax.oneshot.refit import Refit, refit
from swapjax.selection import Budget, select
from swapjax.types import Leaves, Status

Support = Literal["magnitude", "obd", "iht"]
_EITHER: tuple[Support, ...] = ("magnitude", "obd")


def swap(
    *,
    target: Literal["exact", "debiased", "smoothed", "hybrid"] = "hybrid",
    epsilon: float | None = None,
    perplexity: float | None = None,
    rho: float = 0.5,
    damping: float = 1e-2,
    support: Support | tuple[Support, ...] = _EITHER,
    first_order: bool = True,
    reference: Literal["current", "initial"] = "current",
    iterations: int = 10,
    rounds: int = 5,
    tolerance: float = 1e-4,
    max_sinkhorn: int = transport.DEFAULT_ITERATIONS,
    official: bool = False,
) -> Method:
    """DOCSTRING."""
    if target not in ("exact", "debiased", "smoothed", "hybrid"):
        raise ValueError(
            "target must be 'exact', 'debiased', 'smoothed' or 'hybrid', got "
            f"{target!r}"
        )
    if epsilon is not None and perplexity is not None:
        raise ValueError(
            f"epsilon or perplexity, not both: got {epsilon} and {perplexity}"
        )
    if epsilon is not None and not epsilon >= 0:
        raise ValueError(f"epsilon must be 0 or more, got {epsilon}")
    if perplexity is not None and not perplexity > 1:
        raise ValueError(f"perplexity must be more than 1, got {perplexity}")
    if not 0 <= rho <= 1:
        raise ValueError(f"rho must be in [0, 1], got {rho}")
    if max_sinkhorn < 1:
        raise ValueError(f"max_sinkhorn must be 1 or more, got {max_sinkhorn}")
    common = _check_common(
        damping, support, first_order, reference, iterations, rounds, tolerance
    )
    if official:
        return _official(
            "swap",
            paired=False,
            epsilon=1.0 if epsilon is None else epsilon,
            max_sinkhorn=max_sinkhorn,
        )
    if epsilon is None and perplexity is None:
        epsilon, perplexity = (0.0, None) if target == "hybrid" else (None, 2.0)
    chosen = targets.make(
        target,
        epsilon=epsilon,
        perplexity=perplexity,
        rho=rho,
        max_iterations=max_sinkhorn,
    )
    settings = {"target": target, "epsilon": epsilon, "perplexity": perplexity}
    settings |= {"rho": rho, **common, "max_sinkhorn": max_sinkhorn}
    return Method(
        name="swap",
        settings=tuple(settings.items()),
        solve=functools.partial(_solve, target=chosen, **common),
    )


def linear_regression(
    *,
    damping: float = 1e-2,
    support: Support | tuple[Support, ...] = _EITHER,
    first_order: bool = True,
    reference: Literal["current", "initial"] = "current",
    iterations: int = 10,
    tolerance: float = 1e-4,
    official: bool = False,
) -> Method:
    """DOCSTRING."""
    common = _check_common(
        damping, support, first_order, reference, iterations, 1, tolerance
    )
    if official:
        return _official("linear-regression", paired=True, epsilon=0.0, max_sinkhorn=1)
    identity = targets.make(
        "identity", epsilon=0.0, perplexity=None, rho=0.0, max_iterations=1
    )
    settings = {k: v for k, v in common.items() if k != "rounds"}
    return Method(
        name="linear-regression",
        settings=tuple(settings.items()),
        solve=functools.partial(_solve, target=identity, **common),
    )


def magnitude() -> Method:
    """Keep the largest weights as they are: the control of every comparison.

    Takes O(p) time and no gradients.
    """

    def solve(problem: Problem, budget: Budget) -> Solution:
        mask = select(scores.magnitude(problem.weights), budget, problem.within)
        return Solution(
            weights=apply_masks(problem.weights, mask),
            masks=mask,
            objective=jnp.full(1, jnp.nan),
            iterations=jnp.zeros((), jnp.int32),
            status=jnp.asarray(Status.CONVERGED, jnp.int32),
            details={},
        )

    return Method("magnitude", (), solve, needs_rows=False)


def _check_common(
    damping: float,
    support: Support | tuple[Support, ...],
    first_order: bool,
    reference: str,
    iterations: int,
    rounds: int,
    tolerance: float,
) -> dict[str, Any]:
    if not (math.isfinite(damping) and damping >= 0):
        raise ValueError(f"damping must be 0 or more, got {damping}")
    rules = (support,) if isinstance(support, str) else tuple(support)
    if not rules or set(rules) - {"magnitude", "obd", "iht"}:
        raise ValueError(
            "support must be of 'magnitude', 'obd' and 'iht', one or several, got "
            f"{support!r}"
        )
    if reference not in ("current", "initial"):
        raise ValueError(f"reference must be 'current' or 'initial', got {reference!r}")
    for name, value in (("iterations", iterations), ("rounds", rounds)):
        if value < 1:
            raise ValueError(f"{name} must be 1 or more, got {value}")
    if not tolerance >= 0:
        raise ValueError(f"tolerance must be 0 or more, got {tolerance}")
    return {
        "damping": float(damping),
        "support": rules,
        "first_order": first_order,
        "reference": reference,
        "iterations": iterations,
        "rounds": rounds,
        "tolerance": tolerance,
    }


def _official(name: str, *, paired: bool, epsilon: float, max_sinkhorn: int) -> Method:
    settings = {"official": True, "epsilon": epsilon, "max_sinkhorn": max_sinkhorn}
    if paired:
        settings = {"official": True}
    solve = functools.partial(
        released.solve,
        paired=paired,
        epsilon=epsilon,
        damping=released.DAMPING,
        max_iterations=max_sinkhorn,
    )
    return Method(name, tuple(settings.items()), solve)


def _solve(
    problem: Problem,
    budget: Budget,
    *,
    target: targets.Target,
    damping: float,
    support: tuple[Support, ...],
    first_order: bool,
    reference: str,
    iterations: int,
    rounds: int,
    tolerance: float,
) -> Solution:
    rows = problem.rows
    if rows is None:
        raise ValueError("problem: this method needs gradient rows, got None")
    wbar = problem.weights if reference == "current" else problem.initial
    # Averaging b examples shrinks the Fisher of the rows by b; the damping with it.
    damping = damping / rows.batch
    y = rows.project(wbar)
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
            damping=damping, iterations=iterations, tolerance=tolerance,
            within=problem.within,
        )  # fmt: skip
        return path.support, path.swaps

    def fit_on(mask: Leaves) -> tuple[Refit, jax.Array]:
        fit = refit(
            rows, mask, wbar, y, target, state,
            damping=damping, rounds=rounds, tolerance=tolerance,
        )  # fmt: skip

        def move(fraction: jax.Array) -> tuple[Leaves, jax.Array]:
            step = (fraction * fit.length).astype(y.dtype)
            moved = optax.tree.add_scale(fit.weights, -step, fit.step)
            moved = trees.cast_like(moved, wbar)
            return moved, rows.loss(moved)

        fractions = jnp.asarray(FRACTIONS if first_order else (0.0,), y.dtype)
        trials, losses = jax.lax.map(move, fractions)
        best = _lowest(losses)
        length = fractions[best] * fit.length * rows.batch
        fit = fit._replace(weights=_pick(best, trials), length=length, step=())
        return fit, losses[best]

    # Mapped and not unrolled: the program holds the network and the n x n algebra once.
    supports, swaps = _stack([choose_support(rule) for rule in support])
    fits, losses = jax.lax.map(fit_on, supports)
    # The loss decides: at high sparsity every support is far from the reference, where
    # the local model cannot tell them apart.
    best = _lowest(losses)
    mask, fit, loss, swaps = _pick(best, (supports, fits, losses, swaps))

    thresholded = apply_masks(wbar, mask)
    finite = jnp.isfinite(fit.objective[-1]) & jnp.isfinite(loss)
    finite &= jnp.stack([jnp.all(jnp.isfinite(w)) for w in fit.weights]).all()
    transported = fit.couplings.get("transport_converged", jnp.asarray(True))
    status = jnp.select(
        [~finite, fit.deficient & (damping == 0), ~transported, ~fit.settled],
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
            # 1 follows the mean gradient in full, 0 not at all.
            "first_order": fit.length,
            **fit.couplings,
        },
    )


def _lowest(losses: jax.Array) -> jax.Array:
    return jnp.argmin(jnp.where(jnp.isnan(losses), jnp.inf, losses))


def _stack(several: Sequence[Any]) -> Any:
    """Several trees as one, along a new leading axis."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *several)


def _pick(index: jax.Array, stacked: Any) -> Any:
    """Undo `_stack` for one of the trees, by a traced index."""
    return jax.tree.map(lambda leaf: leaf[index], stacked)
