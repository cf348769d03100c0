"""Whether a search that is repeated with other seeds finds the same."""

import collections
import itertools
from collections.abc import Hashable, Sequence
from typing import NamedTuple


class Repeats(NamedTuple):
    """How far searches with different seeds agree on an architecture.

    Attributes:
        runs: how many searches.
        distinct: how many different architectures they chose.
        often: how many runs chose the most frequent one.
        same: the share of pairs of runs that chose the same architecture.
        parts: the share of parts, edges for instance, on which a pair of runs agrees,
            in the mean over pairs.
    """

    runs: int
    distinct: int
    often: int
    same: float
    parts: float


def repeats(choices: Sequence[Sequence[Hashable]]) -> Repeats:
    """Compare what several searches have chosen.

    Args:
        choices: a sequence for each search, of the same length: its operation on every
            edge, or whatever else makes an architecture.

    Raises:
        ValueError: for fewer than two searches, and architectures with different
            numbers of parts.
    """
    found = [tuple(choice) for choice in choices]
    if len(found) < 2:
        raise ValueError(f"choices must be of 2 searches or more, got {len(found)}")
    lengths = {len(choice) for choice in found}
    if len(lengths) != 1 or not lengths - {0}:
        raise ValueError(
            "choices must have the same number of parts, 1 or more, got "
            f"{sorted(lengths)}"
        )
    counts = collections.Counter(found)
    pairs = list(itertools.combinations(found, 2))
    alike = [sum(x == y for x, y in zip(a, b, strict=True)) / len(a) for a, b in pairs]
    return Repeats(
        len(found),
        len(counts),
        max(counts.values()),
        sum(a == b for a, b in pairs) / len(pairs),
        sum(alike) / len(pairs),
    )
