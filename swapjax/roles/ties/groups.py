"""Groups: units that are tied alike, as all channels of one layer are."""

import dataclasses
from collections.abc import Sequence

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
    """

    path: str
    leaf: int
    axis: int
    positions: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """Units that are tied alike. Each can be removed without the others.

    Attributes:
        name: path of a leaf that makes them, with the axis where another group is of
            the same leaf.
        units: int [units], their numbers.
        members: all that goes with them.
    """

    name: str
    units: np.ndarray
    members: tuple[Member, ...]

    def __len__(self) -> int:
        return len(self.units)

    def __str__(self) -> str:
        parts = ", ".join(f"{m.path}[axis {m.axis}]" for m in self.members)
        return f"{len(self)} units of {self.name}: {parts}"


def find_groups(
    paths: Sequence[str],
    axes: Sequence[Sequence[Labels]],
    made: frozenset[tuple[int, int]],
) -> tuple[Group, ...]:
    """Group units by the axes of leaves that they lie on.

    Args:
        paths: of the leaves.
        axes: of each leaf the unit of each place along each axis, 0 where it stays.
        made: leaves and axes that products make; a group is named by one, if any.
    """
    places: dict[int, dict[tuple[int, int], np.ndarray]] = {}
    for leaf, labels in enumerate(axes):
        for axis, units in enumerate(labels):
            order = np.argsort(units, kind="stable")
            found, starts = np.unique(units[order], return_index=True)
            for unit, own in zip(found, np.split(order, starts[1:]), strict=True):
                if unit:
                    places.setdefault(int(unit), {})[leaf, axis] = own
    alike: dict[tuple, list[int]] = {}
    for unit, where in places.items():
        key = tuple((*axis, len(positions)) for axis, positions in where.items())
        alike.setdefault(key, []).append(unit)
    groups: list[Group] = []
    axes_of: list[int] = []
    for key, alone in alike.items():
        own_units = sorted(alone)
        members = tuple(
            Member(
                paths[leaf],
                leaf,
                axis,
                np.stack([places[unit][leaf, axis] for unit in own_units]),
            )
            for leaf, axis, _ in key
        )
        makers = [m for m in members if (m.leaf, m.axis) in made]
        first = (makers or members)[0]
        groups.append(Group(first.path, np.asarray(own_units), members))
        axes_of.append(first.axis)
    names = [group.name for group in groups]
    return tuple(
        dataclasses.replace(group, name=f"{group.name}[axis {axis}]")
        if names.count(group.name) > 1
        else group
        for group, axis in zip(groups, axes_of, strict=True)
    )
