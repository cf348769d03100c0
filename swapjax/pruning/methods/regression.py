"""Linear regression on a support, and the stage that it shares with SWAP."""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp

from swapjax.core.checks import require_count
from swapjax.core.types import Leaves, Status
from swapjax.gradients.operator import GradientOperator
from swapjax.pruning.damping import check_dampings
from swapjax.pruning.method import Method, Problem, Solution, rows_of
from swapjax.pruning.solvers import conjugate_gradients, targets
from swapjax.pruning.solvers.candidates import lowest, pick, stack
from swapjax.pruning.solvers.conjugate_gradients import Algebra, prefers_cg
from swapjax.pruning.solvers.hard_thresholding import iht
from swapjax.pruning.solvers.refit import Refit, prepare, refit
from swapjax.pruning.solvers.targets import Target
from swapjax.pruning.solvers.trials import try_all
from swapjax.sparsity import scores
from swapjax.sparsity.budget import Budget, select
from swapjax.sparsity.masks import apply_masks

Support = Literal["magnitude", "obd", "iht"]

SUPPORTS: tuple[Support, ...] = ("magnitude", "obd")
DAMPINGS = (1e-4, 1e-3, 1e-2)


def linear_regression(
    *,
    damping: float | tuple[float, ...] = DAMPINGS,
    support: Support | tuple[Support, ...] = SUPPORTS,
    first_order: bool = True,
    reference: Literal["current", "initial"] = "current",
    iterations: int = 10,
    tolerance: float = 1e-4,
    algebra: Algebra = "auto",
) -> Method:
    """Re-fit on a support so that each example's projection stays where it was.

    Minimises ``1/2 |G w - G wbar|^2 + n lambda/2 |w - wbar|^2`` on the support, the
    regression of CHITA (Benbaki et al., ICML 2023, arXiv:2302.14623), in closed form
    through one n x n system. It is `swap` with the identity coupling.

    Args:
        damping: lambda, the ridge, in units of the mean squared norm of the gradient
            rows. Of several values each stage takes the one with the lowest loss;
            noise calls for more. They share one factorisation; iht takes the first.
        support: how to choose what to keep: ``"magnitude"``, ``"obd"`` (``w^2 F_qq``)
            or ``"iht"`` (gradient steps from magnitude, thresholded). Of several the
            one with the lowest loss is taken.
        first_order: whether to follow the mean gradient too, as far as rows left out
            confirm it and the loss falls. The step shares the system; it trains as
            much as it prunes. Turn it off to compare pruning alone.
        reference: wbar: the weights at the start of the stage, or of the run.
        iterations: the most steps of iht.
        tolerance: the relative change of the objective at which iht stops.
        algebra: ``"gram"`` solves the n x n system, ``"cg"`` takes conjugate gradients
            on products with G, which need no n x n array; by default what
            `swapjax.pruning.solvers.conjugate_gradients.prefers_cg` expects to be
            faster.

    Returns:
        The method, for `swapjax.prune`. Its details are ``support_rule``, which of the
        supports was taken, by its number from 0; ``support_swaps``, the entries that
        iht exchanged; ``loss``, the mean loss of the stage's examples with the weights
        returned; ``damping``, the lambda used, in the units of the argument; and
        ``first_order``, the share of the mean gradient that was followed, in [0, 1].

    Raises:
        ValueError: for values out of range, naming the argument.
    """
    common = check_common(
        damping, support, first_order, reference, iterations, 1, tolerance, algebra
    )
    identity = targets.make(
        "identity", epsilon=0.0, perplexity=None, rho=0.0, max_iterations=1
    )
    settings = {k: v for k, v in common.items() if k != "rounds"}
    return Method(
        name="linear-regression",
        settings=tuple(settings.items()),
        solve=functools.partial(solve, target=identity, **common),
        needs_shapes=False,
    )


def check_common(
    damping: float | tuple[float, ...],
    support: Support | tuple[Support, ...],
    first_order: bool,
    reference: str,
    iterations: int,
    rounds: int,
    tolerance: float,
    algebra: Algebra,
) -> dict[str, Any]:
    """Check the arguments that `linear_regression` and `swap` share.

    Returns:
        The keyword arguments of `solve`, but for its target.

    Raises:
        ValueError: for values out of range, naming the argument.
    """
    dampings = check_dampings(damping)
    rules = (support,) if isinstance(support, str) else tuple(support)
    if not rules or set(rules) - {"magnitude", "obd", "iht"}:
        raise ValueError(
            "support must be of 'magnitude', 'obd' and 'iht', one or several, got "
            f"{support!r}"
        )
    if reference not in ("current", "initial"):
        raise ValueError(f"reference must be 'current' or 'initial', got {reference!r}")
    if algebra not in ("auto", "gram", "cg"):
        raise ValueError(f"algebra must be 'auto', 'gram' or 'cg', got {algebra!r}")
    for name, value in (("iterations", iterations), ("rounds", rounds)):
        require_count(name, value)
    if not tolerance >= 0:
        raise ValueError(f"tolerance must be 0 or more, got {tolerance}")
    return {
        "damping": dampings,
        "support": rules,
        "first_order": first_order,
        "reference": reference,
        "iterations": iterations,
        "rounds": rounds,
        "tolerance": tolerance,
        "algebra": algebra,
    }


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
    dampings, state = jnp.asarray(damping, y.dtype), target.prepare(y)

    def choose_support(rule: Support) -> tuple[Leaves, jax.Array]:
        mask = select(_rank(problem, rows, rule), budget, problem.within)
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
        plain = apply_masks(problem.weights, mask)
        if algebra == "cg":
            make = lambda lam, bend: conjugate_gradients.refit(  # noqa: E731
                rows, mask, wbar, y, target, state, damping=lam, bend=bend, **limits
            )
        else:
            ground = prepare(rows, mask, wbar, y, target, state, min(damping))
            make = lambda lam, bend: refit(  # noqa: E731
                rows, ground, y, target, damping=lam, bend=bend, **limits
            )
        return try_all(problem, plain, make, dampings, first_order)

    # Mapped and not unrolled: the program holds the network and the n x n algebra once.
    supports, swaps = stack([choose_support(rule) for rule in support])
    fits, losses, without = jax.lax.map(fit_on, supports)
    # The loss decides: at high sparsity every support is far from the reference, where
    # the local model cannot tell them apart, and noise calls for more damping. That of
    # weights that are not re-fitted counts too: `prune` takes them if they do better.
    best = lowest(jnp.fmin(losses, without))
    mask, fit, loss, swaps = pick(best, (supports, fits, losses, swaps))
    details = {
        "support_rule": best,
        "support_swaps": swaps,
        "loss": loss,
        "damping": fit.damping,
        # 1 follows the mean gradient in full, 0 not at all.
        "first_order": fit.length,
        **fit.couplings,
    }
    plain = apply_masks(problem.weights, mask)
    return _conclude(fit, mask, plain, details)


def _rank(problem: Problem, rows: GradientOperator, rule: Support) -> Leaves:
    if rule == "obd":
        return scores.fisher_diagonal(problem.weights, rows.mean_squares())
    return scores.magnitude(problem.weights)


def _conclude(
    fit: Refit,
    mask: Leaves,
    thresholded: Leaves,
    details: dict[str, jax.Array],
) -> Solution:
    """Make a solution of a fit, or of the thresholded weights where it is lost.

    Args:
        fit: the best one.
        mask: its support.
        thresholded: the weights before the stage, on it.
        details: what to tell.
    """
    finite = jnp.isfinite(fit.objective[-1]) & jnp.isfinite(details["loss"])
    finite &= jnp.stack([jnp.all(jnp.isfinite(w)) for w in fit.weights]).all()
    transported = fit.couplings.get("transport_converged", jnp.asarray(True))
    status = jnp.select(
        [
            ~finite,
            fit.deficient & (fit.damping == 0),
            fit.raised,
            ~transported,
            ~fit.settled,
        ],
        [
            Status.NOT_FINITE,
            Status.RANK_DEFICIENT,
            Status.DAMPED,
            Status.TRANSPORT_NOT_CONVERGED,
            Status.ITERATION_LIMIT,
        ],
        Status.CONVERGED,
    )
    return Solution(
        weights=jax.tree.map(
            lambda new, old: jnp.where(finite, new, old.astype(new.dtype)),
            fit.weights,
            thresholded,
        ),
        masks=mask,
        objective=fit.objective,
        iterations=fit.rounds,
        status=status.astype(jnp.int32),
        details=details,
    )
