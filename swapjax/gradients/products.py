"""Products of explicit gradient rows: one array [n, *shape] per prunable leaf.

They take rows that are in memory, all n of them or a chunk at a time. All products are
accumulated in float32 or wider, whatever dtype the rows have.
"""

import functools
import itertools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from swapjax.core import trees
from swapjax.core.types import Leaves

_NARROW_ROWS = 16  # rows of bfloat16 widened at a time
_PANELS = 4  # of the rows of a Gram matrix; only those on and above the diagonal count
_WORTH_SPLITTING = 256  # rows
_WORTH_GATHERING = 4096  # columns below which those off the support are multiplied too
_BLOCKS, _PARTS = 16, 4  # columns are gathered in blocks, the last in parts of one
_COLUMNS = 2048  # columns at a time where products of all of them would fill memory
_HIGHEST = jax.lax.Precision.HIGHEST


def project(matrices: Leaves, leaves: Leaves) -> jax.Array:
    """Compute ``G v``, [n]."""
    dtype = trees.wide((*matrices, *leaves))

    def product(m: jax.Array, v: jax.Array) -> jax.Array:
        v = v.astype(dtype)
        if m.dtype == dtype:
            # Not flattened: columns of a sharded leaf stay where they are.
            return jnp.tensordot(m, v, v.ndim, precision=_HIGHEST)
        # Widened a few rows at a time: a wide copy of G must never be live.
        one = lambda row: jnp.vdot(row.astype(dtype), v, precision=_HIGHEST)  # noqa: E731
        return jax.lax.map(one, m, batch_size=_NARROW_ROWS)

    parts = (product(m, v) for m, v in zip(matrices, leaves, strict=True))
    return sum(parts, start=jnp.zeros(matrices[0].shape[0], dtype))


def pull_back(matrices: Leaves, residual: jax.Array) -> Leaves:
    """Compute ``G^T r``."""
    dtype = trees.wide(matrices)
    r = residual.astype(dtype)

    def product(m: jax.Array) -> jax.Array:
        if m.dtype == dtype:
            return jnp.tensordot(r, m, 1, precision=_HIGHEST)
        zero = jnp.zeros(m.shape[1:], dtype)
        step = lambda t, row: (t + row[0] * row[1].astype(dtype), None)  # noqa: E731
        return jax.lax.scan(step, zero, (r, m))[0]

    return tuple(product(m) for m in matrices)


def gram(matrices: Leaves, support: Leaves | None = None) -> jax.Array:
    """Compute ``G_S G_S^T``, [n, n], for bool leaves S; by default all columns."""
    masks = (None,) * len(matrices) if support is None else support
    parts = (
        _on_support(flat(m), None, s) for m, s in zip(matrices, masks, strict=True)
    )
    return sum(
        parts, start=jnp.zeros((matrices[0].shape[0],) * 2, trees.wide(matrices))
    )


def products(first: Leaves, second: Leaves, support: Leaves | None = None) -> jax.Array:
    """Compute the inner products of two sets of rows, [rows of first, of second]."""
    masks = (None,) * len(first) if support is None else support
    parts = (
        _on_support(flat(a), flat(b), s)
        for a, b, s in zip(first, second, masks, strict=True)
    )
    shape = (first[0].shape[0], second[0].shape[0])
    return sum(parts, start=jnp.zeros(shape, trees.wide(first)))


def sum_squares(
    matrices: Leaves,
    which: jax.Array,
    lanes: int = 1,
    scale: jax.Array | None = None,
) -> Leaves:
    """Sum the squares of every column over the rows that `which` marks.

    Args:
        matrices: the rows.
        which: ``bool[n]``.
        lanes: into how many equal parts the rows are split over devices.
        scale: what entries are divided by first, so that no square leaves its range.
    """
    dtype = trees.wide(matrices)

    def total(m: jax.Array) -> jax.Array:
        m = m.reshape(lanes, len(m) // lanes, *m.shape[1:])
        counts = which.reshape(*m.shape[:2], *(1,) * (m.ndim - 2))

        def step(i: jax.Array, sums: jax.Array) -> jax.Array:
            row = jax.lax.dynamic_index_in_dim(m, i, 1, keepdims=False)
            count = jax.lax.dynamic_index_in_dim(counts, i, 1, keepdims=False)
            row = row.astype(dtype)
            row = row if scale is None else row / scale
            return sums + jnp.where(count, jnp.square(row), 0)

        # Row by row: a reduction over the first axis strides through memory, and took
        # ten times as long.
        zero = jnp.zeros((lanes, *m.shape[2:]), dtype)
        return jnp.sum(jax.lax.fori_loop(0, m.shape[1], step, zero), axis=0)

    return tuple(total(m) for m in matrices)


def energies(matrices: Leaves, factor: jax.Array) -> Leaves:
    """Compute ``|F G_q|^2`` of every column q, for a factor F, [any, n]."""
    dtype = trees.wide(matrices)

    def one(m: jax.Array) -> jax.Array:
        columns = flat(m)
        size = columns.shape[1]
        width = min(_COLUMNS, size)
        starts = jnp.arange(math.ceil(size / max(width, 1))) * width

        def part(start: jax.Array) -> jax.Array:
            some = jax.lax.dynamic_slice_in_dim(columns, start, width, axis=1)
            moved = jnp.matmul(factor, some.astype(dtype), precision=_HIGHEST)
            return jnp.sum(jnp.square(moved), axis=0)

        def step(out: jax.Array, start: jax.Array) -> tuple[jax.Array, None]:
            # The last part is moved back to be as long as the others.
            start = jnp.minimum(start, size - width)
            return jax.lax.dynamic_update_slice(out, part(start), (start,)), None

        empty = jnp.zeros(size, dtype)
        return jax.lax.scan(step, empty, starts)[0].reshape(m.shape[1:])

    return tuple(one(m) for m in matrices)


def columns(matrices: Leaves, index: jax.Array) -> jax.Array:
    """Take some columns of G, [n, m].

    Args:
        matrices: the rows.
        index: ``int32[m]``, places in the leaves laid end to end; a place beyond
            their end gives a column of zeros.
    """
    dtype, offset = trees.wide(matrices), 0
    out = jnp.zeros((matrices[0].shape[0], index.shape[0]), dtype)
    for m in matrices:
        size = math.prod(m.shape[1:])
        inside = (index >= offset) & (index < offset + size)
        place = jnp.clip(index - offset, 0, max(size - 1, 0))

        def choose(
            out: jax.Array,
            m: jax.Array = m,
            inside: jax.Array = inside,
            place: jax.Array = place,
        ) -> jax.Array:
            chosen = jnp.take(flat(m), place, axis=1).astype(dtype)
            return jnp.where(inside, chosen, out)

        if size:
            # Most leaves of a large network hold none of them.
            out = jax.lax.cond(jnp.any(inside), choose, lambda o: o, out)
        offset += size
    return out


def some_columns(matrix: jax.Array, index: jax.Array) -> jax.Array:
    """Take columns of one leaf, [n, c]; zero beyond its end."""
    wide = trees.wide((matrix,))
    if not matrix.size:
        return jnp.zeros((len(matrix), *index.shape), wide)
    some = jnp.take(flat(matrix), index, axis=1, mode="fill", fill_value=0)
    return some.astype(wide)


def moment(columns: jax.Array) -> jax.Array:
    """Compute ``G_B^T G_B``, [c, c], of some columns."""
    return jnp.matmul(columns.T, columns, precision=_HIGHEST)


def flat(leaf: jax.Array) -> jax.Array:
    """Reshape the rows of a leaf to a matrix, [n, size]."""
    return leaf.reshape(leaf.shape[0], math.prod(leaf.shape[1:]))


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(
        a, b.T, precision=_HIGHEST, preferred_element_type=trees.wide((a, b))
    )


def _on_support(
    first: jax.Array, second: jax.Array | None, mask: jax.Array | None
) -> jax.Array:
    """Multiply two matrices, or one with itself, over the columns that a mask keeps.

    The cost is the rows of each times the number of columns multiplied. How many are
    kept is traced, so the columns are gathered and multiplied a static number at a
    time, and what is left over in one of a few smaller numbers, chosen when the program
    runs. Every leaf is on its own, since in a network of many the parts of all of them
    together would fit none.
    """
    kernel = functools.partial(_multiply, first, second)
    if mask is None:
        return kernel(lambda m: m)
    mask = mask.ravel()
    if mask.size <= _WORTH_GATHERING:
        return kernel(lambda m: jnp.where(mask, m, jnp.zeros((), m.dtype)))
    part = math.ceil(mask.size / (_BLOCKS * _PARTS))
    width = _PARTS * part
    kept = jnp.sum(mask, dtype=jnp.int32)
    (index,) = jnp.nonzero(mask, size=_BLOCKS * width, fill_value=mask.size)

    def gathered(start: jax.Array, size: int) -> jax.Array:
        some = jax.lax.dynamic_slice_in_dim(index, start, size)
        take = functools.partial(jnp.take, axis=1, mode="fill", fill_value=0)
        return kernel(lambda m: take(m, some))

    def add_block(i: jax.Array, total: jax.Array) -> jax.Array:
        return total + gathered(i * width, width)

    def add_rest(parts: int, total: jax.Array) -> jax.Array:
        return total + gathered(blocks * width, parts * part) if parts else total

    blocks = kept // width
    rest = -(-(kept - blocks * width) // part)
    shape = len(first), len(first if second is None else second)
    empty = jnp.zeros(shape, trees.wide((first,)))
    total = jax.lax.fori_loop(0, blocks, add_block, empty)
    branches = [functools.partial(add_rest, parts) for parts in range(_PARTS + 1)]
    return jax.lax.switch(rest, branches, total)


def _multiply(
    first: jax.Array,
    second: jax.Array | None,
    restrict: Callable[[jax.Array], jax.Array],
) -> jax.Array:
    """Compute ``A B^T`` of two restricted matrices, or ``A A^T`` without a second.

    A Gram matrix is assembled from panels of rows: the part below its diagonal is the
    transpose of the part above, which saves nearly half of the work. The panels are
    restricted one by one, since slices of the restricted matrix would be copied.
    """
    if second is not None:
        return _dot(restrict(first), restrict(second))
    n = first.shape[0]
    count = _PANELS if n >= _WORTH_SPLITTING else 1
    edges = [n * i // count for i in range(count + 1)]
    whole = restrict(first)
    panels = [whole[a:b] for a, b in itertools.pairwise(edges)]
    upper = {
        (i, j): _dot(panels[i], panels[j])
        for i in range(count)
        for j in range(i, count)
    }
    return jnp.block(
        [
            [upper[i, j] if i <= j else upper[j, i].T for j in range(count)]
            for i in range(count)
        ]
    )
