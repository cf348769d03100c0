"""The Fisher in diagonal blocks: chunks of each leaf, one output after the other.

``H_B = G_B^T G_B / n + lambda I`` for every block B of c entries, which is formed,
factored and forgotten, one block at a time. O(n p c) time for p entries in all, or
O(n^2 p) for c > n.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from swapjax.core.types import Leaves
from swapjax.gradients.operator import GradientOperator
from swapjax.gradients.stored import StoredRows
from swapjax.pruning.solvers.block_forms import Block, ByColumns, ByMoment
from swapjax.sparsity.layout import Layout

_HIGHEST = jax.lax.Precision.HIGHEST


class Curvature(NamedTuple):
    """What the inverse Fisher says of every entry.

    Attributes:
        inverse_diagonal: ``[H^-1]_qq``, leaves.
        newton: ``H^-1 g``, leaves, or None without a slope.
        damping: the largest lambda that any block needed.
        raised: whether one needed more than was asked for.
    """

    inverse_diagonal: Leaves
    newton: Leaves | None
    damping: jax.Array
    raised: jax.Array


class Update(NamedTuple):
    """Weights after some were removed.

    Attributes:
        weights: leaves, zero where removed.
        objective: ``n/2 (w - wbar)^T H (w - wbar)`` if the weights were only set to
            zero, and of those found, [2].
        damping: the largest lambda that any block needed.
        raised: whether one needed more than was asked for.
    """

    weights: Leaves
    objective: jax.Array
    damping: jax.Array
    raised: jax.Array


def partition(
    weights: Leaves, size: int, axis: int | None, layout: Layout | None = None
) -> Leaves:
    """Cut each layer into chunks of consecutive entries.

    Args:
        weights: the leaves.
        size: entries of a block; the last of a layer may have fewer.
        axis: which axis of a leaf counts outputs; None for what roles tell, and the
            last where they do not. A chunk goes on with the next output where one ends.
        layout: the roles of the leaves, and their layers; None for no layers in them.

    Returns:
        ``int32[number, c]`` a leaf: places in it, the leaf's size for none.

    Raises:
        ValueError: for an axis that a leaf does not have, or that counts its layers.
    """

    def chunks(i: int, leaf: jax.Array) -> jax.Array:
        if axis is not None and not -leaf.ndim <= axis < leaf.ndim:
            raise ValueError(
                f"output_axis: {axis} is no axis of a leaf of shape {leaf.shape}"
            )
        stack = () if layout is None else layout.stacking.axes[i]
        told = () if layout is None else layout.roles[i].outputs
        outputs: tuple[int, ...] = ((-1 if axis is None else axis) % leaf.ndim,)
        if axis is not None and outputs[0] in stack:
            raise ValueError(
                f"output_axis: {axis} counts the layers of a leaf of shape "
                f"{leaf.shape}, no outputs; leave it out for what the plan knows"
            )
        if axis is None and (told or stack):
            outputs = told
        inputs = tuple(a for a in range(leaf.ndim) if a not in stack + outputs)
        places = jnp.arange(leaf.size, dtype=jnp.int32).reshape(leaf.shape)
        layers = math.prod(leaf.shape[a] for a in stack)
        order = places.transpose(stack + outputs + inputs).reshape(layers, -1)
        width = max(1, min(size, order.shape[1]))
        missing = -order.shape[1] % width
        padded = jnp.pad(order, ((0, 0), (0, missing)), constant_values=leaf.size)
        return padded.reshape(-1, width)

    return tuple(chunks(i, leaf) for i, leaf in enumerate(weights))


def examine(
    rows: GradientOperator,
    blocks: Leaves,
    weights: Leaves,
    dampings: jax.Array,
    slope: Leaves | None = None,
) -> Curvature:
    """Find the diagonal of the inverse, and its product with a slope.

    Args:
        rows: the operator G.
        blocks: from `partition`.
        weights: leaves, for their shapes.
        dampings: several lambda, [m]: every block is formed once for all of them.
        slope: g, leaves.

    Returns:
        The curvature of each damping, with a leading axis [m] in every array.
    """

    def work(block: Block, *slopes: jax.Array) -> tuple:
        def one(damping: jax.Array) -> tuple:
            found = block.invert(damping)
            newton = [found.solve(g) for g in slopes]
            return found.diagonal(), newton, found.damping, found.raised

        return jax.lax.map(one, dampings)

    extras = [] if slope is None else [_cut(blocks, slope)]
    found = _map_blocks(rows, work, blocks, weights, *extras)
    inverse, newton, used, raised = zip(*found, strict=True)
    return Curvature(
        _join(blocks, inverse, weights),
        None if slope is None else _join(blocks, [g for (g,) in newton], weights),
        jnp.concatenate(used).max(axis=0),
        jnp.concatenate(raised).any(axis=0),
    )


def remove(
    rows: GradientOperator,
    blocks: Leaves,
    weights: Leaves,
    support: Leaves,
    dampings: jax.Array,
) -> Update:
    """Remove what is off a support, and let the rest of each block make up for it.

    The weights become the minimiser of ``(w - wbar)^T H (w - wbar)`` on the support,
    block by block, in closed form.

    Args:
        rows: the operator G.
        blocks: from `partition`.
        weights: wbar for each damping, leaves with a leading axis [m].
        support: bool leaves with that axis.
        dampings: several lambda, [m].

    Returns:
        The update for each damping, with a leading axis [m] in every array.
    """

    def adapt(
        block: Block, damping: jax.Array, keep: jax.Array, gone: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        return block.make_up(keep, gone, damping)

    return _remove(rows, blocks, weights, support, dampings, adapt)


def remove_alone(
    rows: GradientOperator,
    blocks: Leaves,
    weights: Leaves,
    support: Leaves,
    dampings: jax.Array,
    inverse_diagonal: Leaves,
) -> Update:
    """Remove as `remove` does, but sum the changes that each removal alone calls for.

    Args:
        rows: the operator G.
        blocks: from `partition`.
        weights: wbar for each damping, leaves with a leading axis [m].
        support: bool leaves with that axis.
        dampings: several lambda, [m].
        inverse_diagonal: ``[H^-1]_qq``, leaves with that axis.

    Returns:
        The update for each damping, with a leading axis [m] in every array.
    """

    def adapt(
        block: Block,
        damping: jax.Array,
        keep: jax.Array,
        gone: jax.Array,
        diagonal: jax.Array,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        found = block.invert(damping)
        share = gone / jnp.where(diagonal > 0, diagonal, 1)  # 0 where there is none
        return -found.solve(share), found.damping, found.raised

    return _remove(rows, blocks, weights, support, dampings, adapt, inverse_diagonal)


def _remove(
    rows: GradientOperator,
    blocks: Leaves,
    weights: Leaves,
    support: Leaves,
    dampings: jax.Array,
    adapt: Callable[..., tuple[jax.Array, jax.Array, jax.Array]],
    *extras: Leaves,
) -> Update:
    def work(block: Block, *given: jax.Array) -> tuple:
        def one(args: tuple) -> tuple:
            damping, w, keep, *extra = args
            gone = jnp.where(keep, 0, w)
            change, used, raised = adapt(block, damping, keep, gone, *extra)
            change = jnp.where(keep, change, 0) - gone
            values = [
                0.5 * (block.curved(d) + used * jnp.vdot(d, d)) for d in (gone, change)
            ]
            return jnp.where(keep, w + change, 0), jnp.stack(values), used, raised

        return jax.lax.map(one, (dampings, *given))

    cut = jax.vmap(lambda leaves: _cut(blocks, leaves), out_axes=1)
    several = (cut(leaves) for leaves in (weights, support, *extras))
    like = tuple(w[0] for w in weights)
    found = _map_blocks(rows, work, blocks, like, *several)
    new, values, used, raised = zip(*found, strict=True)
    return Update(
        _join(blocks, new, like),
        rows.n * jnp.sum(jnp.concatenate(values), axis=0),
        jnp.concatenate(used).max(axis=0),
        jnp.concatenate(raised).any(axis=0),
    )


def _map_blocks(
    rows: GradientOperator,
    work: Callable,
    blocks: Leaves,
    like: Leaves,
    *extras: Leaves,
) -> tuple:
    """Do work on every block, in the smaller form where columns are at hand."""
    if not isinstance(rows, StoredRows):

        def of_moment(moment: jax.Array, real: jax.Array, *extra: jax.Array) -> Any:
            return work(ByMoment(moment, real), *extra)

        return rows.map_blocks(of_moment, blocks, _real(blocks, like), *extras)

    def of_columns(columns: jax.Array, real: jax.Array, *extra: jax.Array) -> Any:
        n, width = columns.shape
        if n < width:
            return work(ByColumns.of(columns), *extra)
        moment = jnp.matmul(columns.T, columns, precision=_HIGHEST) / n
        return work(ByMoment(moment, real), *extra)

    return rows.map_columns(of_columns, blocks, _real(blocks, like), *extras)


def _real(blocks: Leaves, like: Leaves) -> Leaves:
    return tuple(b < leaf.size for b, leaf in zip(blocks, like, strict=True))


def _cut(blocks: Leaves, leaves: Leaves) -> Leaves:
    """Gather the entries of every block, [number, c]; zero or False for none."""

    def take(leaf: jax.Array, b: jax.Array) -> jax.Array:
        if not leaf.size:  # which jnp.take gives another shape
            return jnp.zeros(b.shape, leaf.dtype)
        return jnp.take(leaf.ravel(), b, mode="fill", fill_value=0)

    return tuple(map(take, leaves, blocks))


def _join(blocks: Leaves, values: Sequence[jax.Array], like: Leaves) -> Leaves:
    """Undo `_cut`, of values [number, m, c]: leaves with a leading axis [m]."""

    def put(b: jax.Array, v: jax.Array, leaf: jax.Array) -> jax.Array:
        m = v.shape[1]
        flat = jnp.zeros((m, leaf.size), v.dtype)
        flat = flat.at[:, b].set(v.swapaxes(0, 1), mode="drop")
        return flat.reshape(m, *leaf.shape)

    return tuple(map(put, blocks, values, like))
