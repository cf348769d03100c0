"""The operator G: one row a gradient, of an example or of a mini-batch.

Pruning methods need four products of ``G`` (n rows, p prunable entries): ``G v``,
``G^T r``, ``G_S G_S^T`` on a support S, and the mean square of each column.
`StoredRows` holds G as arrays; `MatrixFreeRows` recomputes what it needs from the data,
chunk by chunk, so that nothing of size n x p is ever live. Both give the same answers
up to rounding, and both are pytrees: they pass through ``jit``.

Vectors of R^p are tuples of the prunable leaves, in the order of params.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp

from swapjax import trees
from swapjax.plan import Plan
from swapjax.sources import count_examples
from swapjax.types import Leaves, LossFn, Params

# How rows are corrupted: (key of the row, key of all rows, index of the row, n, row) ->
# row. See noise.py.
Corruption = Callable[[jax.Array, jax.Array, jax.Array, int, Leaves], Leaves]
# Keeps the columns of a support of explicit rows.
Restriction = Callable[[Leaves], Leaves]
Storage = Literal["auto", "stored", "matrix-free"]

_STORE_BELOW = 2**31  # bytes of G that "auto" still stores
_CHUNK_BYTES = 2**25  # bytes of gradient rows live at a time
_CHUNK_ROWS = 256
_NARROW_ROWS = 16  # rows of bfloat16 widened at a time
_GATHERED_SIZES = 4
_HIGHEST = jax.lax.Precision.HIGHEST


class Rows(Protocol):
    """What a pruning method may ask of the gradient rows."""

    @property
    def n(self) -> int:
        """The number of rows."""
        ...

    @property
    def batch(self) -> int:
        """The number of examples averaged into a row."""
        ...

    def project(self, leaves: Leaves) -> jax.Array:
        """``G v``: leaves to [n]."""
        ...

    def pull_back(self, residual: jax.Array) -> Leaves:
        """``G^T r``: [n] to leaves."""
        ...

    def gram(self, support: Leaves | None = None) -> jax.Array:
        """``G_S G_S^T``, [n, n], for bool leaves S; of all columns without one."""
        ...

    def mean_squares(self) -> Leaves:
        """``(1/n) sum_i G_iq^2`` for every column q, the diagonal of the Fisher."""
        ...

    def loss(self, leaves: Leaves) -> jax.Array:
        """The mean loss of the rows' examples at other weights."""
        ...


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
                return _project(self._block(start), leaves)
            losses = functools.partial(self._losses, start=start)
            with jax.default_matmul_precision("highest"):
                return jax.jvp(losses, (self._weights,), (leaves,))[1]

        def step(out: jax.Array, i: jax.Array) -> tuple[jax.Array, None]:
            start = self._start(i)
            part = block(start).astype(out.dtype)
            return jax.lax.dynamic_update_slice(out, part, (start,)), None

        empty = jnp.zeros((self.n,), _wide(leaves))
        return jax.lax.scan(step, empty, self._blocks)[0]

    def pull_back(self, residual: jax.Array) -> Leaves:
        """``G^T r``: one reverse-mode pass over the data."""

        def block(start: jax.Array, r: jax.Array) -> Leaves:
            if self.corruption is not None or self.dtype is not None:
                return _pull_back(self._block(start), r)
            losses = functools.partial(self._losses, start=start)
            with jax.default_matmul_precision("highest"):
                values, transpose = jax.vjp(losses, self._weights)
                return transpose(r.astype(values.dtype))[0]

        def step(total: Leaves, i: jax.Array) -> tuple[Leaves, None]:
            start = self._start(i)
            r = jax.lax.dynamic_slice(residual, (start,), (self.chunk,))
            part = block(start, jnp.where(self._fresh(i), r, 0))
            return jax.tree.map(lambda t, q: t + q.astype(t.dtype), total, part), None

        wide = _wide(self._weights)
        zeros = tuple(jnp.zeros(w.shape, wide) for w in self._weights)
        return jax.lax.scan(step, zeros, self._blocks)[0]

    def gram(self, support: Leaves | None = None) -> jax.Array:
        """``G_S G_S^T`` from pairs of chunks: 2 chunks of rows live, n/chunk passes."""
        count = self._blocks.shape[0]

        def pair(
            i: jax.Array, j: jax.Array, first: Leaves, out: jax.Array
        ) -> jax.Array:
            second = self._block(self._start(j))
            # The size is chosen here and not around the loop, so that the program
            # holds the network once and not in every branch: it compiles faster.
            products = _on_support(
                support,
                self._weights,
                lambda restrict: _products(restrict(first), restrict(second)),
            )
            at = (self._start(i), self._start(j))
            out = jax.lax.dynamic_update_slice(out, products, at)
            return jax.lax.dynamic_update_slice(out, products.T, at[::-1])

        def step(out: jax.Array, i: jax.Array) -> tuple[jax.Array, None]:
            first = self._block(self._start(i))
            # Only pairs on or above the diagonal; the others are their transposes.
            return jax.lax.fori_loop(
                i, count, lambda j, acc: pair(i, j, first, acc), out
            ), None

        empty = jnp.zeros((self.n, self.n), _wide(self._weights))
        return jax.lax.scan(step, empty, self._blocks)[0]

    def mean_squares(self) -> Leaves:
        """``(1/n) sum_i G_iq^2``, from one pass that forms chunks of rows."""

        def step(total: Leaves, i: jax.Array) -> tuple[Leaves, None]:
            rows = self._block(self._start(i))
            part = _sum_squares(rows, self._fresh(i))
            return jax.tree.map(jnp.add, total, part), None

        wide = _wide(self._weights)
        zeros = tuple(jnp.zeros(w.shape, wide) for w in self._weights)
        total = jax.lax.scan(step, zeros, self._blocks)[0]
        return tuple(t / self.n for t in total)

    def loss(self, leaves: Leaves) -> jax.Array:
        """The mean loss of the rows' examples at other weights."""
        leaves = trees.cast_like(leaves, self._weights)

        def step(total: jax.Array, i: jax.Array) -> tuple[jax.Array, None]:
            losses = self._losses(leaves, start=self._start(i))
            return total + jnp.sum(jnp.where(self._fresh(i), losses, 0)), None

        zero = jnp.zeros((), _wide(self._weights))
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
            return tuple(x.astype(_wide(leaves)) for x in leaves)

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


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["matrices", "source"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class StoredRows:
    """G as arrays, one a prunable leaf.

    Attributes:
        matrices: arrays [n, *shape], float32, or bfloat16 to halve the memory; their
            products are accumulated in float32 all the same.
        source: the recipe they were made from.
    """

    matrices: Leaves
    source: MatrixFreeRows

    @property
    def n(self) -> int:
        """The number of rows."""
        return self.source.n

    @property
    def batch(self) -> int:
        """The number of examples averaged into a row."""
        return self.source.batch

    def project(self, leaves: Leaves) -> jax.Array:
        """``G v``."""
        return _project(self.matrices, leaves)

    def pull_back(self, residual: jax.Array) -> Leaves:
        """``G^T r``."""
        return _pull_back(self.matrices, residual)

    def gram(self, support: Leaves | None = None) -> jax.Array:
        """``G_S G_S^T``."""

        def gram(restrict: Restriction) -> jax.Array:
            matrices = restrict(self.matrices)
            return _products(matrices, matrices)

        return _on_support(support, self.source._weights, gram)

    def mean_squares(self) -> Leaves:
        """``(1/n) sum_i G_iq^2``."""
        total = _sum_squares(self.matrices, jnp.ones(self.n, bool))
        return tuple(t / self.n for t in total)

    def loss(self, leaves: Leaves) -> jax.Array:
        """The mean loss of the rows' examples at other weights."""
        return self.source.loss(leaves)


def per_example_gradients(
    loss_fn: LossFn,
    params: Params,
    data: Any,
    plan: Plan,
    *,
    batch: int = 1,
    storage: Storage = "auto",
    dtype: Any = None,
    corruption: Corruption | None = None,
    key: jax.Array | None = None,
    chunk: int | None = None,
) -> StoredRows | MatrixFreeRows:
    """Take the gradient of the loss on each example, or on each mini-batch.

    Args:
        loss_fn: ``loss_fn(params, batch)``, the mean loss of a batch whose leaves have
            a leading axis of examples. Evaluate the network in inference mode in it:
            with batch statistics one example's gradient depends on the others.
        params: where the gradients are taken.
        data: a pytree of arrays [n * batch, ...].
        plan: says which leaves are prunable; the rows hold those only.
        batch: examples averaged into one row.
        storage: ``"stored"`` keeps G, n times the prunable entries; ``"matrix-free"``
            recomputes it in every product; ``"auto"`` stores what is below 2 GiB.
        dtype: what rows are rounded to, ``jnp.bfloat16`` to halve the memory. By
            default float32, or float64 for params of float64.
        corruption: what happens to each row, from `swapjax.noise`.
        key: seeds the corruption.
        chunk: rows formed at a time; by default what fits 32 MiB, 256 at most.

    Returns:
        The operator G.

    Raises:
        ValueError: for leaves of data that disagree about the number of examples, a
            number that batch does not divide, no rows at all, a corruption without a
            key, and gradients that are not finite, naming the leaf.
    """
    free = recipe(
        loss_fn, params, data, plan,
        batch=batch, dtype=dtype, corruption=corruption, key=key, chunk=chunk,
    )  # fmt: skip
    return form(free, plan, storage)


def recipe(
    loss_fn: LossFn,
    params: Params,
    data: Any,
    plan: Plan,
    *,
    batch: int = 1,
    dtype: Any = None,
    corruption: Corruption | None = None,
    key: jax.Array | None = None,
    chunk: int | None = None,
) -> MatrixFreeRows:
    """Describe the rows without computing anything; see `per_example_gradients`."""
    if batch < 1:
        raise ValueError(f"batch must be 1 or more, got {batch}")
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk must be 1 or more, got {chunk}")
    if corruption is not None and key is None:
        raise ValueError("key: a corruption needs a PRNG key, got None")
    examples = count_examples(data)
    if examples < 1 or examples % batch:
        raise ValueError(
            f"data: {examples} examples do not make whole rows of batch={batch}"
        )
    n = examples // batch
    weights = plan.split(params)
    if chunk is None:
        chunk = min(_CHUNK_ROWS, max(1, _CHUNK_BYTES // (4 * plan.total)))
    rounded = None if dtype is None else jnp.dtype(dtype)
    return MatrixFreeRows(
        params=params,
        data=jax.tree.map(lambda x: x.reshape(n, batch, *x.shape[1:]), data),
        key=jax.random.key(0) if key is None else key,
        loss_fn=loss_fn,
        positions=plan.positions,
        corruption=corruption,
        dtype=None if rounded == _wide(weights) else rounded,
        chunk=min(chunk, n),
    )


def form(
    free: MatrixFreeRows, plan: Plan, storage: Storage = "auto"
) -> StoredRows | MatrixFreeRows:
    """Store the rows of a recipe or leave them to be recomputed, and check them.

    Raises:
        ValueError: for an unknown storage, and gradients that are not finite.
    """
    check_storage(storage)
    if storage == "auto":
        dtype = jnp.dtype(free.dtype or _wide(plan.split(free.params)))
        small = free.n * plan.total * dtype.itemsize < _STORE_BELOW
        storage = "stored" if small else "matrix-free"
    rows = _store(free) if storage == "stored" else free
    trees.require_finite(plan.paths, _sum_rows(rows), "gradients")
    return rows


def check_storage(storage: str) -> None:
    """Raise for an unknown storage.

    Raises:
        ValueError: naming the argument.
    """
    if storage not in ("auto", "stored", "matrix-free"):
        raise ValueError(
            f"storage must be 'auto', 'stored' or 'matrix-free', got {storage!r}"
        )


@jax.jit
def _store(free: MatrixFreeRows) -> StoredRows:
    """Form all rows, chunk by chunk, into arrays that are written in place."""

    def step(out: Leaves, i: jax.Array) -> tuple[Leaves, None]:
        start = free._start(i)
        return jax.tree.map(
            lambda o, b: jax.lax.dynamic_update_slice_in_dim(o, b, start, 0),
            out,
            free._block(start),
        ), None

    dtype = free.dtype or _wide(free._weights)
    empty = tuple(jnp.zeros((free.n, *w.shape), dtype) for w in free._weights)
    return StoredRows(jax.lax.scan(step, empty, free._blocks)[0], free)


@jax.jit
def _sum_rows(rows: StoredRows | MatrixFreeRows) -> Leaves:
    return rows.pull_back(jnp.ones(rows.n))


def _wide(leaves: Leaves) -> jnp.dtype:
    """What products of such arrays are accumulated in: float32 or wider."""
    return jnp.result_type(jnp.float32, *(leaf.dtype for leaf in leaves))


def _matrix(leaf: jax.Array) -> jax.Array:
    return leaf.reshape(leaf.shape[0], -1)


def _project(matrices: Leaves, leaves: Leaves) -> jax.Array:
    """``G v`` for explicit rows."""
    wide = _wide((*matrices, *leaves))

    def product(m: jax.Array, v: jax.Array) -> jax.Array:
        v = v.ravel().astype(wide)
        if m.dtype == wide:
            return jnp.matmul(_matrix(m), v, precision=_HIGHEST)
        # Widened a few rows at a time: a wide copy of G must never be live.
        one = lambda row: jnp.vdot(row.ravel().astype(wide), v, precision=_HIGHEST)  # noqa: E731
        return jax.lax.map(one, m, batch_size=_NARROW_ROWS)

    parts = (product(m, v) for m, v in zip(matrices, leaves, strict=True))
    return sum(parts, start=jnp.zeros(matrices[0].shape[0], wide))


def _pull_back(matrices: Leaves, residual: jax.Array) -> Leaves:
    """``G^T r`` for explicit rows."""
    wide = _wide(matrices)
    r = residual.astype(wide)

    def product(m: jax.Array) -> jax.Array:
        if m.dtype == wide:
            flat = jnp.matmul(r, _matrix(m), precision=_HIGHEST)
            return flat.reshape(m.shape[1:])
        zero = jnp.zeros(m.shape[1:], wide)
        step = lambda t, row: (t + row[0] * row[1].astype(wide), None)  # noqa: E731
        return jax.lax.scan(step, zero, (r, m))[0]

    return tuple(product(m) for m in matrices)


def _products(first: Leaves, second: Leaves) -> jax.Array:
    """All inner products of two sets of rows, [rows of first, rows of second]."""
    wide = _wide(first)
    shape = (first[0].shape[0], second[0].shape[0])
    parts = (
        jnp.matmul(
            _matrix(a), _matrix(b).T, precision=_HIGHEST, preferred_element_type=wide
        )
        for a, b in zip(first, second, strict=True)
    )
    return sum(parts, start=jnp.zeros(shape, wide))


def _on_support(
    support: Leaves | None, weights: Leaves, gram: Callable[[Restriction], jax.Array]
) -> jax.Array:
    """Compute a Gram matrix from the columns of the support alone.

    Its cost is n^2 times the number of columns multiplied. How many are kept is
    traced, so the columns are gathered into one of a few static sizes, each half of
    the one before, chosen when the program runs; all of them live in one compilation.
    """
    if support is None:
        return gram(lambda matrices: matrices)
    total = sum(w.size for w in weights)
    kept = sum(jnp.sum(s, dtype=jnp.int32) for s in support)
    sizes = [max(1, math.ceil(total / 2**i)) for i in range(1, _GATHERED_SIZES + 1)]
    fitting = sum((kept <= size).astype(jnp.int32) for size in sizes)

    def gathered(size: int) -> jax.Array:
        return gram(lambda matrices: _gather(matrices, support, size))

    branches = [lambda: gram(lambda matrices: _zero_columns(matrices, support))]
    branches += [functools.partial(gathered, size) for size in sizes]
    return jax.lax.switch(fitting, branches)


def _zero_columns(matrices: Leaves, support: Leaves) -> Leaves:
    """Set the columns off the support to zero."""
    return tuple(
        jnp.where(s, m, jnp.zeros((), m.dtype))
        for m, s in zip(matrices, support, strict=True)
    )


def _gather(matrices: Leaves, support: Leaves, size: int) -> Leaves:
    """Keep the columns of the support, at most `size` of each leaf."""

    def columns(m: jax.Array, s: jax.Array) -> jax.Array:
        if s.size <= size:
            return jnp.where(s, m, jnp.zeros((), m.dtype))
        (index,) = jnp.nonzero(s.ravel(), size=size, fill_value=0)
        real = jnp.arange(size) < jnp.sum(s, dtype=jnp.int32)
        chosen = jnp.take(_matrix(m), index, axis=1)
        return jnp.where(real, chosen, jnp.zeros((), m.dtype))

    return tuple(columns(m, s) for m, s in zip(matrices, support, strict=True))


def _sum_squares(matrices: Leaves, which: jax.Array) -> Leaves:
    """Per column, the sum of squares over the rows that `which` marks."""
    wide = _wide(matrices)

    def total(m: jax.Array) -> jax.Array:
        def step(carry: jax.Array, row: tuple) -> tuple[jax.Array, None]:
            values, counts = row
            square = jnp.square(values.astype(wide))
            return carry + jnp.where(counts, square, 0), None

        # Row by row: a reduction over the first axis strides through memory, and took
        # ten times as long.
        zero = jnp.zeros(m.shape[1:], wide)
        return jax.lax.scan(step, zero, (m, which))[0]

    return tuple(total(m) for m in matrices)
