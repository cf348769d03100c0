"""How well scores rank architectures whose accuracies are known."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from swapjax.core.checks import require_count, require_fraction

_Statistic = Callable[[np.ndarray, np.ndarray], float]


class Estimate(NamedTuple):
    """A statistic of a sample of architectures, and how sure it is.

    Attributes:
        value: of all architectures that were given.
        low: the lower end of its bootstrap interval.
        high: the upper end.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


class Agreement(NamedTuple):
    """How far scores agree with accuracies.

    Attributes:
        cells: how many architectures were ranked.
        spearman: the correlation of ranks.
        kendall: tau-b, the surplus of pairs in the same order.
        ndcg: normalised discounted cumulative gain of the best by score.
        chosen: the accuracy of the architecture with the highest score; the mean where
            several share it.
        regret: the highest accuracy less that of the chosen.
        percentile: the percentage of architectures that the chosen surpasses, those of
            the same accuracy counted half.
    """

    cells: int
    spearman: Estimate
    kendall: Estimate
    ndcg: Estimate
    chosen: float
    regret: float
    percentile: float


def evaluate(
    scores: ArrayLike,
    accuracies: ArrayLike,
    *,
    top: float = 0.1,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Agreement:
    """Judge scores by the accuracies of the same architectures.

    Intervals are percentiles of the bootstrap over architectures, scores and
    accuracies drawn in pairs. They tell what another sample of architectures would
    give, not what other seeds of a score would.

    Args:
        scores: [n], the higher the better the architecture is said to be.
        accuracies: [n], of the same architectures, in any unit.
        top: the part of the architectures, the best by score, that nDCG looks at.
        resamples: draws of the bootstrap; 0 for none, and intervals of NaN.
        confidence: the share of draws inside an interval.
        seed: of the draws.

    Raises:
        ValueError: for other than two vectors of one length of at least 2, entries that
            are not finite, scores or accuracies that are all the same and rank nothing,
            and options out of range.
    """
    s, a = _pairs(scores, accuracies)
    require_fraction("top", top, zero=False, one=True)
    require_count("resamples", resamples, 0)
    require_fraction("confidence", confidence, zero=False)
    at = math.ceil(top * len(s))
    statistics: tuple[_Statistic, ...] = (
        spearman, kendall, lambda s, a: ndcg(s, a, at=at),
    )  # fmt: skip
    rng, drawn = np.random.default_rng(seed), np.empty((len(statistics), resamples))
    for i in range(resamples):
        rows = rng.integers(len(s), size=len(s))
        drawn[:, i] = [statistic(s[rows], a[rows]) for statistic in statistics]
    rank, pairs, gain = (
        _estimate(statistic(s, a), draws, confidence)
        for statistic, draws in zip(statistics, drawn, strict=True)
    )
    chosen = float(a[s == s.max()].mean())
    regret = float(a.max()) - chosen
    share = percentile(chosen, a)
    return Agreement(len(s), rank, pairs, gain, chosen, regret, share)


def spearman(scores: np.ndarray, accuracies: np.ndarray) -> float:
    """Correlate ranks, equal entries sharing the mean of theirs; NaN of constants."""
    from scipy import stats  # half a second, which no command needs to start

    a, b = (stats.rankdata(x) - (len(x) + 1) / 2 for x in (scores, accuracies))
    length = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / length if length else math.nan


def kendall(scores: np.ndarray, accuracies: np.ndarray) -> float:
    """Compare all pairs, tau-b: those tied in either do not count; NaN of constants."""
    from scipy import stats

    return float(stats.kendalltau(scores, accuracies).statistic)


def ndcg(scores: np.ndarray, accuracies: np.ndarray, *, at: int) -> float:
    """Compare the gain of the best by score with that of the best there are.

    The gain of an architecture is its accuracy on the way from the lowest to the
    highest, over the binary logarithm of 1 plus its place; equal scores share their
    places.

    Args:
        scores: [n].
        accuracies: [n].
        at: how many places count.

    Returns:
        From 0 to 1; NaN where all accuracies are the same.
    """
    gains = accuracies - accuracies.min()
    discounts = np.zeros(len(scores))
    discounts[:at] = 1 / np.log2(np.arange(min(at, len(scores))) + 2)
    best = float(np.sort(gains)[::-1] @ discounts)
    if not best:
        return math.nan
    _, group, counts = np.unique(-scores, return_inverse=True, return_counts=True)
    shared = np.add.reduceat(discounts, np.cumsum(counts) - counts) / counts
    return float(gains @ shared[group]) / best


def percentile(accuracy: float, accuracies: ArrayLike) -> float:
    """Tell the percentage of accuracies below one, those equal to it counted half."""
    from scipy import stats

    return float(stats.percentileofscore(np.asarray(accuracies), accuracy, "mean"))


def _pairs(scores: ArrayLike, accuracies: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    s, a = np.asarray(scores, np.float64), np.asarray(accuracies, np.float64)
    if s.ndim != 1 or s.shape != a.shape or len(s) < 2:
        raise ValueError(
            "scores and accuracies must be two vectors of one length, 2 or more, got "
            f"shapes {s.shape} and {a.shape}"
        )
    for name, values in (("scores", s), ("accuracies", a)):
        bad = int(np.sum(~np.isfinite(values)))
        if bad:
            raise ValueError(
                f"{name} must be finite, got {bad} of {len(s)} that are not"
            )
        if values.min() == values.max():
            raise ValueError(
                f"{name} must differ to rank anything, got {values[0]:g} for all "
                f"{len(s)}"
            )
    return s, a


def _estimate(value: float, draws: np.ndarray, confidence: float) -> Estimate:
    left = draws[np.isfinite(draws)]  # a draw may hold one architecture alone
    if not left.size:
        return Estimate(value, math.nan, math.nan)
    low, high = np.quantile(left, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(value, float(low), float(high))
