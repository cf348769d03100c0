"""How a leaf falls into units."""

from typing import NamedTuple

Shape = tuple[int, ...]


class Cut(NamedTuple):
    """How a leaf falls into units.

    Attributes:
        tile: the entries of a unit along each axis.
        axes: those that number units, in order; the others are those of its stack, or
            lie within a unit.
        runs: in how many stretches, one after the other, an axis numbers all units: 1,
            unless it is listed here.
        place: of a leaf that lies in one unit of several as a whole, the number of that
            unit, and how many there are.
    """

    tile: Shape
    axes: tuple[int, ...]
    runs: tuple[tuple[int, int], ...] = ()
    place: tuple[int, int] | None = None


def along(shape: Shape, stack: tuple[int, ...], sizes: dict[int, int]) -> Cut:
    """Cut a leaf along some axes; a unit has all that lies along the others."""
    tile = tuple(
        1 if i in stack else sizes.get(i, side) for i, side in enumerate(shape)
    )
    return Cut(tile, tuple(sorted(sizes)))
