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
import numpy as np

from swapjax.core.types import Leaves
from swapjax.gradients.operator import Blocks, Columns, GradientOperator
from swapjax.gradients.stored import StoredRows
from swapjax.pruning.solvers.block_forms import Block, ByColumns, ByMoment
from swapjax.sparsity.layout import Layout

_HIGHEST = jax.lax.Precision.HIGHEST
_Axes = tuple[tuple[int, ...], tuple[int, ...]]  # of layers, of outputs


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
) -> Blocks:
    """Cut each layer into chunks of consecutive entries.

    Args:
        weights: the leaves, or the vector of them.
        size: entries of a block; the last of a layer may have fewer.
        axis: which axis of a leaf counts outputs; None for what roles tell, and the
            last where they do not. A chunk goes on with the next output where one ends.
        layout: the roles of the leaves, and their layers; None for no layers in them.

    Returns:
        Blocks of each leaf; of the vector, blocks of each width that there is.

    Raises:
        ValueError: for an axis that a leaf does not have, or that counts its layers.
    """
    plain = None if layout is None else layout.plain
    shapes = [w.shape for w in weights] if plain is None else list(plain.shapes)
    axes = [_axes(i, shape, axis, plain) for i, shape in enumerate(shapes)]
    if layout is None or not layout.is_flat:
        parts = zip(shapes, axes, strict=True)
        cut = (_chunks(shape, of, size) for shape, of in parts)
        return tuple(Columns(leaf, places) for leaf, places in enumerate(cut))
    starts: dict[tuple, list[int]] = {}
    for shape, of, begin in zip(shapes, axes, layout.starts, strict=True):
        starts.setdefault((shape, of), []).append(begin)
    by_width: dict[int, list[jax.Array]] = {}
    for (shape, of), offsets in starts.items():
        # What leaves of one shape have in common is worked out once.
        own = _chunks(shape, of, size)
        moved = own + np.asarray(offsets, np.int32)[:, None, None]
        places = jnp.where(own < math.prod(shape), moved, layout.total)
        by_width.setdefault(own.shape[1], []).append(places.reshape(-1, own.shape[1]))
    return tuple(Columns(0, jnp.concatenate(of)) for of in by_width.values())


def _axes(
    leaf: int, shape: tuple[int, ...], axis: int | None, layout: Layout | None
) -> _Axes:
    """Tell which axes of a leaf count its layers, and which its outputs."""
    if axis is not None and not -len(shape) <= axis < len(shape):
        raise ValueError(f"output_axis: {axis} is no axis of a leaf of shape {shape}")
    stack = () if layout is None else layout.stacking.axes[leaf]
    told = () if layout is None else layout.roles[leaf].outputs
    outputs: tuple[int, ...] = ((-1 if axis is None else axis) % len(shape),)
    if axis is not None and outputs[0] in stack:
        raise ValueError(
            f"output_axis: {axis} counts the layers of a leaf of shape {shape}, no "
            "outputs; leave it out for what the plan knows"
        )
    return stack, told if axis is None and (told or stack) else outputs


def _chunks(shape: tuple[int, ...], axes: _Axes, size: int) -> jax.Array:
    """List the places of a leaf, block by block, [number, c]; its size for none."""
    entries, (stack, outputs) = math.prod(shape), axes
    inputs = tuple(a for a in range(len(shape)) if a not in stack + outputs)
    places = jnp.arange(entries, dtype=jnp.int32).reshape(shape)
    layers = math.prod(shape[a] for a in stack)
    order = places.transpose(stack + outputs + inputs).reshape(layers, -1)
    width = max(1, min(size, order.shape[1]))
    missing = -order.shape[1] % width
    padded = jnp.pad(order, ((0, 0), (0, missing)), constant_values=entries)
    return padded.reshape(-1, width)


def examine(
    rows: GradientOperator,
    blocks: Blocks,
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
    blocks: Blocks,
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
    blocks: Blocks,
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
    blocks: Blocks,
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
    blocks: Blocks,
    like: Leaves,
    *extras: tuple[jax.Array, ...],
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


def _real(blocks: Blocks, like: Leaves) -> tuple[jax.Array, ...]:
    return tuple(b.places < like[b.leaf].size for b in blocks)


def _cut(blocks: Blocks, leaves: Leaves) -> tuple[jax.Array, ...]:
    """Gather the entries of every block, [number, c]; zero or False for none."""

    def take(leaf: jax.Array, places: jax.Array) -> jax.Array:
        if not leaf.size:  # which jnp.take gives another shape
            return jnp.zeros(places.shape, leaf.dtype)
        return jnp.take(leaf.ravel(), places, mode="fill", fill_value=0)

    return tuple(take(leaves[b.leaf], b.places) for b in blocks)


def _join(blocks: Blocks, values: Sequence[jax.Array], like: Leaves) -> Leaves:
    """Undo `_cut`, of values [number, m, c]: leaves with a leading axis [m]."""
    m, dtype = values[0].shape[1], values[0].dtype
    found = [jnp.zeros((m, leaf.size), dtype) for leaf in like]
    for b, v in zip(blocks, values, strict=True):
        to = found[b.leaf].at[:, b.places]
        found[b.leaf] = to.set(v.swapaxes(0, 1), mode="drop")
    return tuple(f.reshape(m, *w.shape) for f, w in zip(found, like, strict=True))
