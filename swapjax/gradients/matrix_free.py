"""G as a recipe: every product is a forward or a reverse pass over the data.

For any n, no array except those of shape [n, n] is larger than the largest of: twice
the prunable weights, half a GiB, one chunk of rows, the activations of one span.
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from swapjax.core import trees
from swapjax.core.compiled import Reference
from swapjax.core.types import Leaves, LossFn, Params
from swapjax.gradients import gram, products
from swapjax.gradients.chunks import Chunk, Chunks
from swapjax.gradients.energies import by_rows
from swapjax.gradients.hessian import curve
from swapjax.gradients.operator import Blocks, Columns, Corruption
from swapjax.gradients.passes import Passes
from swapjax.sparsity.layout import Layout

_HIGHEST = jax.lax.Precision.HIGHEST
_ARRAYS = "params", "data", "key", "unit"
_REST = "n", "custom", "one_by_one", "layout", "dtype", "chunk", "span"


@dataclasses.dataclass(frozen=True)
class MatrixFreeRows:
    """G as a recipe: products are forward and reverse passes over some rows at a time.

    Attributes:
        params: the weights at which gradients are taken.
        data: a pytree of arrays [lanes, slots, b, ...], one lane per device, in the
            order of `chunks.Chunks`. A row is b examples; rows after n are padding.
        key: seeds the corruption; row i draws from ``fold_in(key, i)``, so that every
            product sees the same corrupted rows.
        n: the number of rows.
        loss_fn: ``loss_fn(params, batch)``, the mean loss of a batch.
        custom: whether there is a ``jax.custom_vjp`` in the loss. It has no forward
            mode, and what it returns need not be linear in the slope that it is given:
            products form the rows then.
        one_by_one: whether rows are formed one after the other, see `Passes`.
        layout: the prunable leaves of params; vectors of R^p are one array for all of
            them if it is flat.
        corruption: how each row is corrupted, or None. With a corruption, products
            form the rows, since it has no forward mode.
        dtype: what rows are rounded to before they are multiplied, or None for the
            dtype that products are accumulated in.
        chunk: slots per chunk of rows that are formed.
        span: slots per chunk of examples that a forward or reverse pass takes.
        unit: what rows are divided by, see `unit.in_unit`; None for rows as they are.
    """

    params: Params
    data: Any
    key: jax.Array
    n: int
    loss_fn: LossFn
    custom: bool
    one_by_one: bool
    layout: Layout
    corruption: Corruption | None
    dtype: Any
    chunk: int
    span: int
    unit: jax.Array | None = None

    @property
    def functions(self) -> tuple:
        """The functions that compiled code of the rows depends on."""
        return self.loss_fn, self.corruption

    @property
    def batch(self) -> int:
        """The number of examples averaged into a row."""
        return jax.tree.leaves(self.data)[0].shape[2]

    @property
    def lanes(self) -> int:
        """The number of lanes, one per device."""
        return jax.tree.leaves(self.data)[0].shape[0]

    @property
    def slots(self) -> int:
        """The number of rows in a lane, padding included."""
        return jax.tree.leaves(self.data)[0].shape[1]

    @property
    def examples(self) -> Any:
        """The data row by row, [n, b, ...]; this may move them between devices."""
        return self._chunks(self.chunk).rows(self.data)

    def project(self, leaves: Leaves) -> jax.Array:
        """Compute ``G v``: one forward-mode pass over the data."""
        leaves = trees.cast_like(leaves, self._weights)

        def work(chunk: Chunk) -> jax.Array:
            if self._is_formed:
                return products.project(self.form(chunk), leaves)
            return self._passes.forward(cut, chunk.read(self.data))

        cut = self.layout.unpack(leaves)

        row = jax.ShapeDtypeStruct((), trees.wide(leaves))
        found = self._chunks(self._size).collect(work, row)
        return found if self._is_formed else _divide(self.unit, (found,))[0]

    def pull_back(self, residual: jax.Array) -> Leaves:
        """Compute ``G^T r``: one reverse-mode pass over the data."""

        def work(chunk: Chunk, r: jax.Array) -> Leaves:
            if self._is_formed:
                return products.pull_back(self.form(chunk), r)
            found = self._passes.reverse(r, chunk.read(self.data))
            return self.layout.pack(found)

        def add(total: Leaves, chunk: Chunk) -> Leaves:
            part = work(chunk, chunk.pick(residual))
            return jax.tree.map(lambda t, q: t + q.astype(t.dtype), total, part)

        total = self._chunks(self._size).fold(add, self._zeros())
        return total if self._is_formed else _divide(self.unit, total)

    def gram(self, support: Leaves | None = None) -> jax.Array:
        """Compute ``G_S G_S^T`` from a few columns at a time; see `gram.by_columns`."""
        chunks = self._chunks(self.chunk)
        return gram.by_columns(self.form, chunks, self._weights, support)

    def mean_squares(self) -> Leaves:
        """Compute ``(1/n) sum_i G_iq^2`` in one pass that forms chunks of rows."""

        def add(total: Leaves, chunk: Chunk) -> Leaves:
            part = products.sum_squares(self.form(chunk), chunk.fresh, self.lanes)
            return jax.tree.map(jnp.add, total, part)

        total = self._chunks(self.chunk).fold(add, self._zeros())
        return tuple(t / self.n for t in total)

    def energies(self, factor: jax.Array) -> Leaves:
        """Compute ``|F G_q|^2``, a few rows of F G at a time from all rows of G."""
        chunks = self._chunks(self.chunk)
        return by_rows(self.form, chunks, self._weights, factor)

    def columns(self, index: jax.Array) -> jax.Array:
        """Take some columns, [n, m], in one pass that forms chunks of rows."""
        row = jax.ShapeDtypeStruct(index.shape, trees.wide(self._weights))
        return self._chunks(self.chunk).collect(
            lambda chunk: products.columns(self.form(chunk), index), row
        )

    def map_blocks(
        self, work: Callable, blocks: Blocks, *extras: tuple[jax.Array, ...]
    ) -> tuple:
        """Do as `GradientOperator.map_blocks`, in one pass that forms chunks of rows.

        Holds the moments of all blocks at once, c entries for every column.
        """

        def step(total: tuple, chunk: Chunk) -> tuple:
            fresh = chunk.fresh[:, None]
            rows = [jnp.where(fresh, products.flat(m), 0) for m in self.form(chunk)]

            def add(t: jax.Array, of: Columns) -> jax.Array:
                m = rows[of.leaf]
                moment = lambda b: products.moment(products.some_columns(m, b))  # noqa: E731
                return t + jax.lax.map(moment, of.places)

            return tuple(map(add, total, blocks))

        wide = trees.wide(self._weights)
        shapes = (of.places.shape for of in blocks)
        zeros = tuple(jnp.zeros((number, c, c), wide) for number, c in shapes)
        moments = self._chunks(self.chunk).fold(step, zeros)
        return tuple(
            jax.lax.map(lambda args: work(args[0] / self.n, *args[1:]), own)
            for own in zip(moments, *extras, strict=True)
        )

    def at(self, leaves: Leaves) -> "MatrixFreeRows":
        """Return the rows of the same examples at other weights."""
        params = self.layout.merge(leaves, self.params)
        return dataclasses.replace(self, params=params)

    def loss(self, leaves: Leaves) -> jax.Array:
        """Compute the mean loss of the rows' examples at other weights."""
        cut = self.layout.unpack(trees.cast_like(leaves, self._weights))

        def add(total: jax.Array, chunk: Chunk) -> jax.Array:
            losses = self._passes.losses(cut, chunk.read(self.data))
            return total + jnp.sum(jnp.where(chunk.fresh, losses, 0))

        zero = jnp.zeros((), trees.wide(self._weights))
        return self._chunks(self.span).fold(add, zero) / self.n

    def curve(self, leaves: Leaves) -> Leaves:
        """Compute ``H v`` in forward over reverse mode, a span of rows at a time.

        Differentiating `loss` twice would hold the activations of all spans.
        """
        return curve(dataclasses.replace(self, corruption=None, dtype=None), leaves)

    def store(self, into: Leaves | None = None) -> Leaves:
        """Form all rows, chunk by chunk, [n, *shape] a leaf.

        Args:
            into: arrays of these shapes to write into, by default new ones.
        """
        return self._chunks(self.chunk).collect(self.form, self.row, into)

    @property
    def row(self) -> Leaves:
        """The shape and dtype of a row, a leaf each."""
        dtype = self.dtype or trees.wide(self._weights)
        found: Any = (jax.ShapeDtypeStruct(w.shape, dtype) for w in self._weights)
        return tuple(found)

    def form(self, chunk: Chunk) -> Leaves:
        """Form rows of a chunk, corrupted, divided and rounded, [lanes * size, ...]."""
        rows = self._passes.gradients(chunk.read(self.data))
        if self.corruption is not None:
            rows = chunk.map_rows(self._corrupt, rows)
        rows = _divide(self.unit, self.layout.pack(rows, lead=1))
        if self.dtype is not None:
            rows = tuple(x.astype(self.dtype) for x in rows)
        return rows

    def _corrupt(self, number: jax.Array, row: Leaves) -> Leaves:
        assert self.corruption is not None
        key = jax.random.fold_in(self.key, number)
        return self.corruption(key, self.key, number, self.n, row)

    @property
    def _passes(self) -> Passes:
        def loss(leaves: Leaves, batch: Any) -> jax.Array:
            # Made in here, as variables of nnx want to be where they are used.
            return self.loss_fn(self.layout.put(leaves, self.params), batch)

        return Passes(loss, self._leaves, self.one_by_one)

    @property
    def _leaves(self) -> Leaves:
        """The prunable leaves as they are."""
        return self.layout.take(self.params)

    @property
    def _weights(self) -> Leaves:
        """The prunable leaves, or of a vector of them its shape and dtype."""
        leaves: Any = self._leaves
        if self.layout.is_flat:
            leaves = (jax.ShapeDtypeStruct((self.layout.total,), leaves[0].dtype),)
        return leaves

    @property
    def _is_formed(self) -> bool:
        """Whether products need the rows themselves, not passes."""
        return self.corruption is not None or self.dtype is not None or self.custom

    @property
    def _size(self) -> int:
        """Slots per chunk in products with vectors."""
        return self.chunk if self._is_formed else self.span

    def _chunks(self, size: int) -> Chunks:
        return Chunks(self.n, self.lanes, self.slots, size)

    def _zeros(self) -> Leaves:
        wide = trees.wide(self._weights)
        return tuple(jnp.zeros(w.shape, wide) for w in self._weights)


def _divide(unit: jax.Array | None, arrays: Leaves) -> Leaves:
    """Divide by a unit, in what products are accumulated in: not in bfloat16."""
    if unit is None:
        return arrays
    return tuple(x / unit.astype(x.dtype) for x in arrays)


def each_loss(rows: MatrixFreeRows, leaves: Leaves) -> jax.Array:
    """Compute the loss of each row's examples at other weights, [n]."""
    weights = rows.layout.take(rows.params)
    row = jax.ShapeDtypeStruct((), trees.wide(weights))
    cut = trees.cast_like(rows.layout.unpack(leaves), weights)
    work = lambda chunk: rows._passes.losses(cut, chunk.read(rows.data))  # noqa: E731
    return Chunks(rows.n, rows.lanes, rows.slots, rows.span).collect(work, row)


def _take_apart(rows: MatrixFreeRows) -> tuple[tuple, tuple]:
    """Flatten rows; what compiled code remembers of them keeps no function alive."""
    arrays = tuple(
        (jax.tree_util.GetAttrKey(name), getattr(rows, name)) for name in _ARRAYS
    )
    rest = tuple(getattr(rows, name) for name in _REST)
    return arrays, (*map(Reference, rows.functions), *rest)


def _put_together(aux: tuple, arrays: Iterable) -> MatrixFreeRows:
    """Undo `_take_apart`."""
    loss_fn, corruption, *rest = aux
    fields = dict(zip((*_ARRAYS, *_REST), (*arrays, *rest), strict=True))
    return MatrixFreeRows(loss_fn=loss_fn(), corruption=corruption(), **fields)


jax.tree_util.register_pytree_with_keys(MatrixFreeRows, _take_apart, _put_together)
