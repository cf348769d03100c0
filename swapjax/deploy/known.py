"""What is known of a value whatever the data is: entries that are constants.

A value is told by two arrays of its rank, of the numbers and of where they are known.
Axes along which all is the same have size one in them, so that an activation of many
examples and pixels is as small as its channels.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

Shape = tuple[int, ...]
Axes = tuple[int, ...]


class Known(NamedTuple):
    """A value, as far as it does not depend on data.

    Attributes:
        value: numbers, 0 where they are not known; broadcasts to the shape.
        known: bool; broadcasts likewise.
        shape: of the value.
    """

    value: np.ndarray
    known: np.ndarray
    shape: Shape

    @property
    def zero(self) -> np.ndarray:
        """Mark what is known to be zero."""
        return self.known & (self.value == 0)

    @property
    def is_whole(self) -> bool:
        """Tell whether every entry is known."""
        return bool(self.known.all())

    def full(self) -> np.ndarray:
        """Write out the numbers."""
        return np.broadcast_to(self.value, self.shape)

    def along(self, axes: Sequence[int]) -> "Known":
        """Write out all places along some axes."""
        return self.on(lambda x: _spread(x, self.shape, axes), self.shape)

    def on(self, move: Any, shape: Shape) -> "Known":
        """Move numbers, and where they are known, alike."""
        return Known(move(self.value), move(self.known), shape)


def nothing(shape: Shape) -> Known:
    """Know nothing of a value."""
    ones = (1,) * len(shape)
    return Known(np.zeros(ones, np.float32), np.zeros(ones, bool), shape)


def constant(array: Any) -> Known:
    """Know all of an array."""
    value = np.asarray(array)
    if value.dtype.kind not in "biufc":
        value = value.astype(np.float32)  # bfloat16 and the like
    return Known(value, np.ones((1,) * value.ndim, bool), value.shape)


def masked(value: np.ndarray, known: np.ndarray, shape: Shape) -> Known:
    """Keep numbers where they are known."""
    if not known.all():
        value = np.where(known, value, np.zeros((), value.dtype))
    return Known(value, known, shape)


def summed(x: Known, axes: Axes) -> Known:
    """Sum over axes; known where all that is summed is."""
    count = 1
    for axis in axes:
        count *= x.shape[axis] // max(1, x.value.shape[axis])
    known = np.asarray(np.all(x.known, axis=axes))
    shape = tuple(n for i, n in enumerate(x.shape) if i not in axes)
    return masked(x.value.sum(axis=axes) * count, known, shape)


def alike(x: Known, axes: Axes) -> Known:
    """Keep what is the same all along some axes, as one place along each."""
    low = np.min(x.value, axis=axes, keepdims=True)
    high = np.max(x.value, axis=axes, keepdims=True)
    known = np.all(x.known, axis=axes, keepdims=True) & (low == high)
    return masked(low, np.asarray(known), x.shape)


def joined(first: Known, second: Known) -> Known:
    """Know what is known of both, and the same."""
    known = first.known & second.known & (first.value == second.value)
    return masked(first.value, known, first.shape)


def _spread(x: np.ndarray, shape: Shape, axes: Sequence[int]) -> np.ndarray:
    wanted = [shape[i] if i in axes else n for i, n in enumerate(x.shape)]
    return np.broadcast_to(x, wanted)
