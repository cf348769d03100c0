"""Groups: units that are tied alike, as all channels of one layer are."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from swapjax.roles.ties.union import Labels


@dataclasses.dataclass(frozen=True, eq=False)
class Member:
    """Where the units of a group lie in one leaf, along one of its axes.

    Attributes:
        path: of the leaf.
        leaf: its number, in the order of ``jax.tree.leaves``.
        axis: of the leaf.
        positions: int [units, places], which places along the axis each unit has.
        makes: whether products of the leaf make the units, as outputs; others read
            them, as inputs, or meet them entry by entry.
    """

    path: str
    leaf: int
    axis: int
    positions: np.ndarray
    makes: bool

    def is_whole(self, side: int) -> bool:
        """Tell whether the units are all places along an axis of this size."""
        return np.array_equal(self.positions[:, 0], np.arange(side))


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """Units that are tied alike. Each can be removed without the others.

    Attributes:
        name: path of a leaf that makes them, with the axis where another group is of
            the same leaf.
        units: int [units], their numbers.
        members: all that goes with them.
        layers: how many layers of a stack, counted by the first axis of each member,
            may each lose other units than the others, but as many; 1 where there is no
            stack, or all are to lose the same.
    """

    name: str
    units: np.ndarray
    members: tuple[Member, ...]
    layers: int = 1

    def __len__(self) -> int:
        return len(self.units)

    def __str__(self) -> str:
        parts = ", ".join(f"{m.path}[axis {m.axis}]" for m in self.members)
        return f"{len(self)} units of {self.name}: {parts}"


def find_groups(
    paths: Sequence[str],
    axes: Sequence[Sequence[Labels]],
    made: Mapping[tuple[int, int], int],
    free: dict[int, int],
) -> tuple[Group, ...]:
    """Group units by the axes of leaves that they lie on.

    Args:
        paths: of the leaves.
        axes: of each leaf the unit of each place along each axis, 0 where it stays.
        made: leaves and axes that products make, and in which order; a group is named
            by the first, if there is one.
        free: the number of layers that may choose for themselves, by unit.
    """
    places: dict[int, dict[tuple[int, int], np.ndarray]] = {}
    for leaf, labels in enumerate(axes):
        for axis, units in enumerate(labels):
            order = np.argsort(units, kind="stable")
            found, starts = np.unique(units[order], return_index=True)
            for unit, own in zip(found, np.split(order, starts)[1:], strict=True):
                if unit:
                    places.setdefault(int(unit), {})[leaf, axis] = own
    alike: dict[tuple, list[int]] = {}
    for unit, where in places.items():
        key = tuple((*axis, len(positions)) for axis, positions in where.items())
        alike.setdefault((key, free.get(unit, 1)), []).append(unit)
    groups: list[Group] = []
    axes_of: list[int] = []
    for (key, layers), alone in alike.items():
        own_units = sorted(alone)
        members = tuple(
            Member(
                paths[leaf],
                leaf,
                axis,
                np.stack([places[unit][leaf, axis] for unit in own_units]),
                (leaf, axis) in made,
            )
            for leaf, axis, _ in key
        )
        first = min(members, key=lambda m: made.get((m.leaf, m.axis), math.inf))
        groups.append(Group(first.path, np.asarray(own_units), members, layers))
        axes_of.append(first.axis)
    names = [group.name for group in groups]
    return tuple(
        dataclasses.replace(group, name=f"{group.name}[axis {axis}]")
        if names.count(group.name) > 1
        else group
        for group, axis in zip(groups, axes_of, strict=True)
    )
