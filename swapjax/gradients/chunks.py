"""Rows in lanes, visited a chunk at a time: the index arithmetic, in one place.

Rows are laid out in lanes, one per device that examples are sharded over: row i is in
lane ``i // slots``, at slot ``i % slots``. A chunk is the same few consecutive slots of
all lanes, so that every step keeps all devices busy and moves no examples.

All chunks have the same size. Where it does not divide the slots, the last chunk starts
earlier and shares rows with the one before: `Chunks.collect` writes them twice with the
same value, and sums count them once, by `Chunk.fresh`.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

Total = TypeVar("Total")


@dataclasses.dataclass(frozen=True)
class Chunks:
    """How rows are laid out, and how many slots a chunk takes.

    Attributes:
        n: the number of rows. Places from n to ``lanes * slots`` are padding.
        lanes: the number of lanes.
        slots: rows per lane.
        size: slots per chunk, at most `slots`.

    Raises:
        ValueError: for a size outside ``1..slots``, and lanes that cannot hold n rows.
    """

    n: int
    lanes: int
    slots: int
    size: int

    def __post_init__(self) -> None:
        if not 1 <= self.size <= self.slots:
            raise ValueError(f"size must be in 1..{self.slots}, got {self.size}")
        if self.n > self.lanes * self.slots:
            raise ValueError(
                f"n: {self.n} rows do not fit {self.lanes} lanes of {self.slots} slots"
            )

    @property
    def count(self) -> int:
        """The number of chunks."""
        return math.ceil(self.slots / self.size)

    def fold(self, step: Callable[[Total, "Chunk"], Total], total: Total) -> Total:
        """Carry a total over the chunks, from the first to the last.

        Args:
            step: ``step(total, chunk)``, the new total. A sum should count the rows
                that are `Chunk.fresh`, and no others.
            total: what to start with, a pytree of arrays; step keeps their shapes and
                dtypes.
        """

        def body(total: Total, i: jax.Array) -> tuple[Total, None]:
            return step(total, self.chunk(i)), None

        return jax.lax.scan(body, total, jnp.arange(self.count, dtype=jnp.int32))[0]

    def collect(
        self, work: Callable[["Chunk"], Any], row: Any, into: Any = None
    ) -> Any:
        """Gather a result of every row.

        Args:
            work: the results of a chunk's rows, a pytree of arrays
                [lanes * size, ...].
            row: shape and dtype of the result of one row, a pytree of
                ``jax.ShapeDtypeStruct``; results are cast to that dtype.
            into: arrays [n, ...] to write into, where there is no padding; by default
                new ones.

        Returns:
            A pytree of arrays [n, ...].
        """

        def step(out: Any, chunk: Chunk) -> Any:
            return jax.tree.map(chunk.write, out, work(chunk))

        def empty(x: Any, old: jax.Array | None) -> jax.Array:
            shape = (self.lanes, self.slots, *x.shape)
            return jnp.zeros(shape, x.dtype) if old is None else old.reshape(shape)

        into = jax.tree.map(lambda _: None, row) if into is None else into
        start = jax.tree.map(empty, row, into, is_leaf=lambda x: x is None)
        return self.rows(self.fold(step, start))

    def chunk(self, i: jax.Array) -> "Chunk":
        """Return chunk number i, which may be traced."""
        first = i * self.size
        return Chunk(self, jnp.minimum(first, self.slots - self.size), first)

    def rows(self, tree: Any) -> Any:
        """Turn arrays [lanes, slots, ...] into [n, ...], without the padding.

        This may move rows between devices.
        """
        return jax.tree.map(
            lambda x: x.reshape(self.lanes * self.slots, *x.shape[2:])[: self.n], tree
        )

    def in_lanes(self, x: jax.Array) -> jax.Array:
        """Turn the rows of a chunk, [lanes * size, ...], into [lanes, size, ...]."""
        return x.reshape(self.lanes, self.size, *x.shape[1:])


class Chunk(NamedTuple):
    """The slots from `start` on, `chunks.size` of them, of all lanes.

    Attributes:
        chunks: the layout that it is a part of.
        start: its first slot.
        first: its first slot that no earlier chunk contains.
    """

    chunks: Chunks
    start: jax.Array
    first: jax.Array

    @property
    def numbers(self) -> jax.Array:
        """The row numbers, ``int32[lanes * size]``; n and above for padding."""
        lane = self.chunks.slots * jnp.arange(self.chunks.lanes, dtype=jnp.int32)
        slot = self.start + jnp.arange(self.chunks.size, dtype=jnp.int32)
        return (lane[:, None] + slot[None, :]).ravel()

    @property
    def fresh(self) -> jax.Array:
        """Mask rows that no earlier chunk contains and that are not padding.

        Every row is fresh in exactly one chunk.
        """
        slot = self.start + jnp.arange(self.chunks.size)
        new = jnp.tile(slot >= self.first, self.chunks.lanes)
        return new & (self.numbers < self.chunks.n)

    def read(self, data: Any) -> Any:
        """Take the chunk's rows of arrays [lanes, slots, ...], [lanes * size, ...]."""

        def some(x: jax.Array) -> jax.Array:
            x = jax.lax.dynamic_slice_in_dim(x, self.start, self.chunks.size, axis=1)
            return x.reshape(self.chunks.lanes * self.chunks.size, *x.shape[2:])

        return jax.tree.map(some, data)

    def map_rows(self, work: Callable[[jax.Array, Any], Any], rows: Any) -> Any:
        """Apply a function to each row, one slot after the other.

        A function that goes over its row many times then finds it in a CPU's cache.

        Args:
            work: ``work(number, row)``, a new row of the same shapes.
            rows: a pytree of arrays [lanes * size, ...].
        """
        by_slot = lambda x: jnp.moveaxis(self.chunks.in_lanes(x), 0, 1)  # noqa: E731
        together = jax.tree.map(by_slot, (self.numbers, rows))
        found = jax.lax.map(lambda pair: jax.vmap(work)(*pair), together)
        return jax.tree.map(
            lambda x, like: jnp.moveaxis(x, 1, 0).reshape(like.shape), found, rows
        )

    def pick(self, values: jax.Array) -> jax.Array:
        """Take the chunk's entries of an array [..., n]; zero for rows not fresh."""
        some = jnp.take(values, self.numbers, axis=-1, mode="clip")
        fresh = self.fresh.reshape((1,) * (some.ndim - 1) + (-1,))
        return jnp.where(fresh, some, 0)

    def write(
        self, out: jax.Array, part: jax.Array, *lead: jax.Array | int
    ) -> jax.Array:
        """Write the chunk's rows into an array [..., lanes, slots, ...].

        Args:
            out: what to write into.
            part: the rows, [lanes * size, ...], cast to the dtype of out.
            lead: the index into each axis of out that precedes the lanes.
        """
        part = self.chunks.in_lanes(part.astype(out.dtype))
        # All indices must be of one dtype; without jit, loops count in Python's own.
        zero = self.start.dtype.type(0)
        at = [jnp.asarray(i, zero.dtype) for i in lead]
        at += [zero, self.start, *[zero] * (part.ndim - 2)]
        part = part.reshape((1,) * len(lead) + part.shape)
        return jax.lax.dynamic_update_slice(out, part, at)
