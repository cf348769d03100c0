"""What a plan counts, entries or blocks: by leaf, and by layer."""

from fractions import Fraction

from swapjax.sparsity.layout import Layout
from swapjax.sparsity.patterns import NM, Block

Shapes = tuple[tuple[int, ...], ...]


def grids(block: Block | None, layout: Layout) -> Shapes:
    """Tell the shape of each leaf in units."""
    if block is None:
        return layout.shapes
    return tuple(map(block.grid, layout.paths, layout.shapes, layout.stacking.axes))


def sizes(block: Block | None, layout: Layout) -> tuple[int, ...]:
    """Count the units of each layer."""
    found, stacking = grids(block, layout), layout.stacking
    return tuple(stacking.layer_size(i, found[i]) for i in stacking.leaf_of)


def sides(block: Block | None, layout: Layout) -> Shapes:
    """Tell the dimensions of each layer, by which ERK goes."""
    found, stacking = grids(block, layout), layout.stacking
    if block is not None:
        return tuple(stacking.layer_shape(i, found[i]) for i in stacking.leaf_of)
    return tuple(layout.roles[i].sides(found[i]) for i in stacking.leaf_of)


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
