"""Counts of multiplications, by leaf."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


class Count(NamedTuple):
    """Multiplications.

    Attributes:
        macs: all of them, each with its addition.
        left: those whose weight is not zero.
    """

    macs: int = 0
    left: int = 0

    def __add__(self, other: Any) -> "Count":
        """Add up both counts."""
        return Count(self.macs + other.macs, self.left + other.left)


@dataclasses.dataclass(frozen=True)
class Costs:
    """What a program multiplies.

    Attributes:
        leaves: a count for each leaf of params, in flattening order. A product that
            several leaves were joined for is shared among them by their sizes; one of a
            leaf that others scale is that leaf's.
        others: of data with data, as those of queries and keys.
        notes: what the counts leave open, a sentence each.
    """

    leaves: tuple[Count, ...]
    others: Count
    notes: tuple[str, ...]

    @property
    def total(self) -> Count:
        """All of them."""
        return sum(self.leaves, self.others)


class Value(NamedTuple):
    """What is known of a variable of the program.

    Attributes:
        array: its value; None where it depends on data, or is not known.
        owners: the leaves it is made of.
        data: whether it depends on data.
    """

    array: Any = None
    owners: tuple[int, ...] = ()
    data: bool = False


class Tally:
    """Counts by leaf."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self._sizes = sizes
        self._counts = [Count() for _ in sizes]
        self._others = Count()
        self._notes: dict[str, None] = {}

    def note(self, sentence: str) -> None:
        """Note what a count leaves open."""
        self._notes[sentence] = None

    def fresh(self) -> "Tally":
        """Begin another of the same leaves."""
        return Tally(self._sizes)

    def take(self, other: "Tally") -> None:
        """Add what another counted."""
        self._counts = [a + b for a, b in zip(self._counts, other._counts, strict=True)]
        self._others += other._others
        self._notes |= other._notes

    def costs(self) -> Costs:
        """Tell what was counted."""
        return Costs(tuple(self._counts), self._others, tuple(self._notes))

    def largest(self, operands: Sequence[Value]) -> tuple[int, ...]:
        """Choose the owners of a result: those of the operand with most entries."""
        several = [value.owners for value in operands if value.owners]
        sizes = [sum(self._sizes[i] for i in owners) for owners in several]
        return several[int(np.argmax(sizes))] if several else ()

    def add(self, owners: tuple[int, ...], count: Count) -> None:
        """Share a count among leaves, by their sizes."""
        if not owners:
            self._others += count
            return
        total = sum(self._sizes[i] for i in owners) or 1
        done, before = 0, Count()
        for i in owners:
            done += self._sizes[i]
            upto = Count(*(n * done // total for n in count))
            share = Count(upto.macs - before.macs, upto.left - before.left)
            self._counts[i] += share
            before = upto
