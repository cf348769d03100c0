"""Which leaves are prunable, and exactly how many entries to keep of each.

A plan is made once, on the host, in Python integers: nothing is rounded in float32
and a rule that matches nothing is an error before any work starts.
"""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import jax.numpy as jnp

from swapjax.core import trees
from swapjax.core.counts import require_countable_groups
from swapjax.core.types import LossFn, Masks, Params
from swapjax.roles.find import Axes, find_roles
from swapjax.roles.role import Role
from swapjax.sparsity import units
from swapjax.sparsity.allocation import (
    Allocation,
    allocate,
    override_counts,
    pattern_counts,
    round_half_up,
    spread,
)
from swapjax.sparsity.budget import Budget
from swapjax.sparsity.layout import Layout
from swapjax.sparsity.leaf_rules import Rule, exact_sparsity, match_overrides
from swapjax.sparsity.patterns import NM, Block
from swapjax.sparsity.plan_table import tabulate
from swapjax.sparsity.segments import count_layers


@dataclasses.dataclass(frozen=True)
class Plan:
    """The prunable leaves of params, and how many entries to keep. Made by `plan`.

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
        block: what lives or dies as one; None for single entries. All counts are of
            entries.
        left_out: the leaves that are not prunable, and why.
    """

    sparsity: Fraction
    allocation: Allocation
    layout: Layout
    floors: tuple[int, ...]
    overrides: tuple[Fraction | None, ...]
    patterns: tuple[NM | None, ...]
    keep: tuple[int, ...]
    groups: tuple[int, ...]
    block: Block | None
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
    def unit(self) -> int:
        """The entries that live or die as one."""
        return 1 if self.block is None else self.block.size

    @property
    def grids(self) -> tuple[tuple[int, ...], ...]:
        """The shapes of the leaves, counted in units."""
        return units.grids(self.block, self.layout)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The units of each layer."""
        return units.sizes(self.block, self.layout)

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
        require_countable_groups(self.groups, self.layout.layer_shapes)
        keep = jnp.asarray(self.keep, jnp.int32)
        stacking = self.layout.stacking
        return Budget(keep, self.groups, self.floors, self.patterns, stacking)

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
        sizes = self.sizes
        floors = tuple(floor // self.unit for floor in self.floors)
        if sparsity <= self.sparsity:
            fixed = self._shares(sparsity, sizes)
        else:
            fixed = override_counts(sizes, overrides, floors)
        keep, groups = allocate(
            self.layout.layers,
            sizes,
            units.sides(self.block, self.layout),
            sparsity,
            self.allocation,
            fixed,
            floors,
        )
        return dataclasses.replace(
            self,
            sparsity=sparsity,
            overrides=overrides,
            keep=tuple(count * self.unit for count in keep),
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
        pruned = [sizes[i] - self.keep[self.groups[i]] // self.unit for i in fixed]
        total = sum(sizes)
        pruned.append(total - self.kept // self.unit - sum(pruned))
        now = total - round_half_up(total * (1 - sparsity))
        even = [Fraction(1)] * len(pruned)
        *shares, _ = spread(now, even, pruned, [0] * len(pruned))
        return {i: sizes[i] - n for i, n in zip(fixed, shares, strict=True)}

    def onto(self, params: Params) -> "Plan":
        """Make the same plan for another tree with leaves of the same paths.

        For a tree with other paths this is the plan as it is, which will not split it.
        """
        return dataclasses.replace(self, layout=self.layout.onto(params))

    def require_entries(self, who: str) -> None:
        """Raise for a plan of blocks, which few callers can carry out.

        Raises:
            ValueError: naming the caller.
        """
        if self.block is not None:
            raise ValueError(
                f"sparsity: {who} removes entries or N:M patterns; a plan with "
                f"{self.block} is for swapjax.sparse"
            )

    def __str__(self) -> str:
        """Tabulate what will happen, leaf by leaf."""
        shared = {g for g, n in Counter(self.groups).items() if n > 1}
        keep = [None if g in shared else self.keep[g] for g in self.groups]
        rules = []
        patterns = self.layout.stacking.by_layer(self.patterns)
        for override, pattern in zip(self.overrides, patterns, strict=True):
            free = str(pattern or self.allocation)
            free += f", {self.block}" if self.block else ""
            rules.append(free if override is None else f"{float(override):g}")
        return tabulate(self.layout, keep, rules, self.kept, self.left_out)


def plan(
    params: Params,
    sparsity: float | Fraction | None = None,
    *,
    pattern: NM | Block | None = None,
    allocation: Allocation = "global",
    include: Rule | None = None,
    exclude: Rule = (),
    overrides: Mapping[str, float] | None = None,
    min_keep: int = 1,
    loss_fn: LossFn | None = None,
    batch: Any = None,
    axes: Axes | None = None,
) -> Plan:
    """Decide which leaves are prunable and how many entries each layer keeps.

    The whole keeps exactly ``round(total * (1 - sparsity))`` entries. What layers
    with an override keep counts towards it; the others make up the rest.

    A layer is a leaf, or one slice of a leaf that holds a stack of them, as ``nn.scan``
    makes it, or experts: ``blocks/kernel[3]``. What each axis of a leaf counts is read
    off the program of ``loss_fn``, or told by the names that frameworks give.

    Args:
        params: a pytree of arrays, or of their shapes and dtypes.
        sparsity: the fraction of prunable entries to remove, in [0, 1). A float is
            taken for the decimal it prints as. A pattern implies it.
        pattern: `NM`: n of every m entries stay in each leaf that has no override;
            nothing is allocated then. `Block`: whole blocks of every leaf stay or go,
            for `swapjax.sparse` only; floors are rounded up to blocks.
        allocation: ``"global"`` lets the layers compete for one budget; ``"uniform"``
            gives each the same density; ``"erk"`` gives each a density proportional
            to the sum of its dimensions over their product (Erdos-Renyi kernel,
            RigL, arXiv:1911.11134, section 3), full layers capped at 1.
        include: regular expressions searched in the paths, or a predicate of path and
            leaf. By default what data is multiplied with: no norms, biases or tables.
            Leaves of shape () are passed over.
        exclude: what is left out of those, in the same form.
        overrides: sparsities by regular expression, for the leaves or layers they
            match.
        min_keep: the fewest entries that a layer keeps, so that none dies; a smaller
            one keeps all of its entries.
        loss_fn: ``loss_fn(params, batch)``, whose program tells what each leaf does. It
            is traced by shapes alone. Without it names tell.
        batch: that loss_fn takes, arrays or their shapes and dtypes.
        axes: what each axis of a leaf counts, by regular expression, where neither
            tells it: ``{"mixer/w": ("stack", "input", "output")}``, of the words
            ``"stack"``, ``"expert"``, ``"input"`` and ``"output"``.

    Returns:
        The plan; printing it shows what will happen, and what is left out and why.

    Raises:
        ValueError: for a sparsity outside [0, 1), or missing, or other than that of
            the pattern, a leaf that a pattern does not divide, a rule that matches
            nothing, a layer that two overrides match, and budgets smaller than the
            floors; for a loss that cannot be traced by shapes, a leaf to be included
            that is used in two ways, and axes that the program contradicts.
        TypeError: for a prunable leaf that does not hold floats.

    Example:
        >>> import jax.numpy as jnp
        >>> params = {"fc": {"kernel": jnp.ones((4, 5)), "bias": jnp.ones(5)}}
        >>> plan(params, 0.9).kept
        2
    """
    exact = exact_sparsity(_implied(sparsity, pattern), "sparsity")
    if allocation not in ("global", "uniform", "erk"):
        raise ValueError(
            f"allocation must be 'global', 'uniform' or 'erk', got {allocation!r}"
        )
    if min_keep < 0:
        raise ValueError(f"min_keep must not be negative, got {min_keep}")

    roles = find_roles(params, loss_fn, batch, axes)
    layout = Layout.of(params, include, exclude, roles)
    stacking, names = layout.stacking, layout.layers
    block = pattern if isinstance(pattern, Block) else None
    unit, sizes = (block.size if block else 1), units.sizes(block, layout)
    # In units, as are the counts until the plan is made.
    floors = tuple(min(-(-min_keep // unit), size) for size in sizes)
    fixed_by = match_overrides(names, stacking.by_layer(layout.paths), overrides or {})
    patterns: tuple[NM | None, ...] = (None,) * len(layout.paths)
    if isinstance(pattern, NM):
        patterns = units.along_inputs(pattern, layout, fixed_by)
        by_layer = stacking.by_layer(patterns)
        keep = pattern_counts(sizes, by_layer, fixed_by, floors)
        groups = tuple(range(len(keep)))
        exact = 1 - Fraction(sum(keep), layout.total)
    else:
        fixed = override_counts(sizes, fixed_by, floors)
        sides = units.sides(block, layout)
        keep, groups = allocate(names, sizes, sides, exact, allocation, fixed, floors)
    return Plan(
        sparsity=exact,
        allocation=allocation,
        layout=layout,
        floors=tuple(floor * unit for floor in floors),
        overrides=fixed_by,
        patterns=patterns,
        keep=tuple(count * unit for count in keep),
        groups=groups,
        block=block,
        left_out=_left_out(params, layout, roles),
    )


def _left_out(
    params: Params, layout: Layout, roles: Sequence[Role]
) -> tuple[tuple[str, str], ...]:
    """List the leaves that are not prunable, and why."""
    own = set(layout.positions)
    return tuple(
        (path, role.reason if role.kind != "matrix" else "is excluded")
        for i, (path, role) in enumerate(zip(trees.paths(params), roles, strict=True))
        if i not in own
    )


def _implied(
    sparsity: float | Fraction | None, pattern: NM | Block | None
) -> float | Fraction:
    """Find the sparsity that was asked for, or that of the pattern."""
    if not isinstance(pattern, NM):
        if sparsity is None:
            raise ValueError("sparsity: is missing, and no pattern implies it")
        return sparsity
    implied = 1 - Fraction(pattern.n, pattern.m)
    if sparsity is not None and exact_sparsity(sparsity, "sparsity") != implied:
        raise ValueError(
            f"sparsity: the pattern {pattern} removes {float(implied):g}, got "
            f"{float(sparsity):g}; leave it out"
        )
    return implied
