"""Channels of several layers that are tied to each other."""

import dataclasses

import numpy as np

from swapjax.roles.ties import Ties
from swapjax.sparsity.cuts import Cut, along
from swapjax.sparsity.layout import Layout


@dataclasses.dataclass(frozen=True)
class ChannelGroups:
    """Which leaves make the channels of a group, and which read them. Static.

    Attributes:
        makers: pairs of a path and the name of the group.
        readers: path, axis, how many stretches of the axis number all channels, one
            after the other, and the name of the group.
    """

    makers: tuple[tuple[str, str], ...]
    readers: tuple[tuple[str, int, int, str], ...]

    @classmethod
    def of(cls, ties: Ties) -> "ChannelGroups":
        """Take the groups whose units are whole axes of the leaves that make them.

        Raises:
            ValueError: for other than `swapjax.find_ties` returns.
        """
        if not isinstance(ties, Ties):
            raise ValueError(
                f"groups must be what swapjax.find_ties returns, got {ties!r}"
            )
        makers, readers = [], []
        for group in ties.groups:
            own = [
                m for m in group.members
                if m.makes and m.is_whole(ties.shapes[m.leaf][m.axis])
            ]  # fmt: skip
            makers += [(m.path, group.name) for m in own]
            for m in group.members if own else ():
                side = ties.shapes[m.leaf][m.axis]
                runs = side // len(group)
                order = m.positions.T.reshape(-1)
                if not m.makes and np.array_equal(order, np.arange(side)):
                    readers.append((m.path, m.axis, runs, group.name))
        return cls(tuple(makers), tuple(readers))

    def module(self, path: str) -> str:
        """Find the group of a leaf that makes channels; its path, if it has none."""
        return dict(self.makers).get(path, path)

    def reads(self, layout: Layout) -> tuple[tuple[int, str, Cut], ...]:
        """Cut leaves of a layout into the channels that they read."""
        found = []
        for path, axis, runs, name in self.readers:
            if path not in layout.paths:
                continue
            leaf = layout.paths.index(path)
            cut = along(layout.shapes[leaf], layout.roles[leaf].stack, {axis: runs})
            if runs > 1:
                cut = cut._replace(runs=((axis, runs),))
            found.append((leaf, name, cut))
        return tuple(found)
