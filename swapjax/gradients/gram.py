"""The Gram matrix of rows that are never all stored, from a few columns at a time.

Every pair of rows enters it, so all rows must be at hand at once, but not all of their
columns: it is the sum of the Gram matrices of disjoint sets of columns. A round takes a
pass that forms all rows and keeps as many columns of them as memory has room for.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from swapjax.core import trees
from swapjax.core.types import Leaves
from swapjax.gradients import products
from swapjax.gradients.chunks import Chunk, Chunks
from swapjax.sparsity import kept_index

_ENTRIES = 2**27  # of the columns of a round, at least: half a GiB of float32
_COLUMNS = 2**13  # of a block: gathered and multiplied at once


def by_columns(
    form: Callable[[Chunk], Leaves],
    chunks: Chunks,
    weights: Leaves,
    support: Leaves | None = None,
) -> jax.Array:
    """Compute ``G_S G_S^T``, [n, n], of rows that are formed a chunk at a time.

    Holds as many columns as fit twice the memory of weights, or half a GiB. Forms all
    rows once a round; for large weights there are n/2 times the density of S.

    Args:
        form: the rows of a chunk.
        chunks: how the rows are laid out.
        weights: the prunable leaves, for their sizes and dtype.
        support: bool leaves S; by default all columns.
    """
    wide = trees.wide(weights)
    total = sum(w.size for w in weights)
    width = max(1, min(_COLUMNS, total))
    room = max(2 * total, _ENTRIES) // (chunks.n * width)
    most = max(1, min(room, math.ceil(total / width)))  # blocks a round
    numbered = None if support is None else kept_index.number(support)
    count = total if numbered is None else numbered.total
    blocks = -(-count // width)

    def places(block: jax.Array) -> jax.Array:
        if numbered is None:
            return block * width + jnp.arange(width, dtype=jnp.int32)
        return numbered.places(block * width, width)

    def add_round(r: jax.Array, out: jax.Array) -> jax.Array:
        index = jax.lax.map(places, r * most + jnp.arange(most, dtype=jnp.int32))
        here = jnp.minimum(blocks - r * most, most)
        found = _gather(form, chunks, index, here, wide)

        def add(b: jax.Array, out: jax.Array) -> jax.Array:
            return out + products.gram((found[b, : chunks.n],))

        return jax.lax.fori_loop(0, here, add, out)

    empty = jnp.zeros((chunks.n, chunks.n), wide)
    return jax.lax.fori_loop(0, -(-blocks // most), add_round, empty)


def _gather(
    form: Callable[[Chunk], Leaves],
    chunks: Chunks,
    index: jax.Array,
    here: jax.Array,
    dtype: jnp.dtype,
) -> jax.Array:
    """Gather blocks of columns of all rows, in one pass that forms them.

    Args:
        form: the rows of a chunk.
        chunks: how the rows are laid out.
        index: ``int32[blocks, width]``, places in the leaves end to end.
        here: how many of the blocks to gather; the others stay zero.
        dtype: of the result.

    Returns:
        An array [blocks, lanes * slots, width], with the padding.
    """
    most, width = index.shape

    def add(found: jax.Array, chunk: Chunk) -> jax.Array:
        rows = form(chunk)

        def one(b: jax.Array, found: jax.Array) -> jax.Array:
            return chunk.write(found, products.columns(rows, index[b]), b)

        return jax.lax.fori_loop(0, here, one, found)

    empty = jnp.zeros((most, chunks.lanes, chunks.slots, width), dtype)
    found = chunks.fold(add, empty)
    return found.reshape(most, chunks.lanes * chunks.slots, width)
