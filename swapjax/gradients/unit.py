"""The unit of gradient rows: a loss in other units must give the same network.

Rows scale with the loss, and so do projections; Fisher and Gram matrices with its
square. In their own unit, the root mean square of their norms, rows have a mean squared
norm of 1 whatever the loss is measured in: that is the mean eigenvalue of the Gram
matrix, and the trace of the Fisher. What is said of them, dampings above all, is said
relative to that. A weight without gradients leaves the unit alone, and rows of several
examples have one of their own.
"""

import dataclasses

import jax
import jax.numpy as jnp

from swapjax.core import trees
from swapjax.core.compiled import Compiled
from swapjax.core.types import Leaves
from swapjax.gradients import products
from swapjax.gradients.build import form, require_finite, storage_of
from swapjax.gradients.chunks import Chunk, Chunks
from swapjax.gradients.matrix_free import MatrixFreeRows
from swapjax.gradients.operator import GradientOperator, Storage
from swapjax.gradients.stored import StoredRows
from swapjax.sparsity.plan import Plan


def in_unit(rows: GradientOperator) -> GradientOperator:
    """Divide rows by the root mean square of their norms; once, however often called.

    The norms are over the prunable entries, of rows as they are multiplied, corruption
    included. Rows of zeros have the unit 1. Matrix-free rows are measured in a pass
    that forms them, and divided in every product. Losses stay as they are. Pure.

    Args:
        rows: stored or matrix-free; an operator of another kind is left as it is.
    """
    if not isinstance(rows, StoredRows | MatrixFreeRows) or rows.unit is not None:
        return rows
    if isinstance(rows, StoredRows):
        return _divide(rows)
    return dataclasses.replace(rows, unit=_find(dataclasses.replace(rows, dtype=None)))


def form_in_unit(
    free: MatrixFreeRows, plan: Plan, storage: Storage, old: Leaves = ()
) -> StoredRows | MatrixFreeRows:
    """Form rows as `form` does, in their unit.

    What is stored in float32 is divided where it lies. Of narrower rows the unit is
    measured first, since they might not hold what is not divided yet.

    Args:
        free: the recipe.
        plan: the prunable leaves.
        storage: as `form` takes it.
        old: the matrices of rows that are not needed any more, which are written over
            if they fit: fresh memory costs more time than the gradients of a small
            network do.

    Raises:
        ValueError: as `form` does.
    """
    if free.dtype is not None:
        wide = form(dataclasses.replace(free, dtype=None), plan, "matrix-free")
        assert isinstance(wide, MatrixFreeRows)
        return form(dataclasses.replace(free, unit=_find(wide)), plan, storage)
    if free.layout.is_flat and storage_of(free, storage) == "stored":
        return _store_in_place(free, plan, old)
    rows = form(free, plan, storage)
    if isinstance(rows, StoredRows):
        return _divide_in_place((), rows.matrices, rows.source, owners=free.functions)
    return dataclasses.replace(rows, unit=_find(rows))


def _store_in_place(free: MatrixFreeRows, plan: Plan, old: Leaves) -> StoredRows:
    """Form, check and divide the rows in one program."""
    shapes = [(free.n, *x.shape) for x in free.row]
    if [x.shape for x in old] != shapes or any(x.is_deleted() for x in old):
        old = tuple(
            jnp.zeros(shape, x.dtype) for shape, x in zip(shapes, free.row, strict=True)
        )
    rows, sums, is_finite = _store_divided((), old, free, owners=free.functions)
    if not is_finite:
        require_finite(sums, free, plan)
    return rows


def _stored_divided(
    old: Leaves, free: MatrixFreeRows
) -> tuple[StoredRows, Leaves, jax.Array]:
    rows = StoredRows(free.store(into=old), free)
    sums = rows.pull_back(jnp.ones(rows.n))
    return _divide(rows), sums, trees.are_finite(sums)


_store_divided = Compiled(_stored_divided, donate=(0,))


def _divide(rows: StoredRows) -> StoredRows:
    matrices = rows.matrices
    scale = _largest(matrices)
    squares = _sum_squares(matrices, rows.source, scale)
    unit = _root(scale, squares, rows.n)
    divided = tuple(
        (m / unit.astype(trees.wide((m,)))).astype(m.dtype) for m in matrices
    )
    return StoredRows(divided, dataclasses.replace(rows.source, unit=unit))


def _divided(matrices: Leaves, source: MatrixFreeRows) -> StoredRows:
    return _divide(StoredRows(matrices, source))


_divide_in_place = Compiled(_divided, donate=(0,))


def _sum_squares(
    matrices: Leaves, source: MatrixFreeRows, scale: jax.Array
) -> jax.Array:
    lanes = 1 if source.n % source.lanes else source.lanes
    every = jnp.ones(source.n, bool)
    return _total(products.sum_squares(matrices, every, lanes, scale))


def _find(rows: MatrixFreeRows) -> jax.Array:
    """Measure the unit in one pass, what was summed in units of the largest entry."""
    return _measure((), rows, owners=rows.functions)


@Compiled
def _measure(rows: MatrixFreeRows) -> jax.Array:

    def add(
        carry: tuple[jax.Array, jax.Array], chunk: Chunk
    ) -> tuple[jax.Array, jax.Array]:
        scale, total = carry
        formed = rows.form(chunk)
        largest = jnp.maximum(scale, _largest(formed))
        part = products.sum_squares(formed, chunk.fresh, rows.lanes, largest)
        return largest, total * jnp.square(scale / largest) + _total(part)

    wide = trees.wide(rows.layout.split(rows.params))
    start = jnp.asarray(jnp.finfo(wide).tiny, wide), jnp.zeros((), wide)
    chunks = Chunks(rows.n, rows.lanes, rows.slots, rows.chunk)
    scale, total = chunks.fold(add, start)
    return _root(scale, total, rows.n)


def _largest(matrices: Leaves) -> jax.Array:
    """Find the largest entry, and a normal number where all are zero."""
    wide = trees.wide(matrices)
    found = [jnp.max(jnp.abs(m), initial=0).astype(wide) for m in matrices]
    return jnp.maximum(jnp.stack(found).max(), jnp.finfo(wide).tiny)


def _total(squares: Leaves) -> jax.Array:
    return jnp.stack([jnp.sum(s) for s in squares]).sum()


def _root(scale: jax.Array, squares: jax.Array, n: int) -> jax.Array:
    """Compute ``scale sqrt(squares / n)``, and 1 where that says nothing."""
    unit = scale * jnp.sqrt(squares / n)
    return jnp.where((unit > 0) & jnp.isfinite(unit), unit, 1)
