"""What a plan counts, entries or units, and how its rules are laid on them."""

from collections.abc import Mapping, Sequence
from fractions import Fraction

from swapjax.sparsity.allocation import ByLayer, some
from swapjax.sparsity.layout import Layout
from swapjax.sparsity.leaf_rules import exact_sparsity, match_overrides
from swapjax.sparsity.patterns import NM
from swapjax.sparsity.unit_patterns import Block, Channel, UnitPattern
from swapjax.sparsity.units import Units

Shapes = tuple[tuple[int, ...], ...]


def unit_counts(units: Units | None, layout: Layout) -> tuple[int, ...]:
    """Count the units of each layer."""
    if units is not None:
        return units.counts
    stacking = layout.stacking
    return tuple(stacking.layer_size(i, layout.shapes[i]) for i in stacking.leaf_of)


def unit_sizes(units: Units | None, layout: Layout) -> tuple[int, ...]:
    """Count the entries of a unit of each layer."""
    return (1,) * layout.stacking.count if units is None else units.sizes


def unit_noun(units: Units | None) -> str:
    """Say what is counted."""
    return "entries" if units is None else str(units.pattern)


def unit_sides(units: Units | None, layout: Layout) -> Shapes:
    """Tell the dimensions of each layer, by which ERK goes.

    Those in blocks where blocks are kept; of leaves that share units the first's.
    """
    if units is None:
        stacking, first = layout.stacking, list(range(len(layout.shapes)))
    else:
        stacking = units.stacking
        first = [units.modules.index(m) for m in range(len(units.grids))]
        if isinstance(units.pattern, Block):
            sides = map(stacking.layer_shape, first, units.grids)
            return stacking.by_layer(tuple(sides))
    each = [layout.roles[i].sides(layout.shapes[i]) for i in first]
    return stacking.by_layer(each)


def layer_names(units: Units | None, layout: Layout) -> tuple[str, ...]:
    """Name the layers; of those that share units the first."""
    if units is None:
        return layout.layers
    names = units.leaves.names(layout.paths, layout.shapes)
    found = [""] * units.stacking.count
    for name, n in zip(reversed(names), reversed(units.layer_of), strict=True):
        found[n] = name
    return tuple(found)


def layer_overrides(
    units: Units | None, layout: Layout, overrides: Mapping[str, float]
) -> tuple[Fraction | None, ...]:
    """Find the sparsity that each layer was given by name, or None.

    A rule that matches one of the leaves that share units is for all of them.

    Raises:
        ValueError: as `match_overrides` does, and for two rules for one layer.
    """
    stacking = layout.stacking if units is None else units.leaves
    names = stacking.names(layout.paths, layout.shapes)
    given = match_overrides(names, stacking.by_layer(layout.paths), overrides)
    if units is None:
        return given
    found: dict[int, tuple[str, Fraction]] = {}
    for name, n, value in zip(names, units.layer_of, given, strict=True):
        if value is None:
            continue
        other, before = found.setdefault(n, (name, value))
        if before != value:
            raise ValueError(
                f"overrides: {other} and {name} share their {units.pattern}, and have "
                f"the sparsities {float(before):g} and {float(value):g}"
            )
    return tuple(
        found[n][1] if n in found else None for n in range(units.stacking.count)
    )


def layer_sparsities(
    units: Units | None, layout: Layout, given: Mapping[str, float]
) -> ByLayer:
    """Find the sparsity that an allocation by name gives each layer.

    Of leaves that share units it is that of the first that is named.

    Raises:
        ValueError: for a name of no layer and no leaf, a layer without any, and a
            sparsity outside [0, 1).
    """
    stacking = layout.stacking if units is None else units.leaves
    names = stacking.names(layout.paths, layout.shapes)
    paths = stacking.by_layer(layout.paths)
    unknown = sorted(set(given) - set(names) - set(paths))
    if unknown:
        raise ValueError(f"allocation: {some(unknown)} is no layer among {some(names)}")
    found: dict[int, Fraction] = {}
    owners = range(len(names)) if units is None else units.layer_of
    for name, path, n in zip(names, paths, owners, strict=True):
        value = given.get(name, given.get(path))
        if value is not None and n not in found:
            found[n] = exact_sparsity(value, f"allocation[{name!r}]")
    listed = layer_names(units, layout)
    without = [name for n, name in enumerate(listed) if n not in found]
    if without:
        raise ValueError(f"allocation: has no sparsity for {some(without)}")
    return ByLayer(tuple(found[n] for n in range(len(listed))))


def in_entries(
    keep: Sequence[int], groups: Sequence[int], sizes: Sequence[int]
) -> tuple[int, ...]:
    """Turn the units that groups keep into entries.

    Args:
        keep: of each group.
        groups: of each layer.
        sizes: the entries of a unit of each layer, the same within a group.
    """
    found = list(keep)
    for group, size in dict(zip(groups, sizes, strict=True)).items():
        found[group] *= size
    return tuple(found)


def cuttable(
    pattern: UnitPattern, layout: Layout
) -> tuple[Layout, tuple[tuple[str, str], ...]]:
    """Leave out what has no such units, heads or experts: not what fails to divide.

    Returns:
        The layout of the other leaves; those that are left out, and why.

    Raises:
        ValueError: where nothing is left, and for a leaf that does not divide.
    """
    if isinstance(pattern, Block | Channel):
        return layout, ()
    found = pattern.found(layout)
    chosen = [i for i, has_any in enumerate(found) if has_any]
    if not chosen:
        raise ValueError(
            f"pattern {pattern}: none are found in {some(layout.paths)}{pattern.advice}"
        )
    kind = str(pattern).split()[0]
    without = tuple(
        (path, f"has no {kind}")
        for path, has_any in zip(layout.paths, found, strict=True)
        if not has_any
    )
    return layout.only(chosen), without


def implied_sparsity(
    sparsity: float | Fraction | None, pattern: NM | UnitPattern | None
) -> float | Fraction:
    """Find the sparsity that was asked for, or that of the pattern.

    Raises:
        ValueError: for neither, and for another than that of the pattern.
    """
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


def along_inputs(
    pattern: NM, layout: Layout, overrides: tuple[Fraction | None, ...]
) -> tuple[NM | None, ...]:
    """Lay a pattern along each leaf that has no override.

    Raises:
        ValueError: for overrides of some layers of a leaf alone.
    """
    found: list[NM | None] = []
    names = layout.layers
    for i, (path, shape, role) in enumerate(
        zip(layout.paths, layout.shapes, layout.roles, strict=True)
    ):
        numbers = layout.stacking.numbers[i]
        free = [n for n in numbers if overrides[n] is None]
        if free and len(free) < len(numbers):
            raise ValueError(
                f"overrides: beside the pattern {pattern} a rule must match all layers "
                f"of {path}, or none; it leaves {names[free[0]]} out"
            )
        found.append(pattern.onto(path, shape, role) if free else None)
    return tuple(found)
