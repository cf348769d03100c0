"""The Hessian of the mean loss times a vector, a chunk of rows at a time."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from swapjax.core import trees
from swapjax.core.types import Leaves
from swapjax.gradients import products
from swapjax.gradients.chunks import Chunk, Chunks
from swapjax.loops.convolutions.canonical import canonical_convolutions


def curve(rows: Any, leaves: Leaves) -> Leaves:
    """Compute ``H v`` of clean rows; see `MatrixFreeRows.curve`.

    Args:
        rows: matrix-free.
        leaves: v.
    """
    weights = rows.layout.split(rows.params)
    tangent = trees.cast_like(leaves, weights)
    if rows.custom:
        return _curve_by_reverse_mode(rows, weights, tangent)
    mean = jnp.full(rows.n, 1 / rows.n)
    gradient = lambda at: rows.at(at).pull_back(mean)  # noqa: E731
    return jax.jvp(gradient, (weights,), (tangent,))[1]


def _curve_by_reverse_mode(rows: Any, weights: Leaves, tangent: Leaves) -> Leaves:
    """Compute ``(dg/dw)^T v``, which is ``H v`` where the gradient g is one."""
    fast = canonical_convolutions if rows.one_by_one else lambda work: work

    def add(total: Leaves, chunk: Chunk) -> Leaves:
        def along(at: Leaves) -> jax.Array:
            there = dataclasses.replace(rows, params=rows.layout.put(at, rows.params))
            found = products.project(there.form(chunk), tangent)
            return jnp.sum(jnp.where(chunk.fresh, found, 0))

        part = rows.layout.pack(fast(jax.grad(along))(rows.layout.take(rows.params)))
        return tuple(t + q.astype(t.dtype) for t, q in zip(total, part, strict=True))

    wide = trees.wide(weights)
    zeros = tuple(jnp.zeros(w.shape, wide) for w in weights)
    chunks = Chunks(rows.n, rows.lanes, rows.slots, rows.chunk)
    return tuple(t / rows.n for t in chunks.fold(add, zeros))
