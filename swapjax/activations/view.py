"""Leaves, rearranged: which entry of a leaf stands where in an array of the program.

A view holds no array. It is the recipe for one of flat indices, made by doing with the
indices of a leaf what the program does with the leaf.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.extend import core


@dataclasses.dataclass(frozen=True)
class Level:
    """Slices of a stack that a program takes one of at a time.

    Attributes:
        depth: how many loops are around the place where it is taken.
        number: which of those that are taken at this depth.
        size: how many slices there are.
    """

    depth: int
    number: int
    size: int


@dataclasses.dataclass(frozen=True, eq=False)
class View:
    """An array whose entries are those of leaves.

    Attributes:
        leaves: the numbers of the leaves.
        shape: of the array.
        levels: the stacks it is a slice of, the outermost loop's first.
        whole: whether every entry of one leaf stands in it once, all slices together.
        recipe: what was done with which leaves; equal views have equal ones.
        replay: makes the array of flat indices into a leaf, given by number, [*sizes of
            levels, *shape]; -1 for what is no entry of this leaf.
    """

    leaves: frozenset[int]
    shape: tuple[int, ...]
    levels: tuple[Level, ...]
    whole: bool
    recipe: tuple
    replay: Callable[[int], jax.Array]


def of_leaf(leaf: int, shape: tuple[int, ...]) -> View:
    """View a leaf as it is."""

    def replay(which: int) -> jax.Array:
        if which != leaf:
            return jnp.full(shape, -1, jnp.int32)
        return jax.lax.iota(jnp.int32, math.prod(shape)).reshape(shape)

    return View(frozenset({leaf}), shape, (), True, (leaf,), replay)


def move(
    eqn: core.JaxprEqn,
    operands: Sequence[View | None],
    shapes: Sequence[tuple],
    results: Sequence[tuple],
) -> list[View]:
    """Rearrange views by an equation, which may join several and cut them.

    Args:
        eqn: the equation.
        operands: its operands, None for those that are no views.
        shapes: theirs.
        results: the shapes of what comes out.
    """
    views = [view for view in operands if view is not None]
    levels = tuple(
        sorted({level for view in views for level in view.levels}, key=_place)
    )
    several = eqn.primitive.multiple_results
    bind = functools.partial(eqn.primitive.bind, **eqn.params)
    for level in reversed(levels):
        axes = tuple(
            0 if v is not None and level in v.levels else None for v in operands
        )
        bind = jax.vmap(bind, in_axes=axes)

    def replay(which: int, result: int) -> jax.Array:
        indices = (
            jnp.full(shape, -1, jnp.int32) if view is None else view.replay(which)
            for view, shape in zip(operands, shapes, strict=True)
        )  # fmt: skip
        found = bind(*indices)
        return found[result] if several else found

    of = (
        ("other", *shape) if view is None else view.recipe
        for view, shape in zip(operands, shapes, strict=True)
    )
    recipe = (eqn.primitive.name, repr(eqn.params), *of)
    kept = len(operands) == len(results) == 1
    kept &= math.prod(results[0]) == math.prod(shapes[0])
    return [
        View(
            leaves=frozenset().union(*(view.leaves for view in views)),
            shape=shape,
            levels=levels,
            whole=kept and views[0].whole,
            recipe=(*recipe, i),
            replay=functools.partial(replay, result=i),
        )
        for i, shape in enumerate(results)
    ]


def cut(view: View, starts: Sequence[int | None], sizes: Sequence[int]) -> View:
    """Cut a block out.

    Args:
        view: what to cut from.
        starts: where it starts; None for an axis that is left as it is.
        sizes: its shape.
    """
    extent = [
        (0, size) if start is None else (start, start + size)
        for start, size in zip(starts, sizes, strict=True)
    ]
    where = (..., *(slice(*ends) for ends in extent))
    whole = view.whole and tuple(sizes) == view.shape
    return dataclasses.replace(
        view,
        shape=tuple(sizes),
        whole=whole,
        recipe=("cut", view.recipe, *extent),
        replay=lambda i: view.replay(i)[where],
    )


def step(view: View, level: Level) -> View:
    """Take the slice of a loop over the first axis."""
    return dataclasses.replace(
        view,
        shape=view.shape[1:],
        levels=(*view.levels, level),
        recipe=("step", view.recipe, level),
    )


def unstep(view: View, level: Level) -> View | None:
    """Undo `step`, as a loop does that stacks the slices again; None if it cannot."""
    if not view.levels or view.levels[-1] != level:
        return None
    return dataclasses.replace(
        view,
        shape=(level.size, *view.shape),
        levels=view.levels[:-1],
        recipe=("unstep", view.recipe),
    )


def pick(view: View, axis: int, level: Level) -> View:
    """Take the slice of an axis, of size 1, that a number in the program tells."""
    place = len(view.levels)

    def replay(which: int) -> jax.Array:
        index = jnp.moveaxis(view.replay(which), place + axis, place)
        return jnp.expand_dims(index, place + 1 + axis)

    shape = (*view.shape[:axis], 1, *view.shape[axis + 1 :])
    return dataclasses.replace(
        view,
        shape=shape,
        levels=(*view.levels, level),
        recipe=("pick", view.recipe, axis, level),
        replay=replay,
    )


def _place(level: Level) -> tuple[int, int]:
    return level.depth, level.number
