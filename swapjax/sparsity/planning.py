"""Make a plan: on the host, once, in Python integers.

Nothing is rounded in float32, and a rule that matches nothing is an error before any
work starts.
"""

import re
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, get_args

import jax
import numpy as np

from swapjax.core import trees
from swapjax.core.types import LossFn, Params
from swapjax.roles.find import Axes, find_roles
from swapjax.roles.role import Role
from swapjax.sparsity.allocation import (
    Allocation,
    allocate_units,
    densities,
    override_counts,
    pattern_counts,
)
from swapjax.sparsity.layout import Layout
from swapjax.sparsity.leaf_rules import Rule, exact_sparsity
from swapjax.sparsity.output_heads import without_heads
from swapjax.sparsity.patterns import NM
from swapjax.sparsity.plan import Plan
from swapjax.sparsity.plan_units import (
    along_inputs,
    cuttable,
    implied_sparsity,
    in_entries,
    layer_names,
    layer_overrides,
    layer_sparsities,
    unit_counts,
    unit_noun,
    unit_sides,
    unit_sizes,
)
from swapjax.sparsity.unit_patterns import Block, UnitPattern
from swapjax.sparsity.units import Units


def plan(
    params: Params,
    sparsity: float | Fraction | None = None,
    *,
    pattern: NM | UnitPattern | None = None,
    allocation: Allocation | Mapping[str, float] | None = None,
    include: Rule | None = None,
    exclude: Rule = (),
    overrides: Mapping[str, float] | None = None,
    min_keep: int = 1,
    loss_fn: LossFn | None = None,
    batch: Any = None,
    axes: Axes | None = None,
    output_heads: bool | None = None,
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
            nothing is allocated then. `Block`, `Channel`, `Head` and `Expert`: whole
            units of each leaf stay or go. Floors are then rounded up to units, and so
            are overrides and the whole to the nearest number of them.
        allocation: ``"global"`` lets the layers compete for one budget; ``"uniform"``
            gives each the same density; ``"erk"`` gives each a density proportional
            to the sum of its dimensions over their product (Erdos-Renyi kernel,
            RigL, arXiv:1911.11134, section 3), full layers capped at 1. By default
            ``"global"``, and ``"uniform"`` for channels, heads and experts, which
            compete only where all have one size. Or a sparsity for each layer by its
            name, or for all layers of a leaf by its path, as `swapjax.owl` and
            `swapjax.sensitivity` find them: layers keep in proportion to what these
            leave, and the whole what ``sparsity`` does.
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
        output_heads: whether layers are pruned whose outputs the loss reads, unless
            include tells the leaves. By default all are but the head of a language
            model, which mirrors its table of embeddings; one that overrides or an
            allocation by name tell of is pruned, too.

    Returns:
        The plan; printing it shows what will happen, and what is left out and why.

    Raises:
        ValueError: for a sparsity outside [0, 1), or missing, or other than that of
            the pattern, a leaf that a pattern does not divide, a rule that matches
            nothing, a layer that two overrides match, an allocation by name that leaves
            a layer out or names what is none, and budgets smaller than the floors; for
            a loss that cannot be traced by shapes, a leaf to be included that is used
            in two ways, and axes that the program contradicts.
        TypeError: for a prunable leaf that does not hold floats.

    Example:
        >>> import jax.numpy as jnp
        >>> params = {"fc": {"kernel": jnp.ones((4, 5)), "bias": jnp.ones(5)}}
        >>> plan(params, 0.9).kept
        2
    """
    if not isinstance(pattern, NM | UnitPattern | None):
        raise ValueError(
            f"pattern must be an NM, Channel, Head, Expert or Block, got {pattern!r}"
        )
    exact = exact_sparsity(implied_sparsity(sparsity, pattern), "sparsity")
    allocation = _how_to_share(allocation, pattern)
    if min_keep < 0:
        raise ValueError(f"min_keep must not be negative, got {min_keep}")

    roles = find_roles(params, loss_fn, batch, axes)
    shares = () if isinstance(allocation, str) else allocation
    named = [*(overrides or ()), *map(re.escape, shares)]
    layout, left_out = _lay_out(params, include, exclude, roles, output_heads, named)
    units = None
    if isinstance(pattern, UnitPattern):
        if include is None:
            layout, without = cuttable(pattern, layout)
            left_out += without
        units = Units.of(pattern, layout)
    names = layer_names(units, layout)
    shared = (
        allocation
        if isinstance(allocation, str)
        else layer_sparsities(units, layout, allocation)
    )
    counts, sizes = unit_counts(units, layout), unit_sizes(units, layout)
    # In units, as are the counts until the plan is made.
    floors = tuple(
        min(-(-min_keep // size), n) for size, n in zip(sizes, counts, strict=True)
    )
    fixed_by = layer_overrides(units, layout, overrides or {})
    patterns: tuple[NM | None, ...] = (None,) * len(layout.paths)
    if isinstance(pattern, NM):
        patterns = along_inputs(pattern, layout, fixed_by)
        by_layer = layout.stacking.by_layer(patterns)
        keep = pattern_counts(counts, by_layer, fixed_by, floors)
        groups = tuple(range(len(keep)))
        exact = 1 - Fraction(sum(keep), layout.total)
    else:
        fixed = override_counts(counts, fixed_by, floors)
        weights = densities(shared, unit_sides(units, layout))
        keep, groups = allocate_units(
            names, counts, sizes, weights, exact, fixed, floors, unit_noun(units)
        )
    return Plan(
        sparsity=exact,
        allocation=shared,
        layout=layout,
        floors=tuple(f * size for f, size in zip(floors, sizes, strict=True)),
        overrides=fixed_by,
        patterns=patterns,
        keep=in_entries(keep, groups, sizes),
        groups=groups,
        units=units,
        left_out=left_out,
    )


def _lay_out(
    params: Params,
    include: Rule | None,
    exclude: Rule,
    roles: Sequence[Role],
    output_heads: bool | None,
    named: Sequence[str],
) -> tuple[Layout, tuple[tuple[str, str], ...]]:
    """Find the prunable leaves, and the others with why they are not."""
    layout = Layout.of(params, include, exclude, roles)
    left_out = _left_out(params, layout, roles)
    if include is None:
        leaves = zip(trees.paths(params), jax.tree.leaves(params), roles, strict=True)
        tables = {x: np.shape(leaf) for x, leaf, role in leaves if role.kind == "table"}
        layout, heads = without_heads(layout, tables, output_heads, named)
        left_out += heads
    elif output_heads is not None:
        raise ValueError("output_heads: include names the leaves; give one of the two")
    return layout, left_out


def _how_to_share(
    allocation: Allocation | Mapping[str, float] | None,
    pattern: NM | UnitPattern | None,
) -> Allocation | Mapping[str, float]:
    """Take the allocation, or the one that goes with a pattern.

    Raises:
        ValueError: for what is none, and for names where a pattern has allocated.
    """
    if allocation is None:
        free = pattern is None or isinstance(pattern, NM | Block)
        return "global" if free else "uniform"
    if isinstance(allocation, Mapping):
        if isinstance(pattern, NM):
            raise ValueError(
                f"allocation: the pattern {pattern} leaves nothing to share"
            )
    elif allocation not in get_args(Allocation):
        raise ValueError(
            "allocation must be 'global', 'uniform' or 'erk', or sparsities by the "
            f"names of layers, got {allocation!r}"
        )
    return allocation


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
