"""One vector in place of the prunable leaves, for methods that do not mind.

What is done once a leaf is compiled once a leaf: of 48 kernels that is five times the
code of one vector of their entries, and five times as long to compile.
"""

import functools
import math
from typing import NamedTuple

import jax
import numpy as np

from swapjax.core import trees
from swapjax.core.types import Leaves, Params
from swapjax.pruning.method import Method, Solution
from swapjax.sparsity.layout import Layout
from swapjax.sparsity.pieces import Pieces
from swapjax.sparsity.plan import Plan
from swapjax.sparsity.segments import Segments, count_layers

# Entries: beyond that copies of the vector cost more than compiling does.
_MOST = 2**26


def layout_for(method: Method, target: Plan, params: Params) -> Layout:
    """Choose how a method sees the prunable leaves.

    As one vector if it looks at entries alone, and so does the plan, of leaves of one
    dtype that are not spread over devices; otherwise as they are.

    Args:
        method: that prunes.
        target: what is prunable.
        params: arrays.
    """
    layout = target.layout
    leaves = layout.take(params)
    places = [getattr(x, "sharding", None) for x in leaves]
    fits = (
        not method.needs_shapes
        and len(leaves) > 1
        and target.units is None
        and not any(target.patterns)
        and len({x.dtype for x in leaves}) == 1
        and layout.total <= _MOST
        and all(place is None or len(place.device_set) == 1 for place in places)
    )
    return (layout.flat() if fits else None) or layout


class Ended(NamedTuple):
    """A solution in the leaves of params.

    Attributes:
        weights: the prunable leaves.
        masks: their support.
        kept: the entries that it has of each layer, by number.
        is_finite: whether all weights are.
    """

    weights: Leaves
    masks: Leaves
    kept: tuple[int, ...]
    is_finite: bool


def pack(params: Params, layout: Layout) -> tuple[Leaves, bool]:
    """Take the prunable leaves out as the method sees them.

    Args:
        params: arrays.
        layout: from `layout_for`.

    Returns:
        The leaves, and whether all entries of params are finite.
    """
    if layout.is_flat:
        leaves, is_finite = _pack(params, layout)
        return leaves, bool(is_finite)
    floats = tuple(x for x in jax.tree.leaves(params) if trees.is_trained(x))
    return layout.split(params), bool(trees.are_finite(floats))


@functools.partial(jax.jit, static_argnums=1)
def _pack(params: Params, layout: Layout) -> tuple[Leaves, jax.Array]:
    leaves, own = layout.split(params), set(layout.positions)
    others = enumerate(jax.tree.leaves(params))
    floats = (x for i, x in others if i not in own and trees.is_trained(x))
    return leaves, trees.are_finite((*leaves, *floats))


@functools.partial(jax.jit, static_argnums=1)
def pack_masks(masks: Leaves, layout: Layout) -> Leaves:
    """Lay masks of the prunable leaves end to end."""
    return layout.pack(masks)


def unpack(solution: Solution, layout: Layout) -> Ended:
    """Cut a solution into leaves, and count what it keeps of each layer.

    Args:
        solution: of a method.
        layout: that the method saw.
    """
    weights, masks = solution.weights, solution.masks
    if not layout.is_flat:
        kept = count_layers(masks, layout.stacking)
        return Ended(weights, masks, kept, bool(trees.are_finite(weights)))
    counts, is_finite = _examine(weights, masks, layout)
    kept = tuple(np.asarray(counts).tolist())
    leaves = cut(weights, layout), cut(masks, layout)
    return Ended(*leaves, kept, bool(is_finite))


@functools.partial(jax.jit, static_argnums=2)
def _examine(
    weights: Leaves, masks: Leaves, layout: Layout
) -> tuple[jax.Array, jax.Array]:
    alone = Segments.of_layers(layout.stacking)
    (kept,) = Pieces.of(alone).count(masks[0])
    return kept, trees.are_finite(weights)


def cut(leaves: Leaves, layout: Layout) -> Leaves:
    """Cut a vector into leaves, a program for each shape that there is.

    On a CPU every slice of one program is compiled by itself, in 20 ms.

    Args:
        leaves: as the method saw them.
        layout: that it saw.
    """
    if not layout.is_flat:
        return leaves
    starts = np.asarray(layout.starts, np.int32)
    pairs = zip(starts, layout.shapes, strict=True)
    return tuple(_slice(leaves[0], start, shape) for start, shape in pairs)


@functools.partial(jax.jit, static_argnums=2)
def _slice(vector: jax.Array, start: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    size = math.prod(shape)
    return jax.lax.dynamic_slice_in_dim(vector, start, size).reshape(shape)
