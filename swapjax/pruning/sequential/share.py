"""What one block has of a plan: its layers, their names and their counts."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import jax

from swapjax.activations.segments_blocks import Block
from swapjax.activations.segments_unroll import Ref
from swapjax.roles.role import Role
from swapjax.sparsity.layout import Layout
from swapjax.sparsity.patterns import NM
from swapjax.sparsity.plan import Plan


@dataclasses.dataclass(frozen=True)
class Share:
    """The part of a plan that is settled in one block.

    Attributes:
        plan: of the leaves of the block, or the slices of leaves, by paths within it,
            so that equal blocks have equal plans.
        layers: the numbers of its layers in the whole plan, by those of its own.
    """

    plan: Plan
    layers: tuple[int, ...]


def share_out(
    whole: Plan, paths: Sequence[str], blocks: Sequence[Block]
) -> tuple[Share, ...]:
    """Take a plan apart by blocks.

    Args:
        whole: of all params.
        paths: of all leaves of params.
        blocks: of their program, each with prunable leaves.

    Raises:
        ValueError: for layers of two blocks that compete for one budget, and for units
            that leaves share.
    """
    if whole.units is not None:
        raise ValueError(
            f"plan: {whole.units.pattern} takes whole units, which block by block "
            "cannot do; leave sequential out"
        )
    found = tuple(_share(whole, paths, block) for block in blocks)
    owner: dict[int, int] = {}
    for number, share in enumerate(found):
        for layer in share.layers:
            other = owner.setdefault(whole.groups[layer], number)
            if other != number:
                names = " and ".join(blocks[i].name for i in (other, number))
                raise ValueError(
                    f"plan: layers of {names} compete for one budget, which block by "
                    "block cannot be settled; make the plan with "
                    "allocation='uniform', or with overrides"
                )
    return found


def _share(whole: Plan, paths: Sequence[str], block: Block) -> Share:
    layout = whole.layout
    numbers = [layout.paths.index(paths[ref.leaf]) for ref in block.refs]
    pairs = tuple(zip(block.refs, numbers, strict=True))
    own = Layout(
        paths=tuple(_short(block.name, layout.paths[i]) for i in numbers),
        shapes=tuple(_sliced(ref, layout.shapes[i]) for ref, i in pairs),
        positions=tuple(range(len(pairs))),
        treedef=jax.tree.structure(tuple(range(len(pairs)))),
        roles=tuple(_role(ref, layout.roles[i]) for ref, i in pairs),
    )
    layers = [0] * own.stacking.count
    for (ref, i), mine in zip(pairs, own.stacking.numbers, strict=True):
        for new, old in zip(mine, _of_row(whole, ref, i), strict=True):
            layers[new] = old
    groups = sorted({whole.groups[n] for n in layers})
    plan = dataclasses.replace(
        whole,
        layout=own,
        floors=tuple(whole.floors[n] for n in layers),
        overrides=tuple(whole.overrides[n] for n in layers),
        patterns=tuple(
            _pattern(ref, layout.paths[i], whole.patterns[i]) for ref, i in pairs
        ),
        keep=tuple(whole.keep[group] for group in groups),
        groups=tuple(groups.index(whole.groups[n]) for n in layers),
        left_out=(),
    )
    return Share(plan, tuple(layers))


def _short(block: str, path: str) -> str:
    """Name a leaf within its block."""
    within = path.removeprefix(block.split("[")[0]).lstrip("/.")
    return within or re.split("[/.]", path)[-1]


def _sliced(ref: Ref, of_leaf: tuple[Any, ...]) -> tuple[Any, ...]:
    return of_leaf if ref.row is None else of_leaf[1:]


def _role(ref: Ref, role: Role) -> Role:
    if ref.row is None:
        return role
    pixels = tuple(axis - 1 for axis in role.pixels)
    return dataclasses.replace(role, axes=role.axes[1:], pixels=pixels)


def _pattern(ref: Ref, path: str, pattern: NM | None) -> NM | None:
    """Tell where the groups of a pattern lie in a slice."""
    if ref.row is None or pattern is None:
        return pattern
    assert pattern.axis is not None
    several = (pattern.axis,) if isinstance(pattern.axis, int) else pattern.axis
    if 0 in several:
        raise ValueError(
            f"plan: the groups of {pattern} lie across the layers of {path}, which "
            "block by block cannot choose among; leave sequential out"
        )
    axes = tuple(axis - 1 for axis in several)
    return dataclasses.replace(pattern, axis=axes if len(axes) > 1 else axes[0])


def _of_row(whole: Plan, ref: Ref, leaf: int) -> tuple[int, ...]:
    """List the layers of a slice of a leaf, which are neighbours in the stack."""
    numbers = whole.layout.stacking.numbers[leaf]
    if ref.row is None or len(numbers) == 1:
        return numbers
    count = len(numbers) // whole.layout.shapes[leaf][0]
    return numbers[ref.row * count : (ref.row + 1) * count]
