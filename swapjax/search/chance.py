"""What random search finds, exactly: no draws, so no noise of draws."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import gammaln

from swapjax.core.checks import require_count


class Chance(NamedTuple):
    """The accuracy that random search ends at.

    Attributes:
        mean: over all draws of so many architectures.
        std: its standard deviation over draws.
    """

    mean: float
    std: float


def random_search(
    accuracies: ArrayLike, validation: ArrayLike | None = None, *, draws: int = 1
) -> Chance:
    """Tell what the best of some random architectures by validation comes to.

    Architectures are drawn without replacement, all alike. The best of k is the i-th
    of n from below with probability C(i - 1, k - 1) / C(n, k), so that mean and spread
    are sums over the table. Architectures of the same validation accuracy share their
    probability.

    Args:
        accuracies: [n], which are told of the chosen one.
        validation: [n], which choose it; by default the accuracies themselves, which
            then flatter it.
        draws: k, the architectures that are trained; 1 is a random choice.

    Raises:
        ValueError: for vectors that are empty or of two lengths, entries that are not
            finite, and more draws than architectures.
    """
    a = np.asarray(accuracies, np.float64)
    v = a if validation is None else np.asarray(validation, np.float64)
    if a.ndim != 1 or a.shape != v.shape or not len(a):
        raise ValueError(
            "accuracies and validation must be vectors of one length, got shapes "
            f"{a.shape} and {v.shape}"
        )
    if not (np.isfinite(a).all() and np.isfinite(v).all()):
        raise ValueError("accuracies and validation must be finite")
    require_count("draws", draws)
    n = len(a)
    if draws > n:
        raise ValueError(f"draws must be at most the {n} architectures, got {draws}")
    places = np.arange(draws, n + 1)  # from below; the others cannot be the best of k
    odds = np.zeros(n)
    odds[draws - 1 :] = np.exp(
        _log_choose(places - 1, draws - 1) - _log_choose(np.array(n), draws)
    )
    _, group, counts = np.unique(v, return_inverse=True, return_counts=True)
    shared = np.add.reduceat(odds, np.cumsum(counts) - counts) / counts
    weights = shared[group] / shared[group].sum()
    mean = float(weights @ a)
    return Chance(mean, math.sqrt(float(weights @ (a - mean) ** 2)))


def _log_choose(n: np.ndarray, k: int) -> np.ndarray:
    return gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)
