"""Which places along axes live or die together: numbers, tied into sets."""

import numpy as np

Labels = np.ndarray  # int64[places of an axis], the number of each


class Union:
    """Numbers that are tied to each other, or pinned: then they stay for good.

    The sets are trees of parents with lower numbers. Number 0 is the root of all that
    is pinned.
    """

    def __init__(self) -> None:
        self._parents = np.zeros(1024, np.int64)
        self._count = 1
        self._why: dict[int, str] = {}

    def fresh(self, size: int) -> Labels:
        """Make numbers for the places of an axis, each of its own."""
        first, self._count = self._count, self._count + size
        if self._count > len(self._parents):
            more = np.zeros(max(len(self._parents), size + 1), np.int64)
            self._parents = np.concatenate([self._parents, more])
        made = np.arange(first, self._count)
        self._parents[made] = made
        return made

    def roots(self, labels: Labels) -> Labels:
        """Find the number that stands for the set of each; 0 for what is pinned."""
        found = self._parents[labels]
        while True:
            above = self._parents[found]
            if np.array_equal(above, found):
                return found
            found = above

    def tie(self, first: Labels, second: Labels) -> None:
        """Tie the places of two axes, one to one."""
        if first is second:
            return
        while True:
            a, b = self.roots(first), self.roots(second)
            low, high = np.minimum(a, b), np.maximum(a, b)
            apart = low != high
            if not apart.any():
                return
            for i in np.flatnonzero(apart & (low == 0)):
                held = first[i] if a[i] == 0 else second[i]
                self._why.setdefault(int(high[i]), self._reason(int(held)))
            np.minimum.at(self._parents, high[apart], low[apart])

    def pin(self, labels: Labels, why: str) -> None:
        """Keep places for good.

        Args:
            labels: the places.
            why: after "it": ``"is sorted"``.
        """
        free = np.unique(self.roots(labels))
        free = free[free > 0]
        self._why.update((int(root), why) for root in free)
        self._parents[free] = 0

    def is_pinned(self, labels: Labels) -> bool:
        """Tell whether no place of an axis can go."""
        return not self.roots(labels).any()

    def reasons(self, labels: Labels) -> tuple[str, ...]:
        """Tell why places of an axis stay, each reason once."""
        stay = labels[self.roots(labels) == 0]
        return tuple(dict.fromkeys(self._reason(int(i)) for i in stay))

    def _reason(self, label: int) -> str:
        """Find why a number is pinned: the last of its ancestors was told."""
        while label and self._parents[label]:
            label = int(self._parents[label])
        return self._why.get(label, "stays")
