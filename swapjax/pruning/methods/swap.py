"""SWAP: the regression whose targets optimal transport moves."""

import functools
import math
from typing import Literal

from swapjax.core.checks import require_count
from swapjax.pruning.method import Method
from swapjax.pruning.methods.regression import check_common, solve
from swapjax.pruning.solvers import sinkhorn, targets
from swapjax.pruning.solvers.conjugate_gradients import Algebra
from swapjax.pruning.solvers.judges import Judge
from swapjax.pruning.solvers.settings import Ridge
from swapjax.pruning.solvers.supports import Support


def swap(
    *,
    target: Literal["exact", "debiased", "smoothed", "hybrid"] = "hybrid",
    epsilon: float | None = None,
    perplexity: float | None = None,
    rho: float = 0.5,
    ridge: Ridge = "identity",
    damping: float | tuple[float, ...] | None = None,
    kappa: float | tuple[float, ...] | None = None,
    support: Support | tuple[Support, ...] | None = None,
    first_order: bool = True,
    reference: Literal["current", "initial"] = "current",
    iterations: int = 10,
    rounds: int = 20,
    tolerance: float = 1e-4,
    max_sinkhorn: int = sinkhorn.DEFAULT_ITERATIONS,
    algebra: Algebra = "auto",
    judge: Judge = "loss",
) -> Method:
    """Re-fit on a support so that projections come close to transported ones (SWAP).

    With ``x = G w`` and ``y = G wbar`` the regression of `linear_regression` keeps each
    ``x_i`` near its own ``y_i``. Here examples help each other: a coupling of the two
    clouds tells where each ``x_i`` should go, in the place of ``y_i`` or beside it
    (You and Cheng, ICLR 2024, arXiv:2310.04918).

    =============== ==================================================================
    target          x is drawn to
    =============== ==================================================================
    ``"hybrid"``    ``(1 - rho) y + rho yhat``, half its own value, half its transport
    ``"smoothed"``  y, measured by the self-plan of y: residuals of neighbours in y
                    count together
    ``"debiased"``  ``x + yhat - xhat``: the Sinkhorn divergence, no pull at x = y
    ``"exact"``     the transported ``yhat`` alone: entropic Wasserstein regression
    =============== ==================================================================

    The default is the hybrid with epsilon = 0, where transport is a sort: the pairing
    of examples is kept, and transport added. ``"exact"`` forgets which example is
    which, which costs accuracy. Losses are taken clean even where gradients are noisy.

    Args:
        target: the variant.
        epsilon: entropic regularisation in units of the variance of y; 0 sorts,
            infinity averages over everything.
        perplexity: takes epsilon from a number of neighbours instead. With neither,
            the hybrid sorts and the others take 2.
        rho: the share of transport in the hybrid, in [0, 1].
        ridge: what holds the weights beside lambda, as in `linear_regression`.
        damping: lambda, likewise.
        kappa: of ``ridge="kfac"``, likewise.
        support: how to choose what to keep, likewise.
        first_order: whether to follow the mean gradient too, as far as rows left out
            confirm it and what judges falls. This trains: see `linear_regression`.
        reference: wbar: the weights at the start of the stage, or of the run.
        iterations: the most steps of iht.
        rounds: the most alternations between coupling and weights.
        tolerance: the relative change of the objective at which either stops.
        max_sinkhorn: the most iterations of Sinkhorn.
        algebra: ``"gram"`` solves the n x n system, ``"cg"`` takes conjugate gradients
            on products with G, which need no n x n array; by default what
            `swapjax.pruning.solvers.conjugate_gradients.prefers_cg` expects to be
            faster.
        judge: who chooses among supports, dampings and kappas, as in
            `linear_regression`. Rows left out are compared with their own projections,
            wherever transport would draw them.

    Returns:
        The method, for `swapjax.prune`. Its details are those of `linear_regression`,
        and of the couplings in use, the worst of several: ``epsilon``, in units of the
        variance of y; ``perplexity``, the points of y that a point of x is
        matched with on average; ``sinkhorn_iterations``; ``marginal_error``, the L1
        distance of the plan's sums from what they should be; and
        ``transport_converged``, 1 if that is within the threshold.

    Raises:
        ValueError: for values out of range, naming the argument.
    """
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
    if perplexity is not None and not 1 < perplexity < math.inf:
        raise ValueError(f"perplexity must be more than 1 and finite, got {perplexity}")
    if not 0 <= rho <= 1:
        raise ValueError(f"rho must be in [0, 1], got {rho}")
    require_count("max_sinkhorn", max_sinkhorn)
    common = check_common(
        ridge, damping, kappa, support, first_order, reference, iterations, rounds,
        tolerance, algebra, judge,
    )  # fmt: skip
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
        solve=functools.partial(solve, target=chosen, **common),
        needs_layers="some" if ridge == "kfac" else False,
        criterion="harm" if ridge == "kfac" else "loss",
        needs_shapes=False,
    )
