"""What a reshape ties: axes that are merged, split, or both."""

import math
from typing import NamedTuple

import numpy as np

from swapjax.roles.ties.union import Labels, Union

Shape = tuple[int, ...]
_MERGED = (
    "is merged or split with axes that have places of their own, or in parts that do "
    "not divide it"
)


class Reshape(NamedTuple):
    """Some neighbouring axes that become others, of the same number of entries.

    Attributes:
        before: the places along each axis.
        after: likewise.
    """

    before: tuple[Labels, ...]
    after: tuple[Labels, ...]


def blocks(old: Shape, new: Shape) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Match axes before and after: the fewest that have as many entries each.

    Axes of size one are left out.
    """
    found, left = [], [i for i, n in enumerate(old) if n != 1]
    right = [i for i, n in enumerate(new) if n != 1]
    while left and right:
        before, after = [left.pop(0)], [right.pop(0)]
        while (a := math.prod(old[i] for i in before)) != (
            b := math.prod(new[i] for i in after)
        ):
            if a < b and left:
                before.append(left.pop(0))
            elif right:
                after.append(right.pop(0))
            else:
                return [(tuple(range(len(old))), tuple(range(len(new))))]
        found.append((tuple(before), tuple(after)))
    return found


def resolve(reshape: Reshape, union: Union) -> None:
    """Choose which of the factors of some axes has units, and pin the others.

    The first that is not pinned already: the heads of ``[heads, dim]``, which are
    neighbours in ``[heads * dim]``; the channels of ``[height, width, channels]``.
    """
    sides = reshape.before, reshape.after
    shapes = tuple(tuple(map(len, side)) for side in sides)
    factors = _factors(*shapes)
    if factors is None:
        for labels in (*reshape.before, *reshape.after):
            union.pin(labels, _MERGED)
        return
    owners = tuple(_owners(factors, shape) for shape in shapes)
    chosen = next(
        (
            k
            for k in range(len(factors))
            if not any(
                union.is_pinned(side[own[k]])
                for side, own in zip(sides, owners, strict=True)
            )
        ),
        None,
    )
    units = None if chosen is None else union.fresh(factors[chosen])
    for side, own in zip(sides, owners, strict=True):
        for axis, labels in enumerate(side):
            mine = [k for k in range(len(factors)) if own[k] == axis]
            if units is None or chosen not in mine:
                union.pin(labels, _MERGED)
                continue
            place = [1] * len(mine)
            place[mine.index(chosen)] = len(units)
            shape = [factors[k] for k in mine]
            spread = np.broadcast_to(units.reshape(place), shape).reshape(-1)
            union.tie(labels, spread)


def _factors(old: Shape, new: Shape) -> list[int] | None:
    """Cut both shapes into the same factors; None where they do not divide."""
    left, right, found = list(old), list(new), []
    while left and right:
        a, b = left.pop(0), right.pop(0)
        common = min(a, b)
        if common < 1 or a % common or b % common:
            return None
        found.append(common)
        if a > common:
            left.insert(0, a // common)
        if b > common:
            right.insert(0, b // common)
    return found


def _owners(factors: list[int], shape: Shape) -> list[int]:
    """Tell which axis each factor lies in."""
    found, axis, size = [], 0, 1
    for factor in factors:
        found.append(axis)
        size *= factor
        if size == shape[axis]:
            axis, size = axis + 1, 1
    return found
