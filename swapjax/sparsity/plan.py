"""Which leaves are prunable, and exactly how many entries to keep of each."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction

import jax
import jax.numpy as jnp

from swapjax.core.counts import require_countable_groups
from swapjax.core.types import Masks, Params
from swapjax.sparsity.allocation import (
    Allocation,
    ByLayer,
    allocate_units,
    densities,
    override_counts,
    pattern_counts,
    round_half_up,
    spread,
)
from swapjax.sparsity.budget import Budget
from swapjax.sparsity.layout import Layout
from swapjax.sparsity.leaf_rules import exact_sparsity
from swapjax.sparsity.patterns import NM
from swapjax.sparsity.plan_table import tabulate
from swapjax.sparsity.plan_units import (
    in_entries,
    layer_names,
    unit_counts,
    unit_noun,
    unit_sides,
    unit_sizes,
)
from swapjax.sparsity.segments import count_layers
from swapjax.sparsity.stacking import Stacking
from swapjax.sparsity.units import Units


@dataclasses.dataclass(frozen=True)
class Plan:
    """The prunable leaves of params, and how many entries to keep of each.

    Made by `swapjax.plan`: on the host, in Python integers.

    A layer is a leaf, or one slice of a leaf that is a stack of layers.

    Attributes:
        sparsity: the fraction of prunable entries to remove.
        allocation: how the budget is spread over layers.
        layout: the prunable leaves, and the layers in them.
        floors: the fewest entries each layer may keep.
        overrides: the sparsity each layer was given by name, or None.
        patterns: the pattern of each leaf, or None.
        keep: the entries to keep of each group of layers.
        groups: the group each layer belongs to.
        units: what lives or dies as one; None for single entries. All counts are of
            entries, and layers are then those of the modules that share units.
        left_out: the leaves that are not prunable, and why.
    """

    sparsity: Fraction
    allocation: Allocation | ByLayer
    layout: Layout
    floors: tuple[int, ...]
    overrides: tuple[Fraction | None, ...]
    patterns: tuple[NM | None, ...]
    keep: tuple[int, ...]
    groups: tuple[int, ...]
    units: Units | None
    left_out: tuple[tuple[str, str], ...] = dataclasses.field(
        default=(), compare=False, repr=False
    )

    @property
    def paths(self) -> tuple[str, ...]:
        """The prunable leaves."""
        return self.layout.paths

    @property
    def total(self) -> int:
        """The number of prunable entries."""
        return self.layout.total

    @property
    def stacking(self) -> Stacking:
        """The layers: those of the layout, or of modules that share their units."""
        return self.layout.stacking if self.units is None else self.units.stacking

    @property
    def grids(self) -> tuple[tuple[int, ...], ...]:
        """The shapes of the leaves; with units those of the grids of modules."""
        return self.layout.shapes if self.units is None else self.units.grids

    @property
    def sizes(self) -> tuple[int, ...]:
        """The entries of each layer."""
        sizes = map(self.stacking.layer_size, range(len(self.grids)), self.grids)
        each = self.stacking.by_layer(tuple(sizes))
        return tuple(n * unit for n, unit in zip(each, self.unit_sizes, strict=True))

    @property
    def unit_sizes(self) -> tuple[int, ...]:
        """The entries that live or die as one, of each layer."""
        return unit_sizes(self.units, self.layout)

    @property
    def group_units(self) -> tuple[int, ...]:
        """The entries that live or die as one, of each group of layers."""
        found = [1] * len(self.keep)
        for group, size in zip(self.groups, self.unit_sizes, strict=True):
            found[group] = size
        return tuple(found)

    @property
    def kept(self) -> int:
        """The number of entries that stay."""
        return sum(self.keep)

    @property
    def budget(self) -> Budget:
        """The counts as solvers take them.

        Raises:
            ValueError: for a group with more entries than an int32 counts.
        """
        self.require_countable()
        return self.budget_of(jnp.asarray(self.keep, jnp.int32))

    def budget_of(
        self, keep: jax.Array, patterns: tuple[NM | None, ...] | None = None
    ) -> Budget:
        """Make a budget of other counts.

        Args:
            keep: ``int32[groups]``, the entries to keep; may be traced.
            patterns: of each leaf; None for those of the plan.
        """
        patterns = self.patterns if patterns is None else patterns
        return Budget(
            keep, self.groups, self.floors, patterns, self.stacking, self.units
        )

    def require_countable(self) -> None:
        """Raise for a group with more entries than an int32 counts.

        Raises:
            ValueError: naming the way out.
        """
        shapes = self.layout.layer_shapes
        if self.units is not None:
            shapes = tuple((size,) for size in self.sizes)
        require_countable_groups(self.groups, shapes)

    def kept_in(self, masks: Masks) -> dict[str, int]:
        """Count what masks keep of each layer, by name: ``blocks/kernel[3]``.

        Args:
            masks: of the params of the plan, as `swapjax.prune` and
                `swapjax.masks_of` give them.

        Raises:
            ValueError: for masks of another tree.
        """
        leaves = self.layout.leaf_masks(masks)
        found = count_layers(leaves, self.layout.stacking)
        return dict(zip(self.layout.layers, found, strict=True))

    def at(self, sparsity: float | Fraction) -> "Plan":
        """Make the same plan for another sparsity, as a stage on the way needs it.

        Overrides shrink in proportion, so that they are reached with the whole. Of a
        pattern n:m the stage keeps whole numbers of every m: 2:4 goes by 4:4 and 3:4,
        which makes the sparsity of a stage the nearest that there is.

        Raises:
            ValueError: as `plan` does.
        """
        sparsity = exact_sparsity(sparsity, "sparsity")
        ratio = sparsity / self.sparsity if self.sparsity else Fraction(0)
        if any(self.patterns):
            return self._pattern_at(min(ratio, Fraction(1)))
        overrides = tuple(
            None if o is None else min(o * ratio, Fraction(1)) for o in self.overrides
        )
        units, counts = self.unit_sizes, unit_counts(self.units, self.layout)
        floors = tuple(f // unit for f, unit in zip(self.floors, units, strict=True))
        if sparsity <= self.sparsity and len(set(units)) == 1:
            fixed = self._shares(sparsity, counts)
        else:
            fixed = override_counts(counts, overrides, floors)
        keep, groups = allocate_units(
            layer_names(self.units, self.layout),
            counts,
            units,
            densities(self.allocation, unit_sides(self.units, self.layout), ratio),
            sparsity,
            fixed,
            floors,
            unit_noun(self.units),
        )
        return dataclasses.replace(
            self,
            sparsity=sparsity,
            overrides=overrides,
            keep=in_entries(keep, groups, units),
            groups=groups,
        )

    def _pattern_at(self, ratio: Fraction) -> "Plan":
        patterns = tuple(p and p.at(ratio) for p in self.patterns)
        overrides = tuple(None if o is None else o * ratio for o in self.overrides)
        by_layer = self.layout.stacking.by_layer(patterns)
        keep = pattern_counts(self.sizes, by_layer, overrides, self.floors)
        return dataclasses.replace(
            self,
            sparsity=1 - Fraction(sum(keep), self.layout.total),
            patterns=patterns,
            overrides=overrides,
            keep=keep,
        )

    def _shares(self, sparsity: Fraction, sizes: Sequence[int]) -> dict[int, int]:
        """Count what each override keeps on the way, in units as sizes are.

        Rounded one by one, they could leave the others an entry more or fewer than
        they have; a share of what each prunes in the end always fits.
        """
        fixed = [i for i, o in enumerate(self.overrides) if o is not None]
        unit = self.unit_sizes[0]
        pruned = [sizes[i] - self.keep[self.groups[i]] // unit for i in fixed]
        total = sum(sizes)
        pruned.append(total - self.kept // unit - sum(pruned))
        now = total - round_half_up(total * (1 - sparsity))
        even = [Fraction(1)] * len(pruned)
        *shares, _ = spread(now, even, pruned, [0] * len(pruned))
        return {i: sizes[i] - n for i, n in zip(fixed, shares, strict=True)}

    def onto(self, params: Params) -> "Plan":
        """Make the same plan for another tree with leaves of the same paths.

        For a tree with other paths this is the plan as it is, which will not split it.
        """
        return dataclasses.replace(self, layout=self.layout.onto(params))

    def __str__(self) -> str:
        """Tabulate what will happen, leaf by leaf."""
        shared = {g for g, n in Counter(self.groups).items() if n > 1}
        stacking, own = self.layout.stacking, tuple(range(len(self.groups)))
        parts = (Fraction(1),) * len(own)
        if self.units is not None:
            stacking, own = self.units.leaves, self.units.layer_of
            parts = stacking.by_layer(self.units.parts)
        keep, rules = [], []
        patterns = stacking.by_layer(self.patterns)
        for n, part, pattern in zip(own, parts, patterns, strict=True):
            group, override = self.groups[n], self.overrides[n]
            is_known = group not in shared and part
            keep.append(int(self.keep[group] * part) if is_known else None)
            free = str(pattern or self.allocation)
            if self.units:
                # Uniform goes without saying, so that lines stay short.
                named = "" if free == "uniform" else f"{free}, "
                free = f"{named}{self.units.pattern}"
            rules.append(free if override is None else f"{float(override):g}")
        return tabulate(self.layout, stacking, keep, rules, self.kept, self.left_out)
