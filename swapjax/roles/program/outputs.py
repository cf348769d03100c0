"""Outputs of layers, followed to tell experts from them.

Experts that read the same inputs, as those of a `vmap` over weights alone, are one
product with more outputs. So its outputs are followed on: where a later layer has a
batch dimension along an axis of them, or data weights a sum over it, that numbers
experts. Where a later layer sums over it, as that after attention does over heads, it
numbers outputs all the same.
"""

import math

from jax.extend import core

from swapjax.roles.program.products import dot_axes
from swapjax.roles.program.uses import PASSED
from swapjax.roles.program.values import Scope, Value, shape_of
from swapjax.roles.program.views import Axis, Shape, View, marks_of, union


def first(
    eqn: core.JaxprEqn, view: View, which: int, shapes: tuple[Shape, ...]
) -> list[View]:
    """Show the outputs of a layer, where they have several axes of the leaf.

    Args:
        eqn: the product of the layer.
        view: the leaf, as the operand shows it.
        which: of the operands.
        shapes: of the operands.
    """
    if eqn.primitive.name == "dot_general":
        numbers = eqn.params["dimension_numbers"]
        axes = dot_axes(view, which, numbers, shapes)
        experts = tuple(view.axes[i] for i in numbers[1][which])
        known = union(experts)
    elif eqn.primitive.name == "conv_general_dilated":
        numbers = eqn.params["dimension_numbers"]
        axes = [((n, 0),) for n in shape_of(eqn.outvars[0])]
        axes[numbers.out_spec[1]] = view.axes[numbers.rhs_spec[0]]
        known = 0
    else:
        return []
    inputs = view.marks() & ~union(tuple(axes))
    passed = view._replace(axes=_without(axes, known), summed=inputs, soft=PASSED)
    return [passed] if passed.marks().bit_count() > 1 else []


def onward(
    eqn: core.JaxprEqn,
    view: View,
    which: int,
    other: Value,
    shapes: tuple[Shape, ...],
    scope: Scope,
) -> list[View]:
    """Follow outputs through a later product, and note what it tells of them."""
    if eqn.primitive.name != "dot_general":
        return []
    numbers = eqn.params["dimension_numbers"]
    contracted, batched = numbers
    layers = [v for v in other.views if v.soft is None and not v.summed]
    summed = union(tuple(view.axes[i] for i in contracted[which]))
    side = union(tuple(view.axes[i] for i in batched[which]))
    rest = view._replace(axes=tuple(dot_axes(view, which, numbers, shapes)))
    if not other.data:
        scope.uses.summed(view.leaf, summed)
        for i, j in zip(batched[which], batched[1 - which], strict=True):
            if any(marks_of(layer.axes[j]) for layer in layers):
                marks = _whole(view.axes[i], scope.shapes[view.leaf])
                scope.uses.later(view.leaf, marks, "expert")
        return [rest] if rest.marks() else []
    theirs = (*contracted[1 - which], *batched[1 - which])
    size = math.prod(n for i, n in enumerate(shapes[1 - which]) if i not in theirs)
    if size == 1 and len(contracted[which]) == 1 and not side and rest.marks():
        marks = _whole(view.axes[contracted[which][0]], scope.shapes[view.leaf])
        _weighted(view, marks, rest.marks(), scope)
    return [rest] if rest.marks() else []


def _weighted(view: View, marks: int, left: int, scope: Scope) -> None:
    """Note a leaf that is summed with data twice, over one axis each.

    One of them has the weights of experts if the axis is the first of the leaf;
    otherwise the leaf is bilinear, and both are inputs.
    """
    if not marks or view.summed.bit_count() != 1:
        return
    every = view.summed | marks | left
    lowest = every & -every
    if lowest == view.summed:
        scope.uses.later(view.leaf, lowest, "expert")
    scope.uses.later(view.leaf, marks, "expert" if lowest == marks else "input")


def split(
    before: View, after: View, eqn: core.JaxprEqn, other: Value, scope: Scope
) -> None:
    """Note the outputs that become the experts of a convolution with groups.

    Args:
        before: the kernel.
        after: the kernel of one expert.
        eqn: the convolution.
        other: what it is convolved with.
        scope: where it is noted.
    """
    numbers = eqn.params["dimension_numbers"]
    output, features = numbers.rhs_spec[0], numbers.lhs_spec[1]
    count = len(before.axes[output]) - len(after.axes[output])
    experts = [n for n, _ in before.axes[output][:count]]
    for view in (v for v in other.views if v.soft is PASSED):
        leading = view.axes[features][:count]
        if count and [n for n, _ in leading] == experts:
            marks = union((leading,))
            scope.uses.later(view.leaf, marks, "expert")


def _without(axes: list[Axis], marks: int) -> tuple[Axis, ...]:
    return tuple(tuple((n, m & ~marks) for n, m in axis) for axis in axes)


def _whole(axis: Axis, sizes: Shape) -> int:
    """Return the marks of an axis that is one whole axis of the leaf, else none."""
    long = [(n, marks) for n, marks in axis if n > 1]
    if len(long) == 1:
        size, marks = long[0]
        if [i for i, n in enumerate(sizes) if 1 << i == marks and n == size]:
            return marks
    return 0
