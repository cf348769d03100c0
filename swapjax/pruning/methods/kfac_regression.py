"""The regression that what layers read holds, by a name of its own: the default."""

import dataclasses

from swapjax.pruning.method import Method
from swapjax.pruning.methods.regression import linear_regression
from swapjax.pruning.solvers.conjugate_gradients import Algebra
from swapjax.pruning.solvers.judges import Judge
from swapjax.pruning.solvers.supports import Support


def kfac_regression(
    *,
    damping: float | tuple[float, ...] | None = None,
    kappa: float | tuple[float, ...] | None = None,
    support: Support | tuple[Support, ...] | None = None,
    first_order: bool = True,
    algebra: Algebra = "auto",
    judge: Judge = "loss",
) -> Method:
    """Re-fit on a support, held by what layers read: it resists noisy gradients.

    `linear_regression` with ``ridge="kfac"``, and the default of `prune`. Noise on
    gradients does not touch what a layer reads, so the noisy Fisher is shrunk towards
    a Kronecker-factored one (Martens and Grosse, ICML 2015, arXiv:1503.05671), which
    also chooses what to keep. What single examples lose judges, unless `prune` is told
    otherwise, which wrong labels and images mislead less (`swapjax.gradients.harm`).

    Args:
        damping: lambda, in units of the mean squared norm of the gradient rows; by
            default it follows kappa.
        kappa: how firmly, one value or several, of which the judge takes one.
        support: how to choose what to keep, as in `linear_regression`.
        first_order: whether to follow the mean gradient too, which trains.
        algebra: as in `linear_regression`.
        judge: as in `linear_regression`.

    Returns:
        The method, for `swapjax.prune`. Its details are those of `linear_regression`.

    Raises:
        ValueError: for values out of range, naming the argument.
    """
    made = linear_regression(
        ridge="kfac", damping=damping, kappa=kappa, support=support,
        first_order=first_order, algebra=algebra, judge=judge,
    )  # fmt: skip
    return dataclasses.replace(made, name="kfac-regression")
