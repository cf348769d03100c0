"""Whether a search that is repeated with other seeds finds the same."""

import collections
import itertools
from collections.abc import Sequence
from typing import NamedTuple

from swapjax.search.genotype import Genotype


class Repeats(NamedTuple):
    """How far searches with different seeds agree on an architecture.

    Attributes:
        runs: how many searches.
        distinct: how many different architectures they chose.
        often: how many runs chose the most frequent one.
        same: the share of pairs of runs that chose the same architecture.
        parts: the share of operations, each on its edge, that a pair of runs has in
            common, in the mean over pairs. A run may have chosen other edges, too.
    """

    runs: int
    distinct: int
    often: int
    same: float
    parts: float


def repeats(choices: Sequence[Genotype]) -> Repeats:
    """Compare what several searches have chosen.

    Args:
        choices: an architecture of each search, of the same number of operations.

    Raises:
        ValueError: for fewer than two searches, and architectures with different
            numbers of operations.
    """
    if len(choices) < 2:
        raise ValueError(f"choices must be of 2 searches or more, got {len(choices)}")
    found = [_parts(genotype) for genotype in choices]
    lengths = {len(parts) for parts in found}
    if len(lengths) != 1 or not lengths - {0}:
        raise ValueError(
            "choices must have the same number of operations, 1 or more, got "
            f"{sorted(lengths)}"
        )
    counts = collections.Counter(choices)
    pairs = list(itertools.combinations(found, 2))
    return Repeats(
        len(found),
        len(counts),
        max(counts.values()),
        sum(a == b for a, b in pairs) / len(pairs),
        sum(len(a & b) / len(a) for a, b in pairs) / len(pairs),
    )


def _parts(genotype: Genotype) -> frozenset[tuple]:
    """Return the operations with their kinds of cells and edges."""
    return frozenset((kind, *one) for kind, cell in genotype.cells for one in cell)
