"""What a factor makes of the columns of rows that are never all stored."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from swapjax.core import trees
from swapjax.core.types import Leaves
from swapjax.gradients import products
from swapjax.gradients.chunks import Chunk, Chunks

_HIGHEST = jax.lax.Precision.HIGHEST


def by_rows(
    form: Callable[[Chunk], Leaves],
    chunks: Chunks,
    weights: Leaves,
    factor: jax.Array,
) -> Leaves:
    """Compute ``|F G_q|^2``, a few rows of F G at a time from all rows of G.

    Args:
        form: the rows of a chunk.
        chunks: how the rows are laid out.
        weights: the prunable leaves, for their shapes and dtype.
        factor: F, [any, n].
    """
    count = factor.shape[0]
    wide = trees.wide(weights)

    def squares(total: Leaves, part: Chunk) -> Leaves:
        some = jnp.where(part.fresh[:, None], part.read(factor[None]), 0)
        width = some.shape[0]

        def add(out: Leaves, chunk: Chunk) -> Leaves:
            entries = chunk.pick(some)
            return tuple(
                o + jnp.matmul(entries, products.flat(m), precision=_HIGHEST)
                for o, m in zip(out, form(chunk), strict=True)
            )

        zeros = tuple(jnp.zeros((width, w.size), wide) for w in weights)
        moved = chunks.fold(add, zeros)
        return tuple(
            t + jnp.sum(jnp.square(m), axis=0).reshape(t.shape)
            for t, m in zip(total, moved, strict=True)
        )

    # The rows of F, which are no rows of G, are chunked in the same way.
    parts = Chunks(count, 1, count, min(chunks.size, count))
    return parts.fold(squares, tuple(jnp.zeros(w.shape, wide) for w in weights))
