"""Choices and scores beside sizes and random search, which any has to beat."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from swapjax.search.chance import random_search
from swapjax.search.genotype import Genotype
from swapjax.search.genotypes import Genotypes, Scores
from swapjax.search.judgement import Agreement, evaluate, percentile
from swapjax.search.tables import Table

DRAWS = (3, 10, 100)
SIZES = ("params", "flops")


class Place(NamedTuple):
    """Where a choice stands among the architectures of a table.

    Attributes:
        cells: how many of the choices are in the table; 0 for random search, whose
            mean is exact.
        accuracy: in percent; the mean over choices.
        std: its standard deviation over choices, or over draws of random search; NaN
            of a single choice.
        percentile: the percentage of architectures that a choice surpasses, in the
            mean; NaN for random search.
        regret: the best accuracy of the table less the choice's, in the mean.
    """

    cells: int
    accuracy: float
    std: float
    percentile: float
    regret: float


def place(
    table: Table,
    choices: Mapping[str, Sequence[Genotype]],
    *,
    draws: Sequence[int] = DRAWS,
) -> dict[str, Place]:
    """Place what searches chose beside what is chosen without any.

    Besides the choices: the largest in params and in flops, where the table tells them
    (`with_sizes` sees to that), a random architecture, the best of
    some random ones by validation accuracy (by the accuracy itself where the table has
    no other), and the best there is.

    Args:
        table: of accuracies.
        choices: of each search, one architecture a seed; those that are not in the
            table are left out.
        draws: how many random architectures a search trains; those above the number
            there are in the table are left out.
    """
    placed = {
        name: _place(table, [table.row(g) for g in genotypes if table.has(g)])
        for name, genotypes in choices.items()
    }
    for name, values in _sizes(table).items():
        placed[f"most {name}"] = _place(table, np.flatnonzero(values == values.max()))
    for count in (1, *(count for count in draws if count <= len(table))):
        chance = random_search(table.accuracy, table.validation, draws=count)
        name = "random" if count == 1 else f"best of {count} random"
        regret = float(table.accuracy.max()) - chance.mean
        placed[name] = Place(0, chance.mean, chance.std, np.nan, regret)
    placed["best"] = _place(table, [int(table.accuracy.argmax())])
    return placed


def rank(
    table: Table,
    scores: Mapping[str, np.ndarray],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Agreement]:
    """Judge scores of all architectures of a table beside their sizes.

    Args:
        table: of accuracies, and of params and flops (`with_sizes` sees to that).
        scores: float[n] by name.
        resamples: as for `evaluate`.
        seed: as for `evaluate`, so that all meet the same draws.

    Raises:
        ValueError: as `evaluate` does, naming the score.
    """
    found = {}
    for name, values in {**scores, **_sizes(table)}.items():
        try:
            found[name] = evaluate(
                values, table.accuracy, resamples=resamples, seed=seed
            )
        except ValueError as e:
            raise ValueError(f"{name}: {e}") from None
    return found


def add_scores(
    space: Genotypes, scores: Scores, genotypes: Sequence[Genotype]
) -> np.ndarray:
    """Score whole architectures by the sum over their operations.

    Args:
        space: of all of them.
        scores: for each kind of cell numbers [edges, ops], of a supernet.
        genotypes: n of them.

    Returns:
        float64[n].

    Raises:
        ValueError: for genotypes that are not of the space.
    """
    totals = np.zeros(len(genotypes))
    rows = [space.encode(genotype) for genotype in genotypes]
    for kind in space.kinds if rows else ():
        table = np.asarray(scores[kind], np.float64)
        chosen = np.array([row[kind] for row in rows])  # -1 where there is no edge
        there = np.where(chosen < 0, 0, table[np.arange(len(table)), chosen])
        totals += there.sum(1)
    return totals


def _sizes(table: Table) -> dict[str, np.ndarray]:
    """Return the sizes that the table tells, and that tell architectures apart."""
    told = {name: table.columns[name] for name in SIZES if name in table.columns}
    return {name: values for name, values in told.items() if np.ptp(values)}


def _place(table: Table, rows: Sequence[int] | np.ndarray) -> Place:
    if not len(rows):
        return Place(0, np.nan, np.nan, np.nan, np.nan)
    found = table.accuracy[np.asarray(rows)]
    shares = [percentile(accuracy, table.accuracy) for accuracy in found]
    std = float(found.std(ddof=1)) if len(found) > 1 else np.nan
    mean, regret = float(found.mean()), float(table.accuracy.max() - found.mean())
    return Place(len(found), mean, std, float(np.mean(shares)), regret)
