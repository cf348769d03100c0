"""Linear regression on a support, and the stage that it shares with SWAP."""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp

from swapjax.core.checks import require_count
from swapjax.core.types import Leaves, Status
from swapjax.pruning.damping import check_ridge
from swapjax.pruning.method import Method, Problem, Solution, rows_of
from swapjax.pruning.solvers import targets
from swapjax.pruning.solvers.candidates import lowest, map_distinct, pick
from swapjax.pruning.solvers.conjugate_gradients import Algebra, prefers_cg
from swapjax.pruning.solvers.judges import Judge, check_judge, named
from swapjax.pruning.solvers.refit import Refit
from swapjax.pruning.solvers.settings import Ridge, every, hold_by, on_support
from swapjax.pruning.solvers.supports import Support, check_support, choose
from swapjax.pruning.solvers.targets import Target
from swapjax.pruning.solvers.trials import try_all, try_unasked
from swapjax.sparsity.budget import Budget
from swapjax.sparsity.masks import apply_masks

DAMPINGS = (1e-4, 1e-3, 1e-2)


def linear_regression(
    *,
    ridge: Ridge = "identity",
    damping: float | tuple[float, ...] | None = None,
    kappa: float | tuple[float, ...] | None = None,
    support: Support | tuple[Support, ...] | None = None,
    first_order: bool = True,
    reference: Literal["current", "initial"] = "current",
    iterations: int = 10,
    tolerance: float = 1e-4,
    algebra: Algebra = "auto",
    judge: Judge = "loss",
) -> Method:
    """Re-fit on a support so that each example's projection stays where it was.

    Minimises ``1/2 |G w - G wbar|^2 + n lambda/2 |w - wbar|^2`` on the support, the
    regression of CHITA (Benbaki et al., ICML 2023, arXiv:2302.14623), in closed form
    through one n x n system. It is `swap` with the identity coupling.

    Args:
        ridge: what holds the weights beside lambda: ``"identity"`` nothing; ``"kfac"``
            besides ``n kappa/2 (w - wbar)^T T (w - wbar)``, where T is made of what
            layers read, which noise on gradients does not touch
            (`swapjax.pruning.solvers.kfac`). A dial: kappa = 0 is the identity, and
            with growing kappa each layer is re-fitted by itself.
        damping: lambda, in units of the mean squared norm of the gradient rows. Of
            several values each stage takes the one with the lowest loss; noise calls
            for more. With the identity they share one factorisation; iht takes the
            first. By default (1e-4, 1e-3, 1e-2), and with ``"kfac"`` kappa times a
            hundredth of the mean of T's diagonal, in each output by itself; all kappas
            share one.
        kappa: of ``"kfac"``, one value or several, tried with every damping; by
            default (0.1, 0.5, 2, 8, 32, 1e4), the last of which is a layer-wise re-fit.
        support: how to choose what to keep: ``"magnitude"``, ``"obd"`` (``w^2 F_qq``),
            with ``ridge="kfac"`` also ``"kfac"`` (``w^2 T_qq``) and ``"obs"`` (what is
            left when weights go one by one, the others of their output re-fitted under
            T, as in `layerwise_obs`, in a stage that removes half of what is left or
            more; by curves of errors where a layer is too large; in other stages, and
            where a layer could not be followed, ``w^2 T_qq``) and ``"layerwise"`` (the
            same with errors in units of what their layer gives, so that no gradient
            chooses), or ``"iht"`` (gradient steps from magnitude, thresholded, under
            the identity). Of several the one with the lowest loss is taken; by default
            magnitude, and obd or, with ``ridge="kfac"``, obs and layerwise. One that
            equals another is not tried again.
        first_order: whether to follow the mean gradient too, as far as rows left out
            confirm it and what judges falls. The step shares the system; it trains as
            much as it prunes. Turn it off to compare pruning alone.
        reference: wbar: the weights at the start of the stage, or of the run.
        iterations: the most steps of iht.
        tolerance: the relative change of the objective at which iht stops.
        algebra: ``"gram"`` solves the n x n system, ``"cg"`` takes conjugate gradients
            on products with G, which need no n x n array; by default what
            `swapjax.pruning.solvers.conjugate_gradients.prefers_cg` expects to be
            faster.
        judge: who chooses among supports, dampings and kappas: ``"loss"``, of the
            stage's examples or of the validation of `swapjax.prune`, with
            ``ridge="kfac"`` the harm, unless its criterion is another; ``"loo"``, the
            error of the projections of rows left out one by one, in closed form;
            ``"gcv"``, generalised cross-validation, where no single row decides; or
            ``"none"``: the first of each, nothing else is tried. With the last three
            the first-order step is followed in the length that rows left out confirm,
            and the n x n system is solved, unless nothing asks for leverages.

    Returns:
        The method, for `swapjax.prune`. Its details are ``support_rule``, which of the
        supports was taken, by its number from 0; ``support_swaps``, the entries that
        iht exchanged; ``loss``, the mean loss of the stage's examples with the weights
        returned, or what else judges them, or ``left_out``, the mean squared error of
        rows left out, where ``"loo"`` or ``"gcv"`` judges; ``damping``, the lambda
        used, in the units of the argument, or kappa times a hundredth of the mean of
        T's diagonal; and ``first_order``, the share of the mean gradient that was
        followed, in [0, 1].
        With ``ridge="kfac"`` also ``kappa``, the one used; ``unfollowed_leaves``, how
        many leaves enter no product that could be followed, so that T is the diagonal
        of the Fisher there; and ``noise_columns``, the share of the rows' energy that
        counts as noise, ``columns`` of `swapjax.gradients.noise_level`.

    Raises:
        ValueError: for values out of range, naming the argument.
    """
    common = check_common(
        ridge, damping, kappa, support, first_order, reference, iterations, 1,
        tolerance, algebra, judge,
    )  # fmt: skip
    identity = targets.none()
    settings = {k: v for k, v in common.items() if k != "rounds"}
    return Method(
        name="linear-regression",
        settings=tuple(settings.items()),
        solve=functools.partial(solve, target=identity, **common),
        needs_layers="some" if ridge == "kfac" else False,
        criterion="harm" if ridge == "kfac" else "loss",
        needs_shapes=False,
    )


def check_common(
    ridge: Ridge,
    damping: float | tuple[float, ...] | None,
    kappa: float | tuple[float, ...] | None,
    support: Support | tuple[Support, ...] | None,
    first_order: bool,
    reference: str,
    iterations: int,
    rounds: int,
    tolerance: float,
    algebra: Algebra,
    judge: Judge,
) -> dict[str, Any]:
    """Check the arguments that `linear_regression` and `swap` share.

    Returns:
        The keyword arguments of `solve`, but for its target.

    Raises:
        ValueError: for values out of range, naming the argument.
    """
    dampings, kappas = check_ridge(ridge, damping, kappa, DAMPINGS)
    rules = check_support(support, kappas is not None)
    if reference not in ("current", "initial"):
        raise ValueError(f"reference must be 'current' or 'initial', got {reference!r}")
    if algebra not in ("auto", "gram", "cg"):
        raise ValueError(f"algebra must be 'auto', 'gram' or 'cg', got {algebra!r}")
    if check_judge(judge, algebra, first_order):
        algebra = "gram"
    for name, value in (("iterations", iterations), ("rounds", rounds)):
        require_count(name, value)
    if not tolerance >= 0:
        raise ValueError(f"tolerance must be 0 or more, got {tolerance}")
    return {
        "damping": dampings,
        **({} if kappas is None else {"kappa": kappas}),
        "support": rules,
        "first_order": first_order,
        "reference": reference,
        "iterations": iterations,
        "rounds": rounds,
        "tolerance": tolerance,
        "algebra": algebra,
        **({} if judge == "loss" else {"judge": judge}),
    }


def solve(
    problem: Problem,
    budget: Budget,
    *,
    target: Target,
    damping: tuple[float, ...] | None,
    support: tuple[Support, ...],
    first_order: bool,
    reference: str,
    iterations: int,
    rounds: int,
    tolerance: float,
    algebra: Algebra,
    kappa: tuple[float, ...] | None = None,
    judge: Judge = "loss",
) -> Solution:
    """Prune by regression on a target; the arguments are those of `swap`, checked.

    Every support is factorised once. On each, every damping is tried, and from every
    re-fit a few lengths of the first-order step; the weights with the lowest loss are
    the answer, or those that another judge takes.

    Raises:
        ValueError: for a problem without rows.
    """
    rows = rows_of(problem)
    wbar = problem.weights if reference == "current" else problem.initial
    y = rows.project(wbar)
    state, settings = target.prepare(y), every(damping, kappa, y.dtype)
    held = None if kappa is None else hold_by(problem, rows, y.dtype)
    # What shares a system is told apart by one of the two alone.
    shared = kappa if damping is None else damping if kappa is None else None
    if judge == "none":
        support, settings = support[:1], jax.tree.map(lambda x: x[:1], settings)
    least = None if shared is None else min(shared)

    if algebra == "auto":
        count = len(jax.tree.leaves(settings)[0])
        solves = count * (rounds if target.moves else 1)
        grams = count if least is None else 1
        algebra = "cg" if prefers_cg(rows, wbar, solves, grams) else "gram"

    def fit_on(mask: Leaves) -> tuple[Refit, jax.Array, jax.Array]:
        plain = apply_masks(problem.weights, mask)
        make = on_support(
            rows, mask, wbar, y, target, state, settings,
            held=held, with_products=algebra == "cg", first_order=first_order,
            least=least, rounds=rounds, tolerance=tolerance, judge=judge,
        )  # fmt: skip
        attempt = try_all if judge == "loss" else try_unasked
        return attempt(problem, plain, make, settings, first_order)

    supports, swaps = choose(
        problem, rows, budget, support, held,
        wbar=wbar, y=y, target=target, state=state, iterations=iterations,
        tolerance=tolerance, damping=(damping or DAMPINGS)[0],
    )  # fmt: skip
    # Mapped and not unrolled: the program holds the network and the n x n algebra once.
    fits, values, without = map_distinct(fit_on, supports)
    # By default the loss decides: at high sparsity every support is far from the
    # reference, where the local model cannot tell them apart, and noise calls for more
    # damping. That of weights that are not re-fitted counts too: `prune` takes them if
    # they do better.
    best = lowest(jnp.fmin(values, without))
    mask, fit, value, swaps = pick(best, (supports, fits, values, swaps))
    details = {
        "support_rule": best,
        "support_swaps": swaps,
        **named(judge, value),
        "damping": fit.damping,
        # 1 follows the mean gradient in full, 0 not at all.
        "first_order": fit.length,
        **fit.couplings,
    }
    if held is not None:
        details.update(held.told())
    plain = apply_masks(problem.weights, mask)
    return _conclude(fit, value, mask, plain, details)


def _conclude(
    fit: Refit,
    value: jax.Array,
    mask: Leaves,
    thresholded: Leaves,
    details: dict[str, jax.Array],
) -> Solution:
    """Make a solution of a fit, or of the thresholded weights where it is lost.

    Args:
        fit: the best one.
        value: by which it is.
        mask: its support.
        thresholded: the weights before the stage, on it.
        details: what to tell.
    """
    finite = jnp.isfinite(fit.objective[-1]) & jnp.isfinite(value)
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
