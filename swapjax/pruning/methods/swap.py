"""SWAP and linear regression: two targets of one regression."""

import functools
import math
from typing import Any, Literal

from swapjax.core.checks import require_count
from swapjax.pruning.method import Method, check_dampings
from swapjax.pruning.methods import swap_released as released
from swapjax.pruning.methods.regression import Support, solve
from swapjax.pruning.solvers import targets, transport
from swapjax.pruning.solvers.conjugate_gradients import Algebra

_EITHER: tuple[Support, ...] = ("magnitude", "obd")
_DAMPINGS = (1e-2, 1e-1, 1.0)


def swap(
    *,
    target: Literal["exact", "debiased", "smoothed", "hybrid"] = "hybrid",
    epsilon: float | None = None,
    perplexity: float | None = None,
    rho: float = 0.5,
    damping: float | tuple[float, ...] = _DAMPINGS,
    support: Support | tuple[Support, ...] = _EITHER,
    first_order: bool = True,
    reference: Literal["current", "initial"] = "current",
    iterations: int = 10,
    rounds: int = 20,
    tolerance: float = 1e-4,
    max_sinkhorn: int = transport.DEFAULT_ITERATIONS,
    algebra: Algebra = "auto",
    official: bool = False,
) -> Method:
    """Re-fit on a support so that projections come close to transported ones (SWAP).

    With ``x = G w`` and ``y = G wbar`` the regression of `linear_regression` keeps each
    ``x_i`` near its own ``y_i``. Here examples help each other: a coupling of the two
    clouds tells where each ``x_i`` should go (Sparse Entropic Wasserstein Regression,
    ICLR 2024, there with the coupling alone).

    =============== ==================================================================
    target          x is drawn to
    =============== ==================================================================
    ``"hybrid"``    ``(1 - rho) y + rho yhat``, half its own value, half its transport
    ``"smoothed"``  y, measured by the self-plan of y: residuals of neighbours in y
                    count together
    ``"debiased"``  ``x + yhat - xhat``: the Sinkhorn divergence, no pull at x = y
    ``"exact"``     the transported ``yhat`` alone, as in the paper
    =============== ==================================================================

    The default is the hybrid with epsilon = 0, where transport is a sort. On MLPNet and
    MNIST at sparsity 0.98 (15 stages of 1,000 rows of 16 examples, damping 0.01, no
    first-order step, two seeds):

    =================== ===== =================================================
    percent correct     clean noise of 4 deviations on half of each gradient
    =================== ===== =================================================
    linear regression   88.5  81.1
    hybrid, epsilon 0   88.0  82.4
    hybrid, perplexity 2      82.8, for ten times the time
    smoothed, the same  88.0  80.4
    exact, epsilon 0    79.7
    =================== ===== =================================================

    To forget which example is which costs much. To keep the pairing and add transport
    costs little, and helped there where gradients were noisy. With the defaults, three
    dampings and the first-order step, that gain is gone: 87.3 against 87.5 of linear
    regression from noisy gradients, 92.5 and 92.5 from clean ones, three seeds
    (benchmarks/mlpnet_mnist.py). Losses are taken clean even where gradients are noisy.

    Args:
        target: the variant.
        epsilon: entropic regularisation in units of the squared projections; 0 sorts,
            infinity averages over everything.
        perplexity: takes epsilon from a number of neighbours instead. With neither,
            the hybrid sorts and the others take 2.
        rho: the share of transport in the hybrid, in [0, 1].
        damping: lambda, the ridge, in units of the Fisher of single examples. Of
            several values each stage takes the one with the lowest loss; noise calls
            for more. They share one factorisation; iht takes the first.
        support: how to choose what to keep: ``"magnitude"``, ``"obd"`` (``w^2 F_qq``)
            or ``"iht"`` (gradient steps from magnitude, thresholded). Of several the
            one with the lowest loss is taken.
        first_order: whether to follow the mean gradient too, as far as rows left out
            confirm it and the loss falls. This trains: see `linear_regression`.
        reference: wbar: the weights at the start of the stage, or of the run.
        iterations: the most steps of iht.
        rounds: the most alternations between coupling and weights.
        tolerance: the relative change of the objective at which either stops.
        max_sinkhorn: the most iterations of Sinkhorn.
        algebra: ``"gram"`` solves the n x n system, ``"cg"`` takes conjugate gradients
            on products with G, which need no n x n array; by default what
            `swapjax.pruning.solvers.conjugate_gradients.prefers_cg` expects to be
            faster.
        official: what the released code does instead, for comparisons: see
            `swapjax.pruning.methods.swap_released`. Epsilon is 1 by default; of the
            other arguments only max_sinkhorn counts.

    Returns:
        The method, for `swapjax.prune`.

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
    common = _check_common(
        damping, support, first_order, reference, iterations, rounds, tolerance,
        algebra,
    )  # fmt: skip
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
        solve=functools.partial(solve, target=chosen, **common),
    )


def linear_regression(
    *,
    damping: float | tuple[float, ...] = _DAMPINGS,
    support: Support | tuple[Support, ...] = _EITHER,
    first_order: bool = True,
    reference: Literal["current", "initial"] = "current",
    iterations: int = 10,
    tolerance: float = 1e-4,
    algebra: Algebra = "auto",
    official: bool = False,
) -> Method:
    """Re-fit on a support so that each example's projection stays where it was.

    Minimises ``1/2 |G w - G wbar|^2 + n lambda/2 |w - wbar|^2`` on the support, the
    regression of CHITA (ICML 2023), in closed form through one n x n system.
    It is `swap` with the identity coupling; the arguments are explained there.

    The first-order step shares that system. It trains as much as it prunes: on MLPNet
    and MNIST (15 stages of 1,000 rows of 16 examples) it lifts accuracy at sparsity 0.9
    from 93.6 to 95.9, and with nothing pruned from 94.0 to 95.8. Turn it off to compare
    pruning alone.

    Returns:
        The method, for `swapjax.prune`.

    Raises:
        ValueError: for values out of range, naming the argument.
    """
    common = _check_common(
        damping, support, first_order, reference, iterations, 1, tolerance, algebra
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
        solve=functools.partial(solve, target=identity, **common),
    )


def _check_common(
    damping: float | tuple[float, ...],
    support: Support | tuple[Support, ...],
    first_order: bool,
    reference: str,
    iterations: int,
    rounds: int,
    tolerance: float,
    algebra: Algebra,
) -> dict[str, Any]:
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
