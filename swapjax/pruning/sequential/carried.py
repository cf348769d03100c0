"""Examples on their way through a network, part by part, kept on the host between."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from swapjax.activations.segments import Program, Segment
from swapjax.activations.segments_moments import hand_on

_BYTES = 2**27  # of the largest value of a part, for all rows that run side by side


class Carried:
    """The values of all rows at one cut of a program.

    Args:
        program: that they go through.
        examples: a pytree of arrays [rows * batch, ...].
        rows: how many rows there are, each a batch of the loss.
    """

    def __init__(self, program: Program, examples: Any, rows: int) -> None:
        leaves = [np.asarray(x) for x in jax.tree.leaves(examples)]
        leaves = [x.reshape(rows, -1, *x.shape[1:]) for x in leaves]
        kinds = program.unrolled.kinds.values()
        sizes = [math.prod(x.shape) * x.dtype.itemsize for x in kinds]
        most = max(1, _BYTES // max(1, *sizes))
        size = math.ceil(rows / math.ceil(rows / most))
        self._program = program
        self.chunks: list[dict[int, Any]] = []
        for start in range(0, rows, size):
            some = (x[start : start + size] for x in leaves)
            self.chunks.append(dict(zip(program.unrolled.data, some, strict=True)))

    def go(self, segment: Segment, leaves: Sequence[jax.Array]) -> None:
        """Let all rows go through a part, a few at a time."""
        for i, values in enumerate(self.chunks):
            given = hand_on(segment, leaves, values)
            host = {number: np.asarray(x) for number, x in given.items()}
            self.chunks[i] = segment.after(values, host)

    def losses(self) -> np.ndarray:
        """Tell the loss of each row, after the last part."""
        found = [self._program.returned(values) for values in self.chunks]
        return np.concatenate([jax.tree.leaves(x)[0] for x in found])
