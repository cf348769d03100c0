"""How many entries to keep of which leaves, and the support that scores choose."""

import dataclasses
import functools
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np

from swapjax.core.counts import require_countable
from swapjax.core.sharding import by_compiler
from swapjax.core.types import Leaves
from swapjax.sparsity.patterns import NM
from swapjax.sparsity.pieces import count_groups
from swapjax.sparsity.segments import Segments
from swapjax.sparsity.stacking import Stacking
from swapjax.sparsity.topk import common_keys, first_largest, top_keys_of_groups
from swapjax.sparsity.units import Units


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["keep"],
    meta_fields=["groups", "floors", "patterns", "stacking", "units"],
)
@dataclasses.dataclass(frozen=True)
class Budget:
    """Counts of entries to keep; they may be traced.

    A layer is a leaf, or one slice of a leaf that is a stack of layers.

    Attributes:
        keep: ``int32[n_groups]``, the entries to keep of each group of layers.
        groups: the group that each layer belongs to.
        floors: the entries that each layer keeps whatever its scores.
        patterns: the pattern of each leaf, None where entries are free; empty where
            all are. Each layer of a leaf with a pattern is a group of its own.
        stacking: the layers of each leaf; None where each leaf is one.
        units: what lives or dies as one; None for entries. Layers are then those of the
            modules that share units, and all counts are of whole units.
    """

    keep: jax.Array
    groups: tuple[int, ...]
    floors: tuple[int, ...]
    patterns: tuple[NM | None, ...] = ()
    stacking: Stacking | None = None
    units: Units | None = None

    def pattern(self, leaf: int) -> NM | None:
        """Look up the pattern of a leaf, by number."""
        return self.patterns[leaf] if self.patterns else None

    @property
    def layers(self) -> Stacking:
        """The layers of each leaf."""
        if self.stacking is None:
            return Stacking.none(len(self.groups))
        return self.stacking

    @property
    def in_units(self) -> "Budget":
        """The same counted in units, for grids in place of leaves."""
        if self.units is None:
            return self
        of_layers = self.units.sizes
        sizes = np.ones(len(self.keep), np.int32)
        sizes[list(self.groups)] = of_layers
        floors = zip(self.floors, of_layers, strict=True)
        return Budget(
            self.keep // sizes,
            self.groups,
            tuple(floor // size for floor, size in floors),
            stacking=self.units.stacking,
        )

    @property
    def segments(self) -> Segments:
        """The groups of layers."""
        return Segments(self.layers, self.groups, max(self.groups, default=-1) + 1)


def select(scores: Leaves, budget: Budget, within: Leaves | None = None) -> Leaves:
    """Choose the support: the best scores of each group, floors first.

    Args:
        scores: one float array a prunable leaf; large means keep. Units are ranked by
            the mean over their entries.
        budget: counts, groups and floors for those leaves.
        within: bool arrays; an entry that is False there is kept only where a group
            without a pattern has too few others for its count.

    Returns:
        One bool array a leaf. Every group without a pattern keeps exactly its count. A
        leaf with one keeps to it, and less where `within` leaves less, and so does a
        unit of which some entries are gone. Ties go to the earlier layer, then to the
        lower flat index in it.

    Raises:
        ValueError: for other than one score, and one of `within`, for each leaf of the
            budget, and for `within` that is not bool or of other shapes.
    """
    units = budget.units
    leaves = len(budget.layers.axes if units is None else units.shapes)
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
    if units is not None:
        select_in_units = by_compiler(_select_units, scores)
        return select_in_units(tuple(scores), budget, within)
    free = tuple(i for i in range(leaves) if budget.pattern(i) is None)
    _require_countable(scores, budget, free)
    masks: list[jax.Array] = [jnp.zeros((), bool)] * leaves
    keys = list(common_keys(tuple(scores)))
    if within is not None:
        # Outside ranks below every score, be it NaN: no number has the key 1.
        keys = [
            jnp.where(w, jnp.maximum(key, 1), 0)
            for w, key in zip(within, keys, strict=True)
        ]
    for i, key in enumerate(keys):
        pattern = budget.pattern(i)
        if pattern is not None:
            # Key 0 is outside: a group with less room than the pattern leaves keeps
            # less.
            masks[i] = pattern.top(key) & (key > 0)
    if free:
        chosen = _select_free(
            tuple(keys[i] for i in free),
            None if within is None else tuple(within[i] for i in free),
            *_restrict(budget, free),
        )
        for i, mask in zip(free, chosen, strict=True):
            masks[i] = mask
    return tuple(masks)


# One for all who call it outside of jit.
select_compiled = jax.jit(select)


def _select_units(scores: Leaves, budget: Budget, within: Leaves | None) -> Leaves:
    """Choose whole units; see `select`."""
    units = budget.units
    assert units is not None
    inside = None if within is None else units.touched(within)
    chosen = select(units.means(scores), budget.in_units, inside)
    return units.expand(chosen, within)


def count_by_group(masks: Leaves, budget: Budget) -> jax.Array:
    """Count the True entries of each group of layers, ``int32[n_groups]``."""
    segments = budget.segments
    if budget.units is not None:
        found = segments.sum(budget.units.count(masks))
    else:
        (found,) = count_groups([[m] for m in masks], segments)
    missing = len(budget.keep) - segments.total
    return jnp.pad(found, (0, missing)) if missing else found


def _require_countable(scores: Leaves, budget: Budget, free: tuple[int, ...]) -> None:
    """Raise for a group with more entries than an int32 counts."""
    layers = budget.layers
    parts: dict[int, list[tuple[int, ...]]] = {}
    for leaf in free:
        shape = layers.layer_shape(leaf, scores[leaf].shape)
        for i, n in enumerate(layers.numbers[leaf]):
            shape = (layers.runs[i],) if layers.runs else shape
            parts.setdefault(budget.groups[n], []).append(shape)
    for shapes in parts.values():
        require_countable(shapes)


def _restrict(
    budget: Budget, free: tuple[int, ...]
) -> tuple[jax.Array, tuple[int, ...], Segments]:
    """Take the counts, floors and groups of some leaves alone, numbered anew."""
    if len(free) == len(budget.layers.axes):
        return budget.keep, budget.floors, budget.segments
    groups, segments = budget.segments.of(free)
    keep = budget.keep[np.asarray(groups, np.int32)]
    own = sorted(n for leaf in free for n in budget.layers.numbers[leaf])
    return keep, tuple(budget.floors[n] for n in own), segments


def _select_free(
    keys: Leaves,
    within: Leaves | None,
    keep: jax.Array,
    floors: tuple[int, ...],
    segments: Segments,
) -> Leaves:
    """Mark the best of every group, after the `floors[n]` best of each layer."""
    # The floor of a layer that competes with none is within its count.
    members = Counter(segments.groups)
    floors = tuple(
        floor if members[group] > 1 else 0
        for floor, group in zip(floors, segments.groups, strict=True)
    )
    if any(floors):
        alone = Segments.of_layers(segments.stacking)
        wanted = jnp.asarray(floors, jnp.int32)
        if set(floors) == {1}:
            sure = first_largest(keys, alone)
        elif set(floors) == {0, 1}:
            pairs = zip(
                first_largest(keys, alone), alone.spread(wanted, keys), strict=True
            )
            sure = tuple(first & (floor > 0) for first, floor in pairs)
        else:
            sure = top_keys_of_groups(keys, wanted, alone)
        if within is not None:
            sure = tuple(m & w for m, w in zip(sure, within, strict=True))
        # A floor entry outranks every score: no number has all bits set.
        keys = tuple(
            jnp.where(m, ~jnp.zeros_like(key), key)
            for m, key in zip(sure, keys, strict=True)
        )
    return top_keys_of_groups(keys, keep, segments)
