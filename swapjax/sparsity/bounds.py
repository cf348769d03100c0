"""Masks outside of which nothing may be kept, and the room that they leave."""

import jax.numpy as jnp

from swapjax.core.types import Leaves, Masks, Params
from swapjax.sparsity import masks as masking
from swapjax.sparsity.plan import Plan


def allowed(within: Masks, params: Params, target: Plan) -> Leaves:
    """Take the prunable leaves of masks, and check that a plan finds room there.

    Raises:
        ValueError: for masks that are not of these params, and for fewer entries than
            are to be kept.
    """
    masking.check(within, params, "within")
    leaves = target.layout.leaf_masks(within)
    there = room(target, leaves)
    if any(keep > r for keep, r in zip(target.keep, there, strict=True)):
        raise ValueError(
            f"within: has {sum(there):,} entries in all, {target.kept:,} are to be "
            f"kept (by group of leaves: {list(there)} against {list(target.keep)})"
        )
    for path, leaf, pattern in zip(
        target.layout.paths, leaves, target.patterns, strict=True
    ):
        if pattern and jnp.any(jnp.sum(pattern.split(leaf), axis=-1) < pattern.n):
            raise ValueError(
                f"within: {path} has groups with fewer entries than {pattern} keeps"
            )
    return leaves


def room(target: Plan, leaves: Leaves) -> tuple[int, ...]:
    """Count the entries that may be kept at all, by group of leaves."""
    result = [0] * len(target.keep)
    for group, leaf in zip(target.groups, leaves, strict=True):
        result[group] += int(jnp.sum(leaf, dtype=jnp.int32))
    return tuple(result)
