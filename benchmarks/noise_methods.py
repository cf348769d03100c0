"""The methods in the study of noise, by the names of its tables."""

from collections.abc import Callable

import swapjax
from swapjax.pruning import Method

METHODS: dict[str, Callable[[], Method]] = {
    "magnitude": swapjax.magnitude,
    "linear-regression": lambda: swapjax.linear_regression(first_order=False),
    "swap": lambda: swapjax.swap(first_order=False),
    "kfac-regression": lambda: swapjax.kfac_regression(first_order=False),
    "kfac-regression, fixed": lambda: swapjax.kfac_regression(
        kappa=4.0, support="magnitude", first_order=False
    ),
    "kfac-regression, left out": lambda: swapjax.kfac_regression(
        judge="loo", first_order=False
    ),
    "kfac-swap": lambda: swapjax.swap(ridge="kfac", first_order=False),
    "layerwise-obs": swapjax.layerwise_obs,
    "chita": swapjax.chita,
    "kfac-chita": lambda: swapjax.chita(ridge="kfac"),
    "woodfisher": swapjax.woodfisher,
    "swap, epsilon 1": lambda: swapjax.swap(epsilon=1.0, first_order=False),
    "swap, exact": lambda: swapjax.swap(target="exact", first_order=False),
    "linear-regression, first order": swapjax.linear_regression,
    "swap, first order": swapjax.swap,
    "kfac-regression, first order": swapjax.kfac_regression,
    "kfac-swap, first order": lambda: swapjax.swap(ridge="kfac"),
}
MAIN_METHODS = (
    *("magnitude", "linear-regression", "swap", "kfac-regression"),
    *("layerwise-obs", "chita"),
    *(
        f"{name}, first order"
        for name in ("linear-regression", "swap", "kfac-regression")
    ),
)
