"""Masks outside of which nothing may be kept, and the room that they leave."""

import jax
import numpy as np

from swapjax.core import trees
from swapjax.core.counts import count_true
from swapjax.core.given_masks import require_values, take_masks
from swapjax.core.types import Leaves, Masks, Params
from swapjax.sparsity.plan import Plan
from swapjax.sparsity.segments import count_layers


def prunable(given: Masks, params: Params, target: Plan, name: str) -> Leaves:
    """Take the masks of the prunable leaves, and see that there is nothing in others.

    Args:
        given: masks, not under jit.
        params: arrays, or their shapes and dtypes.
        target: what is prunable.
        name: of the argument.

    Raises:
        ValueError: for masks that are not of these params, and for entries that are
            False in a leaf that the plan does not prune, naming it.
    """
    masks = take_masks(given, params, name)
    _require_plan_prunes_all(masks, target, name)
    return target.layout.leaf_masks(masks)


def allowed(within: Masks, params: Params, target: Plan) -> Leaves:
    """Take the prunable leaves of masks, and check that a plan finds room there.

    Of a pattern n:m a group with fewer than n entries keeps what it has, and so does a
    unit of which some are gone: no room is asked of them.

    Raises:
        ValueError: for masks that are not of these params, for fewer entries than are
            to be kept, and for entries that are False in a leaf that the plan does not
            prune.
    """
    masks = take_masks(within, params, "within")
    leaves = target.layout.leaf_masks(masks)
    for leaf in leaves:
        require_values(leaf, "within")
    there, wanted = room(target, leaves), list(target.keep)
    if any(target.patterns):
        by_layer = target.layout.stacking.by_layer(target.patterns)
        for group, pattern in zip(target.groups, by_layer, strict=True):
            if pattern is not None:
                wanted[group] = min(wanted[group], there[group])
    if any(keep > r for keep, r in zip(wanted, there, strict=True)):
        units = target.units
        told = "" if units is None else f", in {units.pattern} that have any"
        raise ValueError(
            f"within: has {sum(there):,} entries in all{told}, {sum(wanted):,} are "
            f"to be kept (by group of layers: {list(there)} against {wanted})"
        )
    _require_plan_prunes_all(masks, target, "within")
    return leaves


def _require_plan_prunes_all(masks: Masks, target: Plan, name: str) -> None:
    """Raise for entries that are False in a leaf that a plan does not prune."""
    own = set(target.layout.positions)
    listed = zip(trees.paths(masks), jax.tree.leaves(masks), strict=True)
    for i, (path, mask) in enumerate(listed):
        if i in own:
            continue
        require_values(mask, name)
        gone = np.size(mask) - count_true(mask)
        if gone:
            told = f"has {gone:,} entries that are" if np.ndim(mask) else "is"
            raise ValueError(
                f"{name}: {path} {told} False, and the plan does not prune this leaf; "
                "include it in the plan, or set its mask to True"
            )


def room(target: Plan, leaves: Leaves) -> tuple[int, ...]:
    """Count the entries that may be kept at all, by group of layers.

    Those of a unit are counted together, if it has any.
    """
    if target.units is None:
        pairs = zip(target.patterns, leaves, strict=True)
        leaves = tuple(x if of is None else of.top(x) & x for of, x in pairs)
    else:
        leaves = target.units.touched(leaves)
    found = count_layers(leaves, target.stacking)
    result = [0] * len(target.keep)
    for group, count, size in zip(target.groups, found, target.unit_sizes, strict=True):
        result[group] += count * size
    return tuple(result)


def keep_inside(target: Plan, leaves: Leaves | None) -> tuple[int, ...]:
    """Count what each group of layers keeps, no more than there is room for.

    Args:
        target: at any sparsity on the way.
        leaves: masks that bound it; None for none.
    """
    if leaves is None:
        return target.keep
    there = room(target, leaves)
    return tuple(map(min, target.keep, there))
