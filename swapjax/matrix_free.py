"""G as a recipe: every product is a forward or a reverse pass over the data."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from swapjax import explicit, trees
from swapjax.rows import Corruption
from swapjax.types import Leaves, LossFn, Params

_HIGHEST = jax.lax.Precision.HIGHEST


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["params", "data", "key"],
    meta_fields=["loss_fn", "positions", "corruption", "dtype", "chunk"],
)
@dataclasses.dataclass(frozen=True)
class MatrixFreeRows:
    """G as a recipe: products are forward and reverse passes over chunks of rows.

    Attributes:
        params: the weights at which gradients are taken.
        data: a pytree of arrays [n, b, ...]: n rows of b examples.
        key: seeds the corruption; row i draws from ``fold_in(key, i)``, so that every
            product sees the same corrupted rows.
        loss_fn: ``loss_fn(params, batch)``, the mean loss of a batch.
        positions: the prunable leaves among all leaves of params.
        corruption: what happens to each row, or None. With one, the products form
            a chunk of rows each time, since noise has no forward mode.
        dtype: what rows are rounded to before products take them, or None for the
            dtype that products are accumulated in.
        chunk: rows at a time.
    """

    params: Params
    data: Any
    key: jax.Array
    loss_fn: LossFn
    positions: tuple[int, ...]
    corruption: Corruption | None
    dtype: Any
    chunk: int

    @property
    def n(self) -> int:
        """The number of rows."""
        return jax.tree.leaves(self.data)[0].shape[0]

    @property
    def batch(self) -> int:
        """The number of examples averaged into a row."""
        return jax.tree.leaves(self.data)[0].shape[1]

    def project(self, leaves: Leaves) -> jax.Array:
        """``G v``: one forward-mode pass over the data."""
        leaves = trees.cast_like(leaves, self._weights)

        def block(start: jax.Array) -> jax.Array:
            if self.corruption is not None or self.dtype is not None:
                return explicit.project(self._block(start), leaves)
            losses = functools.partial(self._losses, start=start)
            with jax.default_matmul_precision("highest"):
                return jax.jvp(losses, (self._weights,), (leaves,))[1]

        def step(out: jax.Array, i: jax.Array) -> tuple[jax.Array, None]:
            start = self._start(i)
            part = block(start).astype(out.dtype)
            return jax.lax.dynamic_update_slice(out, part, (start,)), None

        empty = jnp.zeros((self.n,), explicit.wide(leaves))
        return jax.lax.scan(step, empty, self._blocks)[0]

    def pull_back(self, residual: jax.Array) -> Leaves:
        """``G^T r``: one reverse-mode pass over the data."""

        def block(start: jax.Array, r: jax.Array) -> Leaves:
            if self.corruption is not None or self.dtype is not None:
                return explicit.pull_back(self._block(start), r)
            losses = functools.partial(self._losses, start=start)
            with jax.default_matmul_precision("highest"):
                values, transpose = jax.vjp(losses, self._weights)
                return transpose(r.astype(values.dtype))[0]

        def step(total: Leaves, i: jax.Array) -> tuple[Leaves, None]:
            start = self._start(i)
            r = jax.lax.dynamic_slice(residual, (start,), (self.chunk,))
            part = block(start, jnp.where(self._fresh(i), r, 0))
            return jax.tree.map(lambda t, q: t + q.astype(t.dtype), total, part), None

        wide = explicit.wide(self._weights)
        zeros = tuple(jnp.zeros(w.shape, wide) for w in self._weights)
        return jax.lax.scan(step, zeros, self._blocks)[0]

    def gram(self, support: Leaves | None = None) -> jax.Array:
        """``G_S G_S^T`` from pairs of chunks: 2 chunks of rows live, n/chunk passes."""
        count = self._blocks.shape[0]

        def pair(
            i: jax.Array, j: jax.Array, first: Leaves, out: jax.Array
        ) -> jax.Array:
            second = self._block(self._start(j))
            products = explicit.products(first, second, support)
            at = (self._start(i), self._start(j))
            out = jax.lax.dynamic_update_slice(out, products, at)
            return jax.lax.dynamic_update_slice(out, products.T, at[::-1])

        def step(out: jax.Array, i: jax.Array) -> tuple[jax.Array, None]:
            first = self._block(self._start(i))
            # Only pairs on or above the diagonal; the others are their transposes.
            return jax.lax.fori_loop(
                i, count, lambda j, acc: pair(i, j, first, acc), out
            ), None

        empty = jnp.zeros((self.n, self.n), explicit.wide(self._weights))
        return jax.lax.scan(step, empty, self._blocks)[0]

    def mean_squares(self) -> Leaves:
        """``(1/n) sum_i G_iq^2``, from one pass that forms chunks of rows."""

        def step(total: Leaves, i: jax.Array) -> tuple[Leaves, None]:
            rows = self._block(self._start(i))
            part = explicit.sum_squares(rows, self._fresh(i))
            return jax.tree.map(jnp.add, total, part), None

        wide = explicit.wide(self._weights)
        zeros = tuple(jnp.zeros(w.shape, wide) for w in self._weights)
        total = jax.lax.scan(step, zeros, self._blocks)[0]
        return tuple(t / self.n for t in total)

    def energies(self, factor: jax.Array) -> Leaves:
        """``|F G_q|^2``: chunks of rows of F G are summed up from all rows of G."""

        def squares(total: Leaves, i: jax.Array) -> tuple[Leaves, None]:
            some = jax.lax.dynamic_slice_in_dim(factor, self._start(i), self.chunk)
            some = jnp.where(self._fresh(i)[:, None], some, 0)

            def add(out: Leaves, j: jax.Array) -> tuple[Leaves, None]:
                start = self._start(j)
                part = jax.lax.dynamic_slice_in_dim(some, start, self.chunk, axis=1)
                part = jnp.where(self._fresh(j), part, 0)
                return tuple(
                    o + jnp.matmul(part, explicit.flat(m), precision=_HIGHEST)
                    for o, m in zip(out, self._block(start), strict=True)
                ), None

            zeros = tuple(jnp.zeros((self.chunk, w.size), wide) for w in self._weights)
            moved = jax.lax.scan(add, zeros, self._blocks)[0]
            return tuple(
                t + jnp.sum(jnp.square(m), axis=0).reshape(t.shape)
                for t, m in zip(total, moved, strict=True)
            ), None

        wide = explicit.wide(self._weights)
        zeros = tuple(jnp.zeros(w.shape, wide) for w in self._weights)
        return jax.lax.scan(squares, zeros, self._blocks)[0]

    def columns(self, index: jax.Array) -> jax.Array:
        """Some columns, [n, m], from one pass that forms chunks of rows."""

        def step(out: jax.Array, i: jax.Array) -> tuple[jax.Array, None]:
            start = self._start(i)
            part = explicit.columns(self._block(start), index)
            return jax.lax.dynamic_update_slice_in_dim(out, part, start, 0), None

        empty = jnp.zeros((self.n, *index.shape), explicit.wide(self._weights))
        return jax.lax.scan(step, empty, self._blocks)[0]

    def map_blocks(self, work: Callable, blocks: Leaves, *extras: Leaves) -> tuple:
        """As `Rows.map_blocks`; holds all blocks at once, p times their size."""

        def step(total: tuple, i: jax.Array) -> tuple[tuple, None]:
            rows = self._block(self._start(i))
            fresh = self._fresh(i)

            def add(t: jax.Array, m: jax.Array, index: jax.Array) -> jax.Array:
                # Rows that belong to the chunk before count there.
                m = jnp.where(fresh[:, None], explicit.flat(m), 0)
                return t + jax.lax.map(lambda b: explicit.moment(m, b), index)

            return tuple(map(add, total, rows, blocks)), None

        wide = explicit.wide(self._weights)
        zeros = tuple(jnp.zeros((*b.shape, b.shape[1]), wide) for b in blocks)
        moments = jax.lax.scan(step, zeros, self._blocks)[0]
        return tuple(
            jax.lax.map(lambda args: work(args[0] / self.n, *args[1:]), leaf)
            for leaf in zip(moments, *extras, strict=True)
        )

    def at(self, leaves: Leaves) -> "MatrixFreeRows":
        """The rows of the same examples at other weights."""
        params = trees.put(leaves, self.params, self.positions)
        return dataclasses.replace(self, params=params)

    def loss(self, leaves: Leaves) -> jax.Array:
        """The mean loss of the rows' examples at other weights."""
        leaves = trees.cast_like(leaves, self._weights)

        def step(total: jax.Array, i: jax.Array) -> tuple[jax.Array, None]:
            losses = self._losses(leaves, start=self._start(i))
            return total + jnp.sum(jnp.where(self._fresh(i), losses, 0)), None

        zero = jnp.zeros((), explicit.wide(self._weights))
        return jax.lax.scan(step, zero, self._blocks)[0] / self.n

    @property
    def _weights(self) -> Leaves:
        return trees.take(self.params, self.positions)

    @property
    def _blocks(self) -> jax.Array:
        return jnp.arange(math.ceil(self.n / self.chunk), dtype=jnp.int32)

    def _start(self, i: jax.Array) -> jax.Array:
        """Where block i starts; the last one is moved back to be as long as the others.

        The rows that two blocks then share are computed twice and written twice with
        the same value; sums leave them out by `_fresh`.
        """
        return jnp.minimum(i * self.chunk, self.n - self.chunk)

    def _fresh(self, i: jax.Array) -> jax.Array:
        """Which rows of block i belong to no block before it."""
        return jnp.arange(self.chunk) + self._start(i) >= i * self.chunk

    def _slice(self, start: jax.Array) -> Any:
        return jax.tree.map(
            lambda x: jax.lax.dynamic_slice_in_dim(x, start, self.chunk), self.data
        )

    def _losses(self, leaves: Leaves, start: jax.Array) -> jax.Array:
        params = trees.put(leaves, self.params, self.positions)
        with jax.default_matmul_precision("highest"):
            return jax.vmap(lambda batch: self.loss_fn(params, batch))(
                self._slice(start)
            )

    def _block(self, start: jax.Array) -> Leaves:
        """The rows [chunk, ...] from `start` on, formed and corrupted."""

        def loss(leaves: Leaves, batch: Any) -> jax.Array:
            return self.loss_fn(trees.put(leaves, self.params, self.positions), batch)

        def row(batch: Any) -> Leaves:
            leaves = jax.grad(loss)(self._weights, batch)
            return tuple(x.astype(explicit.wide(leaves)) for x in leaves)

        def corrupt(index: jax.Array, leaves: Leaves) -> Leaves:
            assert self.corruption is not None
            key = jax.random.fold_in(self.key, index)
            return self.corruption(key, self.key, index, self.n, leaves)

        with jax.default_matmul_precision("highest"):
            rows = jax.vmap(row)(self._slice(start))
        if self.corruption is not None:
            # One row after the other: its many passes then stay in a CPU's cache, which
            # took half the time that all rows at once did.
            index = start + jnp.arange(self.chunk)
            rows = jax.lax.map(lambda pair: corrupt(*pair), (index, rows))
        if self.dtype is not None:
            rows = tuple(x.astype(self.dtype) for x in rows)
        return rows
