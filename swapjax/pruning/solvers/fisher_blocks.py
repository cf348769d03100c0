"""The Fisher in diagonal blocks: chunks of each leaf, one output after the other.

``H_B = G_B^T G_B / n + lambda I`` for every block B of c entries, which is formed,
factored and forgotten, one block at a time. O(n p c) time for p entries in all.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from swapjax.core.types import Leaves
from swapjax.gradients.operator import GradientOperator
from swapjax.pruning.solvers import cholesky
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
    damping: jax.Array | float,
    slope: Leaves | None = None,
) -> Curvature:
    """Find the diagonal of the inverse, and its product with a slope.

    Args:
        rows: the operator G.
        blocks: from `partition`.
        weights: leaves, for their shapes.
        damping: lambda.
        slope: g, leaves.
    """

    def work(fisher: jax.Array, real: jax.Array, *slopes: jax.Array) -> tuple:
        factor = _factor(fisher, real, damping)
        inverse = jnp.sum(jnp.square(factor.inverse_root()), axis=0)
        return inverse, [factor.solve(g) for g in slopes], factor.ridge, factor.raised

    extras = [] if slope is None else [_cut(blocks, slope)]
    found = rows.map_blocks(work, blocks, _real(blocks, weights), *extras)
    inverse, newton, ridges, raised = zip(*found, strict=True)
    return Curvature(
        _join(blocks, inverse, weights),
        None if slope is None else _join(blocks, [g for (g,) in newton], weights),
        jnp.concatenate(ridges).max(),
        jnp.concatenate(raised).any(),
    )


def remove(
    rows: GradientOperator,
    blocks: Leaves,
    weights: Leaves,
    support: Leaves,
    damping: jax.Array | float,
) -> Update:
    """Remove what is off a support, and let the rest of each block make up for it.

    The weights become the minimiser of ``(w - wbar)^T H (w - wbar)`` on the support,
    block by block, in closed form.

    Args:
        rows: the operator G.
        blocks: from `partition`.
        weights: wbar, leaves.
        support: bool leaves.
        damping: lambda.
    """

    def adapt(
        fisher: jax.Array, real: jax.Array, keep: jax.Array, gone: jax.Array
    ) -> tuple[jax.Array, cholesky.Factor]:
        inside = keep[:, None] & keep
        factor = _factor(jnp.where(inside, fisher, 0), real & keep, damping)
        pull = jnp.matmul(fisher, gone, precision=_HIGHEST)
        return factor.solve(jnp.where(keep, pull, 0)), factor

    return _remove(rows, blocks, weights, support, adapt)


def remove_alone(
    rows: GradientOperator,
    blocks: Leaves,
    weights: Leaves,
    support: Leaves,
    damping: jax.Array | float,
    inverse_diagonal: Leaves,
) -> Update:
    """Remove as `remove` does, but sum the changes that each removal alone calls for.

    Args:
        rows: the operator G.
        blocks: from `partition`.
        weights: wbar, leaves.
        support: bool leaves.
        damping: lambda.
        inverse_diagonal: ``[H^-1]_qq``, leaves.
    """

    def adapt(
        fisher: jax.Array,
        real: jax.Array,
        keep: jax.Array,
        gone: jax.Array,
        diagonal: jax.Array,
    ) -> tuple[jax.Array, cholesky.Factor]:
        factor = _factor(fisher, real, damping)
        share = gone / jnp.where(real, diagonal, 1)
        return -factor.solve(share), factor

    return _remove(rows, blocks, weights, support, adapt, inverse_diagonal)


def _remove(
    rows: GradientOperator,
    blocks: Leaves,
    weights: Leaves,
    support: Leaves,
    adapt: Callable[..., tuple[jax.Array, cholesky.Factor]],
    *extras: Leaves,
) -> Update:
    def work(
        fisher: jax.Array,
        real: jax.Array,
        w: jax.Array,
        keep: jax.Array,
        *extra: jax.Array,
    ) -> tuple:
        gone = jnp.where(keep, 0, w)
        change, factor = adapt(fisher, real, keep, gone, *extra)
        change = jnp.where(keep, change, 0) - gone
        values = [_value(fisher, d, factor.ridge) for d in (gone, change)]
        new = jnp.where(keep, w + change, 0)
        return new, jnp.stack(values), factor.ridge, factor.raised

    found = rows.map_blocks(
        work,
        blocks,
        _real(blocks, weights),
        *(_cut(blocks, leaves) for leaves in (weights, support, *extras)),
    )
    new, values, ridges, raised = zip(*found, strict=True)
    return Update(
        _join(blocks, new, weights),
        rows.n * jnp.sum(jnp.concatenate(values), axis=0),
        jnp.concatenate(ridges).max(),
        jnp.concatenate(raised).any(),
    )


def _factor(
    fisher: jax.Array, real: jax.Array, damping: jax.Array | float
) -> cholesky.Factor:
    """Factor ``H_B``; what is not real stands apart, and needs no damping."""
    filled = fisher + jnp.diag(jnp.where(real, 0.0, 1.0))
    return cholesky.factor(filled, damping, jnp.trace(fisher))


def _value(fisher: jax.Array, change: jax.Array, ridge: jax.Array) -> jax.Array:
    curved = jnp.matmul(fisher, change, precision=_HIGHEST) + ridge * change
    return 0.5 * jnp.vdot(change, curved)


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
    """Undo `_cut`."""
    return tuple(
        jnp.zeros(leaf.size, v.dtype).at[b].set(v, mode="drop").reshape(leaf.shape)
        for b, v, leaf in zip(blocks, values, like, strict=True)
    )
