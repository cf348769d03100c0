"""G as a recipe: every product is a forward or a reverse pass over the data.

Whatever n is, no array but n x n ones is larger than twice params or half a GiB, one
chunk of rows, and the activations of one span of examples.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from swapjax.core import trees
from swapjax.core.types import Leaves, LossFn, Params
from swapjax.gradients import products
from swapjax.gradients.operator import Corruption
from swapjax.sparsity import kept_index
from swapjax.sparsity.layout import Layout

_GRAM_ENTRIES = 2**27  # of columns of a Gram matrix at a time, half a GiB, at least
_COLUMNS = 2**13  # of those, gathered and multiplied at once
_HIGHEST = jax.lax.Precision.HIGHEST


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["params", "data", "key"],
    meta_fields=[
        "n", "loss_fn", "layout", "corruption", "dtype", "chunk", "span"
    ],
)  # fmt: skip
@dataclasses.dataclass(frozen=True)
class MatrixFreeRows:
    """G as a recipe: products are forward and reverse passes over some rows at a time.

    Rows lie in lanes, one a device that data is sharded over; every step takes the same
    slots of all lanes, so that it keeps all devices busy and moves no examples.

    Attributes:
        params: the weights at which gradients are taken.
        data: a pytree of arrays [lanes, slots, b, ...]: rows of b examples. Row i lies
            in lane ``i // slots``; what is beyond row n fills the last lane up.
        key: seeds the corruption; row i draws from ``fold_in(key, i)``, so that every
            product sees the same corrupted rows.
        n: the number of rows.
        loss_fn: ``loss_fn(params, batch)``, the mean loss of a batch.
        layout: the prunable leaves of params.
        corruption: what happens to each row, or None. With one, the products form
            a chunk of rows each time, since noise has no forward mode.
        dtype: what rows are rounded to before products take them, or None for the
            dtype that products are accumulated in.
        chunk: slots of which rows are formed at a time.
        span: slots of which passes take the activations at a time.
    """

    params: Params
    data: Any
    key: jax.Array
    n: int
    loss_fn: LossFn
    layout: Layout
    corruption: Corruption | None
    dtype: Any
    chunk: int
    span: int

    @property
    def batch(self) -> int:
        """The number of examples averaged into a row."""
        return jax.tree.leaves(self.data)[0].shape[2]

    @property
    def lanes(self) -> int:
        """Rows that lie beside each other, one a device."""
        return jax.tree.leaves(self.data)[0].shape[0]

    @property
    def slots(self) -> int:
        """Rows of a lane."""
        return jax.tree.leaves(self.data)[0].shape[1]

    @property
    def examples(self) -> Any:
        """The data row by row, [n, b, ...]; this may move them between devices."""
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[: self.n], self.data)

    def project(self, leaves: Leaves) -> jax.Array:
        """``G v``: one forward-mode pass over the data."""
        leaves = trees.cast_like(leaves, self._weights)
        formed = self._is_formed
        size = self.chunk if formed else self.span

        def block(start: jax.Array) -> jax.Array:
            if formed:
                return products.project(self.form(start), leaves)
            losses = functools.partial(self._losses, start=start, size=size)
            with jax.default_matmul_precision("highest"):
                return jax.jvp(losses, (self._weights,), (leaves,))[1]

        empty = jnp.zeros((self.lanes, self.slots), trees.wide(leaves))
        return self._collect(empty, block, size)

    def pull_back(self, residual: jax.Array) -> Leaves:
        """``G^T r``: one reverse-mode pass over the data."""
        formed = self._is_formed
        size = self.chunk if formed else self.span

        def block(start: jax.Array, r: jax.Array) -> Leaves:
            if formed:
                return products.pull_back(self.form(start), r)
            losses = functools.partial(self._losses, start=start, size=size)
            with jax.default_matmul_precision("highest"):
                values, transpose = jax.vjp(losses, self._weights)
                return transpose(r.astype(values.dtype))[0]

        def step(total: Leaves, i: jax.Array) -> tuple[Leaves, None]:
            start = self._start(i, size)
            r = jnp.take(residual, self._numbers(start, size), mode="clip")
            part = block(start, jnp.where(self._fresh(i, size), r, 0))
            return jax.tree.map(lambda t, q: t + q.astype(t.dtype), total, part), None

        return jax.lax.scan(step, self._zeros(), self._blocks(size))[0]

    def gram(self, support: Leaves | None = None) -> jax.Array:
        """``G_S G_S^T`` from some columns of S at a time.

        As many as fit twice the memory of params, or half a GiB. Each time takes a pass
        that forms all rows, n/2 times the density of S for large params.
        """
        wide = trees.wide(self._weights)
        total = sum(w.size for w in self._weights)
        width = max(1, min(_COLUMNS, total))
        room = max(2 * total, _GRAM_ENTRIES) // (self.n * width)
        most = max(
            1, min(room, math.ceil(total / width))
        )  # blocks of columns at a time
        numbered = None if support is None else kept_index.number(support)
        count = total if numbered is None else numbered.total
        blocks = -(-count // width)

        def places(block: jax.Array) -> jax.Array:
            if numbered is None:
                return block * width + jnp.arange(width, dtype=jnp.int32)
            return numbered.places(block * width, width)

        def some(r: jax.Array, out: jax.Array) -> jax.Array:
            index = jax.lax.map(places, r * most + jnp.arange(most, dtype=jnp.int32))
            here = jnp.minimum(blocks - r * most, most)

            def gather(found: jax.Array, i: jax.Array) -> tuple[jax.Array, None]:
                start = self._start(i, self.chunk)
                rows = self.form(start)

                def one(b: jax.Array, found: jax.Array) -> jax.Array:
                    part = self._in_lanes(products.columns(rows, index[b]), self.chunk)
                    at = (
                        b,
                        jnp.zeros_like(b),
                        start.astype(b.dtype),
                        jnp.zeros_like(b),
                    )
                    return jax.lax.dynamic_update_slice(found, part[None], at)

                return jax.lax.fori_loop(0, here, one, found), None

            empty = jnp.zeros((most, self.lanes, self.slots, width), wide)
            found = jax.lax.scan(gather, empty, self._blocks(self.chunk))[0]
            found = found.reshape(most, self.lanes * self.slots, width)

            def add(b: jax.Array, out: jax.Array) -> jax.Array:
                return out + products.gram((found[b, : self.n],))

            return jax.lax.fori_loop(0, here, add, out)

        empty = jnp.zeros((self.n, self.n), wide)
        return jax.lax.fori_loop(0, -(-blocks // most), some, empty)

    def mean_squares(self) -> Leaves:
        """``(1/n) sum_i G_iq^2``, from one pass that forms chunks of rows."""

        def step(total: Leaves, i: jax.Array) -> tuple[Leaves, None]:
            rows = self.form(self._start(i, self.chunk))
            fresh = self._fresh(i, self.chunk)
            part = products.sum_squares(rows, fresh, self.lanes)
            return jax.tree.map(jnp.add, total, part), None

        total = jax.lax.scan(step, self._zeros(), self._blocks(self.chunk))[0]
        return tuple(t / self.n for t in total)

    def energies(self, factor: jax.Array) -> Leaves:
        """``|F G_q|^2``: some rows of F G at a time, summed up from all rows of G."""
        width = min(self.chunk, factor.shape[0])
        wide = trees.wide(self._weights)

        def squares(total: Leaves, a: jax.Array) -> tuple[Leaves, None]:
            start = jnp.minimum(a * width, factor.shape[0] - width)
            some = jax.lax.dynamic_slice_in_dim(factor, start, width)
            # Rows that belong to the part before count there.
            some = jnp.where((start + jnp.arange(width) >= a * width)[:, None], some, 0)

            def add(out: Leaves, i: jax.Array) -> tuple[Leaves, None]:
                start = self._start(i, self.chunk)
                part = jnp.take(
                    some, self._numbers(start, self.chunk), axis=1, mode="clip"
                )
                part = jnp.where(self._fresh(i, self.chunk), part, 0)
                return tuple(
                    o + jnp.matmul(part, products.flat(m), precision=_HIGHEST)
                    for o, m in zip(out, self.form(start), strict=True)
                ), None

            zeros = tuple(jnp.zeros((width, w.size), wide) for w in self._weights)
            moved = jax.lax.scan(add, zeros, self._blocks(self.chunk))[0]
            return tuple(
                t + jnp.sum(jnp.square(m), axis=0).reshape(t.shape)
                for t, m in zip(total, moved, strict=True)
            ), None

        parts = jnp.arange(math.ceil(factor.shape[0] / width), dtype=jnp.int32)
        return jax.lax.scan(squares, self._zeros(), parts)[0]

    def columns(self, index: jax.Array) -> jax.Array:
        """Some columns, [n, m], from one pass that forms chunks of rows."""
        empty = jnp.zeros(
            (self.lanes, self.slots, *index.shape), trees.wide(self._weights)
        )
        return self._collect(
            empty, lambda start: products.columns(self.form(start), index), self.chunk
        )

    def map_blocks(self, work: Callable, blocks: Leaves, *extras: Leaves) -> tuple:
        """As the protocol says; holds all blocks at once, p times their size."""

        def step(total: tuple, i: jax.Array) -> tuple[tuple, None]:
            rows = self.form(self._start(i, self.chunk))
            fresh = self._fresh(i, self.chunk)

            def add(t: jax.Array, m: jax.Array, index: jax.Array) -> jax.Array:
                m = jnp.where(fresh[:, None], products.flat(m), 0)
                return t + jax.lax.map(lambda b: products.moment(m, b), index)

            return tuple(map(add, total, rows, blocks)), None

        wide = trees.wide(self._weights)
        zeros = tuple(jnp.zeros((*b.shape, b.shape[1]), wide) for b in blocks)
        moments = jax.lax.scan(step, zeros, self._blocks(self.chunk))[0]
        return tuple(
            jax.lax.map(lambda args: work(args[0] / self.n, *args[1:]), leaf)
            for leaf in zip(moments, *extras, strict=True)
        )

    def at(self, leaves: Leaves) -> "MatrixFreeRows":
        """The rows of the same examples at other weights."""
        params = self.layout.merge(leaves, self.params)
        return dataclasses.replace(self, params=params)

    def loss(self, leaves: Leaves) -> jax.Array:
        """The mean loss of the rows' examples at other weights."""
        leaves = trees.cast_like(leaves, self._weights)

        def step(total: jax.Array, i: jax.Array) -> tuple[jax.Array, None]:
            start = self._start(i, self.span)
            losses = self._losses(leaves, start=start, size=self.span)
            fresh = self._fresh(i, self.span)
            return total + jnp.sum(jnp.where(fresh, losses, 0)), None

        zero = jnp.zeros((), trees.wide(self._weights))
        return jax.lax.scan(step, zero, self._blocks(self.span))[0] / self.n

    def curve(self, leaves: Leaves) -> Leaves:
        """``H v``: one forward pass over reverse ones, a span of rows at a time.

        Differentiating `loss` twice would hold the activations of all spans.
        """
        clean = dataclasses.replace(self, corruption=None, dtype=None)
        mean = jnp.full(self.n, 1 / self.n)
        tangent = trees.cast_like(leaves, self._weights)
        gradient = lambda at: clean.at(at).pull_back(mean)  # noqa: E731
        return jax.jvp(gradient, (self._weights,), (tangent,))[1]

    def store(self) -> Leaves:
        """All rows, written chunk by chunk, [n, *shape] a leaf."""
        dtype = self.dtype or trees.wide(self._weights)
        empty = tuple(
            jnp.zeros((self.lanes, self.slots, *w.shape), dtype) for w in self._weights
        )
        return self._collect(empty, self.form, self.chunk)

    def form(self, start: jax.Array) -> Leaves:
        """The rows of a chunk of slots from `start` on, formed and corrupted."""

        def loss(leaves: Leaves, batch: Any) -> jax.Array:
            return self.loss_fn(self.layout.merge(leaves, self.params), batch)

        def row(batch: Any) -> Leaves:
            leaves = jax.grad(loss)(self._weights, batch)
            return tuple(x.astype(trees.wide(leaves)) for x in leaves)

        with jax.default_matmul_precision("highest"):
            rows = jax.vmap(row)(self._slice(start, self.chunk))
        if self.corruption is not None:
            rows = self._corrupt(rows, self._numbers(start, self.chunk))
        if self.dtype is not None:
            rows = tuple(x.astype(self.dtype) for x in rows)
        return rows

    def _corrupt(self, rows: Leaves, numbers: jax.Array) -> Leaves:
        def one(number: jax.Array, leaves: Leaves) -> Leaves:
            assert self.corruption is not None
            key = jax.random.fold_in(self.key, number)
            return self.corruption(key, self.key, number, self.n, leaves)

        # One slot after the other: its many passes then stay in a CPU's cache, which
        # took half the time that all rows at once did.
        by_slot = lambda x: jnp.moveaxis(self._in_lanes(x, self.chunk), 0, 1)  # noqa: E731
        together = jax.tree.map(by_slot, (numbers, rows))
        found = jax.lax.map(lambda pair: jax.vmap(one)(*pair), together)
        return jax.tree.map(
            lambda x, like: jnp.moveaxis(x, 1, 0).reshape(like.shape), found, rows
        )

    @property
    def _weights(self) -> Leaves:
        return self.layout.split(self.params)

    @property
    def _is_formed(self) -> bool:
        """Whether products need the rows themselves, not passes."""
        return self.corruption is not None or self.dtype is not None

    def _zeros(self) -> Leaves:
        wide = trees.wide(self._weights)
        return tuple(jnp.zeros(w.shape, wide) for w in self._weights)

    def _blocks(self, size: int) -> jax.Array:
        return jnp.arange(math.ceil(self.slots / size), dtype=jnp.int32)

    def _start(self, i: jax.Array, size: int) -> jax.Array:
        """The slot where block i starts; the last is moved back to be as long.

        The rows that two blocks then share are computed twice and written twice with
        the same value; sums leave them out by `_fresh`.
        """
        return jnp.minimum(i * size, self.slots - size)

    def _numbers(self, start: jax.Array, size: int) -> jax.Array:
        """The numbers of the rows in these slots of all lanes, [lanes * size]."""
        lane = self.slots * jnp.arange(self.lanes, dtype=jnp.int32)
        slot = start + jnp.arange(size, dtype=jnp.int32)
        return (lane[:, None] + slot).ravel()

    def _fresh(self, i: jax.Array, size: int) -> jax.Array:
        """Which rows of block i are in no block before it, and rows at all."""
        start = self._start(i, size)
        new = jnp.tile(start + jnp.arange(size) >= i * size, self.lanes)
        return new & (self._numbers(start, size) < self.n)

    def _in_lanes(self, x: jax.Array, size: int) -> jax.Array:
        return x.reshape(self.lanes, size, *x.shape[1:])

    def _slice(self, start: jax.Array, size: int) -> Any:
        def some(x: jax.Array) -> jax.Array:
            x = jax.lax.dynamic_slice_in_dim(x, start, size, axis=1)
            return x.reshape(-1, *x.shape[2:])

        return jax.tree.map(some, self.data)

    def _collect(self, empty: Any, block: Callable, size: int) -> Any:
        """Write ``block(start)`` of all blocks into arrays [lanes, slots, ...]."""

        def step(out: Any, i: jax.Array) -> tuple[Any, None]:
            start = self._start(i, size)

            def write(o: jax.Array, part: jax.Array) -> jax.Array:
                part = self._in_lanes(part.astype(o.dtype), size)
                return jax.lax.dynamic_update_slice_in_dim(o, part, start, 1)

            return jax.tree.map(write, out, block(start)), None

        filled = jax.lax.scan(step, empty, self._blocks(size))[0]
        return jax.tree.map(
            lambda x: x.reshape(self.lanes * self.slots, *x.shape[2:])[: self.n], filled
        )

    def _losses(self, leaves: Leaves, start: jax.Array, size: int) -> jax.Array:
        params = self.layout.merge(leaves, self.params)
        with jax.default_matmul_precision("highest"):
            return jax.vmap(lambda batch: self.loss_fn(params, batch))(
                self._slice(start, size)
            )
