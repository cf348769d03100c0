"""Products of a leaf: what each of its axes does in them."""

import math
from typing import Any

from jax.extend import core

from swapjax.roles.program.uses import Use, matrix_use
from swapjax.roles.program.views import (
    PLACED,
    Factor,
    View,
    is_repeated,
    length,
    marks_of,
    resized,
    union,
)
from swapjax.roles.role import Axis

_ALONE = "is multiplied with weights alone"
Words = list[Axis]  # one an axis of an operand


def of_dot(numbers: Any, which: int, rank: int) -> Words:
    """Tell what the axes of an operand of a ``dot_general`` do."""
    contracted, batched = numbers[0][which], numbers[1][which]
    words: Words = ["output"] * rank
    for i in contracted:
        words[i] = "input"
    for i in batched:
        words[i] = "expert"
    return words


def of_ragged_dot(numbers: Any, which: int, rank: int) -> Words:
    """Tell what the axes of an operand of a ``ragged_dot_general`` do."""
    words = of_dot(numbers.dot_dimension_numbers, which, rank)
    if which == 1:
        for i in numbers.rhs_group_dimensions:
            words[i] = "expert"
    return words


def used(
    view: View,
    words: Words,
    shape: tuple[int, ...],
    how: str,
    groups: int = 1,
    pixels: int = 0,
) -> Use:
    """Make the use of a leaf in a product with data.

    Args:
        view: the leaf, as the operand shows it.
        words: what the axes of the operand do.
        shape: of the leaf.
        how: the primitive.
        groups: of a convolution.
        pixels: marks of the axes that number those of its kernel.
    """
    pairs = list(zip(view.axes, words, strict=True))
    foreign = any(_is_foreign(view, *pair) for pair in pairs)
    if view.summed and not view.turned and (view.bent or foreign):
        return as_input(view, shape)
    found: list[set[Axis]] = [set() for _ in shape]
    # An axis of one place says what it does only where no longer one does.
    for axis, word in sorted(pairs, key=lambda pair: length(pair[0]) == 1):
        marks = marks_of(axis)
        _add(found, marks & ~_known(found) if length(axis) == 1 else marks, word)
    if not view.turned:
        both = [i for i, known in enumerate(found) if {"input", "output"} <= known]
        rest = set().union(*(known for i, known in enumerate(found) if i not in both))
        if both and not {"input", "output"} <= rest:
            return Use(view.leaf, "vector", _ALONE, weak=True)
        for i in both:
            found[i] = {"input"}  # the bond of a tensor train
    lost = view.summed & ~view.marks() & ~view.stack
    if lost:
        # Summed with no axis left to tell of it: a mean of matrices, or a vector
        # through one.
        if not {"input", "output"} <= set().union(*found):
            return as_input(view, shape)
        _add(found, lost, "stack")
    _add(found, view.stack, "stack")
    _add(found, view.chosen, "expert")
    narrow = view.narrow or (
        not view.depth
        and any(word == "output" and is_repeated(axis) for axis, word in pairs)
    )
    return matrix_use(
        view.leaf,
        shape,
        found,
        narrow=narrow,
        groups=groups,
        pixels=pixels,
        how=f"scales inputs or outputs in {how}",
        weak=view.reduced,
    )


def _is_foreign(view: View, axis: tuple[Factor, ...], word: Axis) -> bool:
    """Whether a product runs along an axis that a product of weights has not.

    Weights that were multiplied with each other are one matrix when data comes. What
    was repeated for each example, or cut into heads, is what a layer without data
    made of a constant input.
    """
    if word != "expert" or length(axis) == 1:
        return False
    return is_repeated(axis) or bool(marks_of(axis) & ~view.batched)


def as_input(view: View, shape: tuple[int, ...]) -> Use:
    """Make the use of a leaf in a layer whose inputs do not depend on data."""
    if view.narrow:
        return Use(view.leaf, "vector", _ALONE, weak=True)
    words: list[set[Axis]] = []
    for i in range(len(shape)):
        bit = 1 << i
        word: Axis = "output"
        if view.summed & bit:
            word = "input"
        elif view.stack & bit:
            word = "stack"
        elif (view.batched | view.chosen) & bit:
            word = "expert"
        words.append({word})
    return matrix_use(view.leaf, shape, words, narrow=True, how=_ALONE, weak=True)


def _known(found: list[set[Axis]]) -> int:
    return sum(1 << i for i, words in enumerate(found) if words)


def _add(found: list[set[Axis]], marks: int, word: Axis) -> None:
    for i, words in enumerate(found):
        if marks >> i & 1:
            words.add(word)


def through_dot(
    view: View,
    which: int,
    numbers: Any,
    shapes: tuple[tuple[int, ...], ...],
    *,
    constant: bool,
) -> View:
    """Follow a leaf through a ``dot_general`` with what does not depend on data.

    What was contracted is from now on told by the free axes of the other operand: where
    those meet data, so would it, had the data come first.

    Args:
        view: the operand.
        which: of the operands.
        numbers: which axes are contracted, and batched.
        shapes: of the operands.
        constant: whether the other operand shows no leaf.
    """
    contracted, batched = numbers[0][which], numbers[1][which]
    summed = union(tuple(view.axes[i] for i in contracted))
    axes = dot_axes(view, which, numbers, shapes, summed)
    mine = (*contracted, *batched)
    free = [a for i, a in enumerate(view.axes) if i not in mine]
    batch = union(tuple(view.axes[i] for i in batched))
    theirs = numbers[0][1 - which], numbers[1][1 - which]
    sizes = shapes[1 - which]
    over = math.prod(sizes[i] for i in theirs[0])
    along = math.prod(n for i, n in enumerate(sizes) if i not in theirs[0] + theirs[1])
    made = _made(view, axes, summed, batch, any(map(is_repeated, free)))
    return made._replace(turned=view.turned and constant and over == along)


def dot_axes(
    view: View,
    which: int,
    numbers: Any,
    shapes: tuple[tuple[int, ...], ...],
    marks: int = 0,
) -> list[tuple[Factor, ...]]:
    """Lay the axes of an operand of a ``dot_general`` along those of the result.

    Args:
        view: the operand.
        which: of the operands.
        numbers: which axes are contracted, and batched.
        shapes: of the operands.
        marks: given to the free axes of the other operand.
    """
    contracted, batched = numbers
    mine = (*contracted[which], *batched[which])
    theirs = (*contracted[1 - which], *batched[1 - which])
    own = [axis for i, axis in enumerate(view.axes) if i not in mine]
    others = [((n, marks),) for i, n in enumerate(shapes[1 - which]) if i not in theirs]
    free = [*own, *others] if which == 0 else [*others, *own]
    return [*(view.axes[i] for i in batched[which]), *free]


def through_convolution(
    view: View, which: int, numbers: Any, shape: tuple[int, ...]
) -> View:
    """Follow a leaf through a convolution with what does not depend on data."""
    output = numbers.out_spec
    axes: list[tuple[Factor, ...]] = [()] * len(shape)
    if which == 0:
        batch, feature, *pixels = numbers.lhs_spec
        summed = marks_of(view.axes[feature])
        axes[output[0]] = view.axes[batch]
        axes[output[1]] = ((shape[output[1]], summed),)
        for place, pixel in zip(output[2:], pixels, strict=True):
            axes[place] = resized(view.axes[pixel], shape[place])
    else:
        feature, channels, *pixels = numbers.rhs_spec
        summed = marks_of(view.axes[channels])
        axes[output[0]] = ((shape[output[0]], summed),)
        axes[output[1]] = view.axes[feature]
        for place, pixel in zip(output[2:], pixels, strict=True):
            axes[place] = ((shape[place], marks_of(view.axes[pixel])),)
    return _made(view, axes, summed, 0, narrow=False)._replace(turned=False)


def _made(view: View, axes: list[Any], summed: int, batched: int, narrow: bool) -> View:
    first = not view.summed or view.turned
    return view._replace(
        axes=tuple(axes),
        summed=summed & ~PLACED if first else view.summed,
        batched=view.batched | batched if first else view.batched,
        narrow=narrow if first else view.narrow,
        depth=view.depth + 1,
    )


def of_convolution(eqn: core.JaxprEqn, view: View) -> tuple[Words, View, int, int]:
    """Tell what the axes of a kernel do, and in how many groups its outputs fall.

    ``vmap`` makes the kernels of several networks one, with a group for each. They are
    told from other groups by where they lie in the leaf: before the pixels, or nowhere
    when each example scales the kernel.

    Returns:
        The words, the view without the axes that number networks, the groups, and the
        marks of the pixels.
    """
    output, channels, *window = eqn.params["dimension_numbers"].rhs_spec
    groups = max(eqn.params["feature_group_count"], eqn.params["batch_group_count"])
    words: Words = ["input"] * len(view.axes)
    words[output] = "output"
    others = union(view.axes[:output] + view.axes[output + 1 :])
    lowest = others & -others
    factors = list(view.axes[output])
    chosen = 0
    while len(factors) > 1 and groups > 1:
        size, marks = factors[0]
        if groups % size or marks >= lowest:
            break
        chosen |= marks
        groups //= size
        del factors[0]
    pixels = union(tuple(view.axes[i] for i in window)) & ~marks_of(view.axes[channels])
    axes = tuple(tuple(factors) if i == output else a for i, a in enumerate(view.axes))
    return words, view._replace(axes=axes, chosen=view.chosen | chosen), groups, pixels
