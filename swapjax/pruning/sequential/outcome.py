"""What is pruned so far, in memory or in a file."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from swapjax.io.block_file import BlockFile

_KIND = "blocks"
_MORE = 4096  # bytes of a record besides its layers


class Part(NamedTuple):
    """A leaf of a block, or a slice of one, pruned.

    Attributes:
        path: of the leaf.
        row: which slice; None for the whole leaf.
        weights: zero where masks are False.
        masks: their support.
    """

    path: str
    row: int | None
    weights: Any
    masks: Any


class InMemory:
    """Pruned leaves in memory, those of the device on the host meanwhile.

    Args:
        leaves: the prunable leaves of params, by path.

    Attributes:
        records: of the blocks that are done.
    """

    def __init__(self, leaves: Mapping[str, Any]) -> None:
        self.records: tuple[Any, ...] = ()
        self._leaves = leaves
        self._weights = {k: np.empty(x.shape, dtype_of(x)) for k, x in leaves.items()}
        self._masks = {k: np.empty(x.shape, bool) for k, x in leaves.items()}

    def write(self, parts: Sequence[Part], record: Any) -> None:
        """Keep what a block made."""
        for path, row, weights, masks in parts:
            place = ... if row is None else row
            self._weights[path][place] = weights
            self._masks[path][place] = masks
        self.records = (*self.records, record)

    def read(self, path: str, row: int | None) -> np.ndarray:
        """Read pruned weights."""
        found = self._weights[path]
        return found if row is None else found[row]

    def finish(self) -> dict[str, tuple[Any, Any]]:
        """Give weights and masks by path, on the device if the leaf was there."""
        pairs = {k: (self._weights[k], self._masks[k]) for k in self._leaves}
        return {
            k: jax.tree.map(jax.numpy.asarray, pair)
            if isinstance(self._leaves[k], jax.Array)
            else pair
            for k, pair in pairs.items()
        }


class InFile:
    """Pruned leaves in a file, which may be continued; see `BlockFile`.

    Args:
        path: of the file.
        leaves: the prunable leaves of params, by path.
        run: from `resume.fingerprint`.
        blocks: how many there are.
        layers: their names, which records tell.
    """

    def __init__(
        self,
        path: str | Path,
        leaves: Mapping[str, Any],
        run: dict[str, str],
        blocks: int,
        layers: Sequence[str],
    ) -> None:
        weights = {f"params/{k}": (x.shape, dtype_of(x)) for k, x in leaves.items()}
        masks = {f"masks/{k}": (x.shape, bool) for k, x in leaves.items()}
        room = _MORE + sum(len(name.encode()) * 6 + 24 for name in layers)
        self._file = BlockFile(
            path, weights | masks, run, _KIND, blocks=blocks, room=room
        )
        self._leaves = leaves

    @property
    def records(self) -> tuple[Any, ...]:
        """Those of the blocks that are done."""
        return self._file.records

    def write(self, parts: Sequence[Part], record: Any) -> None:
        """Keep what a block made, on the disk when it is done."""
        each = (
            ((f"params/{path}", row, weights), (f"masks/{path}", row, masks))
            for path, row, weights, masks in parts
        )
        self._file.write(itertools.chain.from_iterable(each), record)

    def read(self, path: str, row: int | None) -> np.ndarray:
        """Read pruned weights."""
        return self._file.read(f"params/{path}", row)

    def finish(self) -> dict[str, tuple[Any, Any]]:
        """Give weights and masks by path, mapped from the file."""
        views = self._file.views()
        return {k: (views[f"params/{k}"], views[f"masks/{k}"]) for k in self._leaves}


def dtype_of(leaf: Any) -> np.dtype:
    """Tell the dtype that JAX gives a leaf."""
    return np.dtype(jax.dtypes.canonicalize_dtype(leaf.dtype))
