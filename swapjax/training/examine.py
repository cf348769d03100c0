"""What a mask step has met and what its rule chose: a status for every leaf.

Leaves are there as they are, or laid end to end as one vector.
"""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from swapjax.core.counts import exceeds
from swapjax.core.types import Leaves, Status
from swapjax.sparsity.layout import Layout
from swapjax.sparsity.pieces import count_groups
from swapjax.sparsity.segments import Segments
from swapjax.sparsity.stacking import Stacking
from swapjax.training.rule import Rule

_ENOUGH = 16  # entries without gradient to call growth blind


class Met(NamedTuple):
    """What a mask step has met.

    Attributes:
        masks: those before it, leaves like all that follows, or the vector of them.
        weights: params before the update.
        ranked: the weights that the rule ranks.
        slopes: gradients at params.
    """

    masks: Leaves
    weights: Leaves
    ranked: Leaves
    slopes: Leaves


def examine(rule: Rule, t: jax.Array, met: Met, layout: Layout) -> jax.Array:
    """Examine the leaves at a mask step.

    Args:
        rule: the rule that chooses masks.
        t: the number of the update, from 1.
        met: what it has met.
        layout: whether that is leaves or the vector of them.

    Returns:
        The `swapjax.Status` of each leaf, ``int32[leaves]``.
    """
    grows = rule.grows == "gradient"
    lives = _lives(met.slopes, layout) if grows else met.masks
    found = []
    for m, w, r, g, live in zip(*met, lives, strict=True):
        looked = [~jnp.isfinite(r) | ~jnp.isfinite(g), ~m & (w != 0)]
        if grows:
            # Units that are dead have no gradient either: their rows and columns are
            # left out, and a handful of entries that no example reads proves nothing.
            alive, moved = ~m & live, g != 0
            looked += [alive, alive & moved, m & moved]
        found.append(looked)
    broken, outside, *growth = _count(found, layout)
    broken, outside = broken > 0, (outside > 0) & (t > 1)
    blind = jnp.zeros_like(outside)
    if grows:
        alive, active, moved = growth
        # Of each no more than matters: their sum may be more than an int32 holds.
        total = jnp.sum(jnp.minimum(alive, _ENOUGH), dtype=jnp.int32)
        blind = (total >= _ENOUGH) & ~jnp.any(active > 0) & (moved > 0)
    return jnp.select(
        [broken, outside, blind],
        [Status.NOT_FINITE, Status.NOT_MASKED, Status.BLIND_GROWTH],
        Status.CONVERGED,
    ).astype(jnp.int32)


def examine_choice(
    masks: Leaves, most: Leaves, within: Leaves | None, layout: Layout
) -> jax.Array:
    """Examine the masks that a rule has chosen.

    Args:
        masks: the choice, leaves or the vector of them.
        most: entries that the budget allows each group of leaves, ``int32[]``; they
            count together.
        within: where entries may be active; None for anywhere.
        layout: which of these it is.

    Returns:
        The `swapjax.Status` of each leaf, ``int32[leaves]``.
    """
    found = [[m] for m in masks]
    if within is not None:
        found = [[m, m & ~w] for m, w in zip(masks, within, strict=True)]
    kept, *outside = _count(found, layout)
    beyond = jnp.broadcast_to(exceeds(tuple(kept), most), kept.shape)
    for one in outside:
        beyond |= one > 0
    return jnp.where(beyond, Status.OVER_BUDGET, Status.CONVERGED).astype(jnp.int32)


def _count(
    leaves: Sequence[Sequence[jax.Array]], layout: Layout
) -> tuple[jax.Array, ...]:
    """Count the True entries of each leaf, of several arrays of it in one pass.

    Returns:
        ``int32[leaves]`` for the first arrays, the second, and so on.
    """
    alone = Stacking.none(len(layout.shapes))
    laid = alone.end_to_end(layout.shapes) if layout.is_flat else None
    return count_groups(leaves, Segments.of_layers(laid or alone))


def _lives(slopes: Leaves, layout: Layout) -> Leaves:
    """Mark entries whose input and output units both have gradients."""
    if not layout.is_flat:
        return tuple(_live(g[None])[0] for g in slopes)
    (vector,), start, parts = slopes, 0, []
    # Leaves of one shape that follow each other are looked at together.
    for shape, several in itertools.groupby(layout.shapes):
        count = len(list(several))
        end = start + count * math.prod(shape)
        parts.append(_live(vector[start:end].reshape(count, *shape)).reshape(-1))
        start = end
    return (jnp.concatenate(parts),)


def _live(slopes: jax.Array) -> jax.Array:
    """Mark such entries in leaves that are stacked along a first axis."""
    moved, inner = slopes != 0, tuple(range(1, slopes.ndim))
    if len(inner) < 2:
        alive = jnp.any(moved, axis=inner, keepdims=True)
        return jnp.broadcast_to(alive, slopes.shape)
    output = jnp.any(moved, axis=inner[:-1], keepdims=True)
    return jnp.any(moved, axis=-1, keepdims=True) & output
