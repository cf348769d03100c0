"""A vector of many layers, cut so that whatever goes by layer is one operation for all.

Layers of any sizes follow each other in the vector. It is read in tiles of one size;
those that lie within a layer count for it. What is left at the ends of layers is less
than two tiles of each, and is gathered into rows of the same size. Tiles and ends are
two stacks of rows, each with the group of its layer.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from swapjax.core.types import Leaves
from swapjax.sparsity.segments import Segments
from swapjax.sparsity.stacking import Stacking

_TILES = 2**13  # at most: they are constants of the program
_SMALLEST = 16  # entries of a tile


@dataclasses.dataclass(frozen=True, eq=False)
class Pieces:
    """The tiles of a vector, and the ends of its layers.

    Attributes:
        size: the entries of the vector.
        width: those of a tile.
        whole: which tiles lie within a layer, ``bool[tiles]``.
        starts: where each end begins, ``int32[ends]``.
        lengths: the entries of each, at most as many as those of a tile.
        segments: tiles and ends as two leaves, the rows of each its layers, and the
            group of each row. Tiles that are not whole count for group 0.
    """

    size: int
    width: int
    whole: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    segments: Segments

    @classmethod
    def of(cls, segments: Segments) -> "Pieces":
        """Cut a vector whose layers are `Stacking.runs`."""
        (numbers,), runs = segments.stacking.numbers, segments.stacking.runs
        size = sum(runs)
        width = _width(size, len(runs))
        count = size // width
        tiles: list[tuple[int, int, int]] = []  # layer, start, number among tiles
        ends: list[tuple[int, int, int]] = []  # layer, start, entries
        start = 0
        for layer, run in zip(numbers, runs, strict=True):
            end = start + run
            first, last = -(-start // width), end // width
            tiles += [(layer, i * width, i) for i in range(first, last)]
            cuts = [start, first * width, last * width, end]
            if first >= last:
                middle = min(start + width, end)
                cuts = [start, middle, middle, end]
            for a, b in (cuts[:2], cuts[2:]):
                ends += [(layer, a, b - a)] if b > a else []
            start = end
        whole = np.zeros(count, bool)
        whole[[i for *_, i in tiles]] = True
        # Ties go to the layer with the lower number, then to the lower place.
        order = sorted([(*t[:2], True, t[2]) for t in tiles] + [
            (*e[:2], False, i) for i, e in enumerate(ends)
        ])  # fmt: skip
        of_tiles, of_ends = [-1] * count, [0] * len(ends)
        groups: list[int] = []
        for layer, _, is_tile, i in order:
            (of_tiles if is_tile else of_ends)[i] = len(groups)
            groups.append(segments.groups[layer])
        for i in np.flatnonzero(~whole).tolist():
            of_tiles[i] = len(groups)
            groups.append(0)
        stacking = Stacking(((0,), (0,)), (tuple(of_tiles), tuple(of_ends)))
        return cls(
            size,
            width,
            whole,
            np.asarray([a for _, a, _ in ends], np.int32),
            np.asarray([n for *_, n in ends], np.int32),
            Segments(stacking, tuple(groups), segments.total),
        )

    def cut(self, vector: jax.Array) -> Leaves:
        """Cut a vector into tiles, [tiles, width], and ends, [ends, width].

        What is not real is zero.
        """
        tiles = vector[: self.whole.size * self.width]
        tiles = tiles.reshape(self.whole.size, self.width)
        ends = jnp.take(vector, self._places(), mode="clip")
        zero = jnp.zeros((), vector.dtype)
        whole, real = self.real()
        if not self.whole.all():
            tiles = jnp.where(whole, tiles, zero)
        return tiles, jnp.where(real, ends, zero)

    def real(self) -> Leaves:
        """Tell which entries of `cut` stand for one of the vector, to broadcast."""
        along = jnp.arange(self.width, dtype=jnp.int32)
        lengths = jnp.asarray(self.lengths)
        return jnp.asarray(self.whole)[:, None], along < lengths[:, None]

    def count(self, *masks: jax.Array) -> tuple[jax.Array, ...]:
        """Count the True entries of vectors by group, ``int32[groups]`` for each."""
        tiles, ends = zip(*map(self.cut, masks), strict=True)
        return self.segments.count([tiles, ends])

    def join(self, masks: Leaves) -> jax.Array:
        """Undo `cut` of bools."""
        tiles, ends = masks
        whole, real = self.real()
        flat = (tiles & whole).reshape(-1)
        flat = jnp.pad(flat, (0, self.size - flat.size))
        places = jnp.where(real, self._places(), self.size)
        return flat.at[places].set(ends, mode="drop")

    def first_largest(self, keys: jax.Array) -> jax.Array:
        """Mark the first of the largest keys of every group, each of one layer.

        Args:
            keys: a vector of unsigned integers.
        """
        rows, real = self.cut(keys), self.real()
        stacking, total = self.segments.stacking, self.segments.total
        groups = np.asarray(self.segments.groups, np.int32)
        along = jnp.arange(self.width, dtype=jnp.int32)
        tiles = jnp.arange(self.whole.size, dtype=jnp.int32) * self.width
        places = (tiles[:, None] + along, self._places())
        best = stacking.gather([jnp.max(x, axis=1, initial=0) for x in rows])
        most = jnp.zeros(total, best.dtype).at[groups].max(best)
        limits = self.segments.spread(most, rows)
        first = stacking.gather(
            [
                jnp.min(jnp.where((x == t) & r, at, self.size), 1, initial=self.size)
                for x, t, r, at in zip(rows, limits, real, places, strict=True)
            ]
        )
        chosen = jnp.full(total, self.size, jnp.int32).at[groups].min(first)
        return jnp.zeros(self.size, bool).at[chosen].set(True, mode="drop")

    def _places(self) -> jax.Array:
        """Locate the entries of ends in the vector, [ends, width]."""
        along = jnp.arange(self.width, dtype=jnp.int32)
        return jnp.asarray(self.starts)[:, None] + along


def count_groups(
    leaves: Sequence[Sequence[jax.Array]], segments: Segments
) -> tuple[jax.Array, ...]:
    """Count the True entries by group, of leaves or of the vector of them.

    Args:
        leaves: for each leaf, or for the vector, some bool arrays of its shape.
        segments: the groups.

    Returns:
        ``int32[groups]`` for the first arrays of all leaves, the second, and so on.
    """
    if segments.stacking.runs and segments.total > 1:
        return Pieces.of(segments).count(*leaves[0])
    return segments.count(leaves)


def _width(size: int, layers: int) -> int:
    """Choose the entries of a tile: few tiles, and little at the ends of layers."""
    wanted = max(_SMALLEST, size / _TILES, (size / max(1, layers)) ** 0.5)
    return 2 ** round(np.log2(wanted))
