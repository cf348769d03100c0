"""How many entries to keep of which leaves, and the support that scores choose."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from swapjax.core.counts import require_countable
from swapjax.core.types import Leaves
from swapjax.sparsity.patterns import NM
from swapjax.sparsity.topk import common_keys, first_largest, top_keys


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["keep"],
    meta_fields=["groups", "floors", "patterns"],
)
@dataclasses.dataclass(frozen=True)
class Budget:
    """Counts of entries to keep; they may be traced.

    Attributes:
        keep: ``int32[n_groups]``, the entries to keep of each group of leaves.
        groups: the group that each leaf belongs to.
        floors: the entries that each leaf keeps whatever its scores.
        patterns: the pattern of each leaf, None where entries are free; empty where
            all are. A leaf with a pattern is a group of its own.
    """

    keep: jax.Array
    groups: tuple[int, ...]
    floors: tuple[int, ...]
    patterns: tuple[NM | None, ...] = ()

    def pattern(self, leaf: int) -> NM | None:
        """Look up the pattern of a leaf, by number."""
        return self.patterns[leaf] if self.patterns else None


def select(scores: Leaves, budget: Budget, within: Leaves | None = None) -> Leaves:
    """Choose the support: the best scores of each group, floors first.

    Args:
        scores: one float array a prunable leaf; large means keep.
        budget: counts, groups and floors for those leaves.
        within: bool arrays; an entry that is False there is kept only where a group
            without a pattern has too few others for its count.

    Returns:
        One bool array a leaf. Every group without a pattern keeps exactly its count. A
        leaf with one keeps to it, and less where `within` leaves less.

    Raises:
        ValueError: for other than one score, and one of `within`, for each leaf of the
            budget, and for `within` that is not bool or of other shapes.
    """
    leaves = len(budget.groups)
    for name, given in (("scores", scores), ("within", within)):
        if given is not None and len(given) != leaves:
            raise ValueError(
                f"{name}: must be one array for each of the {leaves} leaves of the "
                f"budget, got {len(given)}"
            )
    for i, mask in enumerate(within or ()):
        if mask.dtype != bool or mask.shape != scores[i].shape:
            raise ValueError(
                f"within: leaf {i} must be bool of shape {scores[i].shape}, got "
                f"{mask.dtype} of shape {mask.shape}"
            )
    masks: list[jax.Array] = [jnp.zeros((), bool)] * len(scores)
    for group in sorted(set(budget.groups)):
        members = [i for i, g in enumerate(budget.groups) if g == group]
        chosen = _select_group(
            tuple(scores[i] for i in members),
            tuple(budget.floors[i] for i in members),
            budget.keep[group],
            None if within is None else tuple(within[i] for i in members),
            budget.pattern(members[0]),
        )
        for i, mask in zip(members, chosen, strict=True):
            masks[i] = mask
    return tuple(masks)


# One for all who call it outside of jit.
select_compiled = jax.jit(select)


def count_by_group(masks: Leaves, budget: Budget) -> jax.Array:
    """Count the True entries of each group of leaves, ``int32[n_groups]``."""
    found = jnp.zeros_like(budget.keep)
    for group, leaf in zip(budget.groups, masks, strict=True):
        found = found.at[group].add(jnp.sum(leaf, dtype=jnp.int32))
    return found


def _select_group(
    scores: Leaves,
    floors: tuple[int, ...],
    k: jax.Array,
    within: Leaves | None,
    pattern: NM | None,
) -> Leaves:
    """Mark the k best of a group, after the `floors[i]` best of each of its leaves."""
    require_countable([score.shape for score in scores])
    keys = common_keys(scores)
    if within is not None:
        # Outside ranks below every score, be it NaN: no number has the key 1.
        keys = tuple(
            jnp.where(w, jnp.maximum(key, 1), 0)
            for w, key in zip(within, keys, strict=True)
        )
    if pattern is not None:
        # Key 0 is outside: a group with less room than the pattern leaves keeps less.
        return tuple(pattern.top(key) & (key > 0) for key in keys)
    if any(floors) and len(keys) > 1:
        sure = [
            first_largest(key) if f == 1 else top_keys((key,), f)[0]
            for key, f in zip(keys, floors, strict=True)
        ]
        if within is not None:
            sure = [m & w for m, w in zip(sure, within, strict=True)]
        # A floor entry outranks every score: no number has all bits set.
        keys = tuple(
            jnp.where(m, ~jnp.zeros_like(key), key)
            for m, key in zip(sure, keys, strict=True)
        )
    return top_keys(keys, k)
