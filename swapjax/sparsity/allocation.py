"""How many entries each layer keeps: exact integers, on the host."""

import dataclasses
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal

from swapjax.sparsity.patterns import NM

Allocation = Literal["global", "uniform", "erk"]


@dataclasses.dataclass(frozen=True)
class ByLayer:
    """An allocation that says for each layer how sparse it is.

    Attributes:
        sparsities: of the layers of a plan, in order.
    """

    sparsities: tuple[Fraction, ...]

    def __str__(self) -> str:
        return "by layer"


def densities(
    allocation: Allocation | ByLayer,
    sides: Sequence[tuple[int, ...]],
    ratio: Fraction = Fraction(1),
) -> list[Fraction] | None:
    """Tell in proportion to which densities layers share a budget.

    Args:
        allocation: how they do.
        sides: the dimensions of each layer.
        ratio: how far on the way to its sparsity a plan is.

    Returns:
        One for each layer, of any scale; None where they compete.
    """
    if allocation == "global":
        return None
    if isinstance(allocation, ByLayer):
        return [1 - s * min(ratio, Fraction(1)) for s in allocation.sparsities]
    return [_density(own, allocation) for own in sides]


def override_counts(
    sizes: Sequence[int],
    overrides: tuple[Fraction | None, ...],
    floors: tuple[int, ...],
) -> dict[int, int]:
    """Count the entries that each layer with an override keeps."""
    return {
        i: max(round_half_up(sizes[i] * (1 - o)), floors[i])
        for i, o in enumerate(overrides)
        if o is not None
    }


def pattern_counts(
    sizes: Sequence[int],
    patterns: Sequence[NM | None],
    overrides: tuple[Fraction | None, ...],
    floors: tuple[int, ...],
) -> tuple[int, ...]:
    """Count the entries that each layer keeps, by its pattern or else its override."""
    free = override_counts(sizes, overrides, floors)
    return tuple(
        free[i] if pattern is None else size // pattern.m * pattern.n
        for i, (size, pattern) in enumerate(zip(sizes, patterns, strict=True))
    )


def allocate(
    names: tuple[str, ...],
    sizes: Sequence[int],
    weights: Sequence[Fraction] | None,
    sparsity: Fraction,
    fixed: dict[int, int],
    floors: tuple[int, ...],
    noun: str = "entries",
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Share a budget among layers.

    Args:
        names: the layers, for messages.
        sizes: the entries of each.
        weights: the densities of each before scaling, from `densities`; None where
            those without an override compete.
        sparsity: of all of them together.
        fixed: the entries that layers with an override keep, by number of the layer.
        floors: the fewest entries that each keeps.
        noun: what is counted, for messages.

    Returns:
        The entries to keep of each group, and the group of each layer.

    Raises:
        ValueError: when what is left does not fit the others.
    """
    rest = [i for i in range(len(sizes)) if i not in fixed]
    wanted = round_half_up(sum(sizes) * (1 - sparsity))
    left = wanted - sum(fixed.values())
    least, most = sum(floors[i] for i in rest), sum(sizes[i] for i in rest)
    if not least <= left <= most:
        raise _misfit(names, sparsity, sum(sizes), fixed, (least, left, most), noun)
    if weights is None or not rest:
        # One group for all that compete, then one for each override.
        order = [rest] if rest else []
        counts = [left] if rest else []
    else:
        order = [[i] for i in rest]
        counts = spread(
            left, [weights[i] for i in rest], [sizes[i] for i in rest],
            [floors[i] for i in rest],
        )  # fmt: skip
    order += [[i] for i in fixed]
    counts += list(fixed.values())
    groups = {i: g for g, members in enumerate(order) for i in members}
    return tuple(counts), tuple(groups[i] for i in range(len(sizes)))


def allocate_units(
    names: tuple[str, ...],
    counts: Sequence[int],
    sizes: Sequence[int],
    weights: Sequence[Fraction] | None,
    sparsity: Fraction,
    fixed: dict[int, int],
    floors: tuple[int, ...],
    noun: str,
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Share a budget among layers that keep whole units.

    Where all units have one size the budget is that number of units which is next to
    the sparsity. Otherwise the layers whose units have one size share the number next
    to what they would keep of a budget of entries.

    Args:
        names: the layers, for messages.
        counts: the units of each.
        sizes: the entries of a unit of each.
        weights: the densities of each before scaling, from `densities`; None where
            those without an override compete.
        sparsity: of all of them together.
        fixed: the units that layers with an override keep, by number of the layer.
        floors: the fewest units that each keeps.
        noun: what a unit is called, for messages.

    Returns:
        The units to keep of each group, and the group of each layer.

    Raises:
        ValueError: when what is left does not fit the others, and for a global budget
            of units of several sizes.
    """
    if len(set(sizes)) <= 1:
        return allocate(names, counts, weights, sparsity, fixed, floors, noun)
    rest = [i for i in range(len(sizes)) if i not in fixed]
    others = [i for i in rest if sizes[i] != sizes[rest[0]]]
    if weights is None and others:
        i, j = rest[0], others[0]
        raise ValueError(
            f"allocation: 'global' needs units of one size; one of {names[i]} has "
            f"{sizes[i]:,} entries, one of {names[j]} {sizes[j]:,}; take "
            "allocation='uniform'"
        )
    entries = [count * size for count, size in zip(counts, sizes, strict=True)]
    bounds = [floor * size for floor, size in zip(floors, sizes, strict=True)]
    taken = {i: n * sizes[i] for i, n in fixed.items()}
    left = round_half_up(sum(entries) * (1 - sparsity)) - sum(taken.values())
    least, most = sum(bounds[i] for i in rest), sum(entries[i] for i in rest)
    # What is fixed is as near as whole units are.
    slack = sum(sizes[i] for i in fixed)
    if not least - slack <= left <= most + slack:
        room = (least, left, most)
        raise _misfit(names, sparsity, sum(entries), taken, room, "entries")
    left = min(max(left, least), most)
    each = [Fraction(1)] * len(sizes) if weights is None else weights
    shares = spread(
        left, [each[i] for i in rest], [entries[i] for i in rest],
        [bounds[i] for i in rest],
    )  # fmt: skip
    order, keep = [[i] for i in fixed], list(fixed.values())
    for size in dict.fromkeys(sizes[i] for i in rest):
        own = [i for i in rest if sizes[i] == size]
        share = sum(n for i, n in zip(rest, shares, strict=True) if sizes[i] == size)
        least, most = sum(floors[i] for i in own), sum(counts[i] for i in own)
        number = min(max(round_half_up(Fraction(share, size)), least), most)
        if weights is None:
            order, keep = [own, *order], [number, *keep]
            continue
        order += [[i] for i in own]
        keep += spread(
            number, [each[i] for i in own], [counts[i] for i in own],
            [floors[i] for i in own],
        )  # fmt: skip
    groups = {i: g for g, members in enumerate(order) for i in members}
    return tuple(keep), tuple(groups[i] for i in range(len(sizes)))


def _misfit(
    names: tuple[str, ...],
    sparsity: Fraction,
    total: int,
    fixed: dict[int, int],
    bounds: tuple[int, int, int],
    noun: str,
) -> ValueError:
    """Make the error for a budget that layers without an override cannot keep.

    Args:
        names: the layers.
        sparsity: of all.
        total: the entries of all.
        fixed: what those with an override keep.
        bounds: the least that the others can keep, what is left to them, and the most.
        noun: what all of these count.
    """
    least, left, most = bounds
    taken = f"the overrides take {sum(fixed.values()):,}, " if fixed else ""
    others = some([name for i, name in enumerate(names) if i not in fixed])
    return ValueError(
        f"sparsity {float(sparsity):g} keeps {round_half_up(total * (1 - sparsity)):,} "
        f"of {total:,} {noun}; {taken}{others or 'no other layers'} can keep {most:,} "
        f"at most and {least:,} at least (min_keep, so that no layer dies), not "
        f"{left:,}"
    )


def _density(sides: tuple[int, ...], allocation: Allocation) -> Fraction:
    """Tell the density of a layer before scaling: the same for all, or ERK's."""
    if allocation == "uniform" or not math.prod(sides):
        return Fraction(1)
    return Fraction(sum(sides), math.prod(sides))


def spread(
    total: int, weights: list[Fraction], sizes: list[int], floors: list[int]
) -> list[int]:
    """Share an exact total in proportion to weight times size, within bounds.

    Largest remainders get what rounding leaves; ties go to the earlier leaf.
    """
    count = len(sizes)
    fixed: dict[int, int] = {}
    while True:
        # A leaf that would pass its size or fall below its floor is held there, and
        # the others share again; each round holds at least one more.
        free = [i for i in range(count) if i not in fixed]
        mass = sum((weights[i] * sizes[i] for i in free), Fraction(0))
        left = total - sum(fixed.values())
        share = {i: left * weights[i] * sizes[i] / mass for i in free} if mass else {}
        over = {i: sizes[i] for i, s in share.items() if s > sizes[i]}
        under = {i: floors[i] for i, s in share.items() if s < floors[i]}
        # Hold the side with the larger excess first: holding both at once could
        # leave more, or less, than the free leaves can take.
        excess = sum((share[i] - sizes[i] for i in over), Fraction(0))
        lack = sum((floors[i] - share[i] for i in under), Fraction(0))
        if not over and not under:
            break
        fixed |= over if excess >= lack else under
    result = [fixed.get(i, 0) for i in range(count)]
    for i in free:
        result[i] = math.floor(share.get(i, 0))
    # Largest remainders take what rounding down left; ties go to the earlier leaf.
    short = total - sum(result)
    by_remainder = sorted(free, key=lambda i: (result[i] - share.get(i, 0), i))
    for i in by_remainder[:short]:
        result[i] += 1
    return result


def round_half_up(value: Fraction) -> int:
    """Round to the nearest integer, halves up."""
    return math.floor(value + Fraction(1, 2))


def some(paths: Sequence[str]) -> str:
    """List a few paths for a message."""
    shown = ", ".join(paths[:6])
    return shown if len(paths) <= 6 else f"{shown} and {len(paths) - 6} more"
