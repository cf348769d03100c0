"""Which leaves are prunable, and exactly how many entries to keep of each.

A plan is made once, on the host, in Python integers: nothing is rounded in float32
and a rule that matches nothing is an error before any work starts.
"""

import dataclasses
import math
from collections.abc import Mapping
from fractions import Fraction

import jax.numpy as jnp

from swapjax.core.counts import require_countable_groups
from swapjax.core.types import Params
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


@dataclasses.dataclass(frozen=True)
class Plan:
    """The prunable leaves of params, and how many entries to keep. Made by `plan`.

    Attributes:
        sparsity: the fraction of prunable entries to remove.
        allocation: how the budget is spread over leaves.
        layout: the prunable leaves; what follows is in their order.
        floors: the fewest entries each may keep.
        overrides: the sparsity each was given by name, or None.
        patterns: the pattern of each, or None.
        keep: the entries to keep of each group of leaves.
        groups: the group each leaf belongs to.
        block: what lives or dies as one; None for single entries. All counts are of
            entries.
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

    @property
    def unit(self) -> int:
        """The entries that live or die as one."""
        return 1 if self.block is None else self.block.size

    @property
    def grids(self) -> tuple[tuple[int, ...], ...]:
        """The shapes of the leaves, counted in units."""
        return _grids(self.block, self.layout)

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
        require_countable_groups(self.groups, self.layout.shapes)
        keep = jnp.asarray(self.keep, jnp.int32)
        return Budget(keep, self.groups, self.floors, self.patterns)

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
        sizes = [math.prod(grid) for grid in self.grids]
        floors = tuple(floor // self.unit for floor in self.floors)
        if sparsity <= self.sparsity:
            fixed = self._shares(sparsity, sizes)
        else:
            fixed = override_counts(sizes, overrides, floors)
        keep, groups = allocate(
            self.layout.paths, self.grids, sparsity, self.allocation, fixed, floors
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
        keep = pattern_counts(
            self.layout.paths, self.layout.shapes, patterns, overrides, self.floors
        )
        return dataclasses.replace(
            self,
            sparsity=1 - Fraction(sum(keep), self.layout.total),
            patterns=patterns,
            overrides=overrides,
            keep=keep,
        )

    def _shares(self, sparsity: Fraction, sizes: list[int]) -> dict[int, int]:
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
        rows = [("leaf", "shape", "entries", "keeps", "rule")]
        shared = {g for g in self.groups if self.groups.count(g) > 1}
        for i, path in enumerate(self.layout.paths):
            group, override = self.groups[i], self.overrides[i]
            keep = "" if group in shared else f"{self.keep[group]:,}"
            free = str(self.patterns[i] or self.allocation)
            free += f", {self.block}" if self.block else ""
            rule = free if override is None else f"{float(override):g}"
            shape = "x".join(map(str, self.layout.shapes[i]))
            rows.append((path, shape, f"{self.layout.sizes[i]:,}", keep, rule))
        rows.append(("all", "", f"{self.layout.total:,}", f"{self.kept:,}", ""))
        widths = [max(len(row[c]) for row in rows) for c in range(5)]
        return "\n".join(
            f"{r[0]:<{widths[0]}}  {r[1]:>{widths[1]}}  {r[2]:>{widths[2]}}  "
            f"{r[3]:>{widths[3]}}  {r[4]}".rstrip()
            for r in rows
        )


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
) -> Plan:
    """Decide which leaves are prunable and how many entries each keeps.

    The whole keeps exactly ``round(total * (1 - sparsity))`` entries. What leaves
    with an override keep counts towards it; the others make up the rest.

    Args:
        params: a pytree of arrays, or of their shapes and dtypes.
        sparsity: the fraction of prunable entries to remove, in [0, 1). A float is
            taken for the decimal it prints as. A pattern implies it.
        pattern: `NM`: n of every m entries stay in each leaf that has no override;
            nothing is allocated then. `Block`: whole blocks of every leaf stay or go,
            for `swapjax.sparse` only; floors are rounded up to blocks.
        allocation: ``"global"`` lets the leaves compete for one budget; ``"uniform"``
            gives each the same density; ``"erk"`` gives each a density proportional
            to the sum of its dimensions over their product (Erdos-Renyi kernel,
            RigL, arXiv:1911.11134, section 3), full leaves capped at 1.
        include: regular expressions searched in the paths, or a predicate of path and
            leaf. By default leaves named ``kernel`` or ``weight`` of rank 2 or more.
            Leaves of shape () are passed over.
        exclude: what is left out of those, in the same form.
        overrides: sparsities by regular expression, for the leaves they match.
        min_keep: the fewest entries that a leaf keeps, so that no layer dies; a
            smaller leaf keeps all of its entries.

    Returns:
        The plan; printing it shows what will happen.

    Raises:
        ValueError: for a sparsity outside [0, 1), or missing, or other than that of
            the pattern, a leaf that a pattern does not divide, a rule that matches
            nothing, a leaf that two overrides match, and budgets smaller than the
            floors.
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

    layout = Layout.of(params, include, exclude)
    block = pattern if isinstance(pattern, Block) else None
    unit, grids = (block.size if block else 1), _grids(block, layout)
    # In units, as are the counts until the plan is made.
    floors = tuple(min(-(-min_keep // unit), math.prod(grid)) for grid in grids)
    by_leaf = match_overrides(layout.paths, overrides or {})
    nm = pattern if isinstance(pattern, NM) else None
    patterns = tuple(nm if o is None else None for o in by_leaf)
    if nm is not None:
        keep = pattern_counts(layout.paths, layout.shapes, patterns, by_leaf, floors)
        groups = tuple(range(len(keep)))
        exact = 1 - Fraction(sum(keep), layout.total)
    else:
        fixed = override_counts([math.prod(grid) for grid in grids], by_leaf, floors)
        keep, groups = allocate(layout.paths, grids, exact, allocation, fixed, floors)
    return Plan(
        sparsity=exact,
        allocation=allocation,
        layout=layout,
        floors=tuple(floor * unit for floor in floors),
        overrides=by_leaf,
        patterns=patterns,
        keep=tuple(count * unit for count in keep),
        groups=groups,
        block=block,
    )


def require_one(sparsity: float | Fraction | None, given: Plan | None) -> None:
    """Raise unless either a sparsity or a plan is given, before there are params.

    Args:
        sparsity: of all prunable leaves, or None.
        given: a plan, or None.

    Raises:
        ValueError: for both or neither, for a sparsity that is not a number in [0, 1),
            and for a plan that `plan` has not made.
    """
    if isinstance(sparsity, Plan):
        raise ValueError("sparsity: got a Plan; hand it over as plan=")
    if isinstance(sparsity, NM | Block):
        raise ValueError(
            f"sparsity must be a number in [0, 1), got {sparsity!r}; hand a pattern to "
            "swapjax.plan(params, pattern=...) and its plan to plan="
        )
    if given is not None and not isinstance(given, Plan):
        raise ValueError(f"plan must be what swapjax.plan makes, got {given!r}")
    if (sparsity is None) == (given is None):
        got = "neither" if given is None else f"sparsity={sparsity} and a plan"
        raise ValueError(f"sparsity or plan: give one of the two, got {got}")
    if sparsity is not None:
        exact_sparsity(sparsity, "sparsity")


def planned(
    params: Params,
    sparsity: float | Fraction | None,
    given: Plan | None,
    allocation: Allocation = "global",
) -> Plan:
    """Take the plan that was given, or make one for a sparsity.

    Args:
        params: what to prune, of the paths that the plan was made for.
        sparsity: of all prunable leaves; None where a plan is given.
        given: a plan, which is laid onto params; None where a sparsity is given.
        allocation: for a sparsity, as `plan` takes it.

    Raises:
        ValueError: as `require_one` and `plan` do.
    """
    require_one(sparsity, given)
    if given is not None:
        return given.onto(params)
    return plan(params, sparsity, allocation=allocation)


def _grids(block: Block | None, layout: Layout) -> tuple[tuple[int, ...], ...]:
    if block is None:
        return layout.shapes
    return tuple(map(block.grid, layout.paths, layout.shapes))


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
