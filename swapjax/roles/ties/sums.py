"""What sums, products and other reductions tie."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from swapjax.roles.ties.state import Axes, Meeting, Site, State
from swapjax.roles.ties.steps import Step

Rule = Callable[[State, Step, Sequence[Axes]], list[Axes]]


def sum(state: State, step: Step, operands: Sequence[Axes]) -> list[Axes]:
    """Note that a sum runs over axes."""
    axes = tuple(step.equation.params["axes"])
    state.sites.append(Site(step, 0, axes))
    return [tuple(x for i, x in enumerate(operands[0]) if i not in axes)]


def reduce(state: State, step: Step, operands: Sequence[Axes]) -> list[Axes]:
    """Pin axes that are reduced in another way."""
    axes = step.equation.params["axes"]
    for i in axes:
        state.union.pin(operands[0][i], f"is reduced by {step.name}")
    return [tuple(x for i, x in enumerate(operands[0]) if i not in axes)] * len(
        step.makes
    )


def window(state: State, step: Step, operands: Sequence[Axes]) -> list[Axes]:
    """Pin axes along which windows are pooled."""
    params = step.equation.params
    shape, made = state.shapes[step.makes[0]], []
    for i, labels in enumerate(operands[0]):
        settings = [
            params[name][i]
            for name in ("window_dimensions", "window_strides", "base_dilation")
        ]
        if settings == [1, 1, 1] and tuple(params["padding"][i]) == (0, 0):
            made.append(labels)
        else:
            why = f"is pooled by {step.name}"
            state.union.pin(labels, why)
            made.append(state.fresh((shape[i],), why)[0])
    return [tuple(made)]


def along(name: str) -> Rule:
    """Make the rule of what mixes all places of one axis, and keeps the others."""

    def rule(state: State, step: Step, operands: Sequence[Axes]) -> list[Axes]:
        axis = step.equation.params[name] if name else len(operands[0]) - 1
        why = f"is mixed by {step.name}"
        for axes in operands:
            state.union.pin(axes[axis], why)
            for i, labels in enumerate(axes):
                state.union.tie(operands[0][i], labels)
        results = []
        for number in step.makes:
            made, shape = list(operands[0]), state.shapes[number]
            if len(made[axis]) != shape[axis]:
                made[axis] = state.fresh((shape[axis],), why)[0]
            results.append(tuple(made))
        return results

    return rule


def dot(state: State, step: Step, operands: Sequence[Axes]) -> list[Axes]:
    """Let axes meet that are summed over together, or go side by side."""
    summed, batch = step.equation.params["dimension_numbers"]
    left, right = operands
    made = []
    for i, j in zip(*summed, strict=True):
        state.meetings.append(Meeting(left[i], right[j], None))
    for i, j in zip(*batch, strict=True):
        made.append(state.fresh((len(left[i]),))[0])
        state.meetings.append(Meeting(left[i], right[j], made[-1]))
    for which, axes in enumerate(summed):
        state.sites.append(Site(step, which, tuple(axes)))
    free = [
        labels
        for which, axes in enumerate((left, right))
        for i, labels in enumerate(axes)
        if i not in summed[which] and i not in batch[which]
    ]
    return [(*made, *free)]


def convolution(state: State, step: Step, operands: Sequence[Axes]) -> list[Axes]:
    """Tie the channels of images to the inputs of kernels; pin pixels."""
    params = step.equation.params
    if params["batch_group_count"] != 1:
        return state.unknown(step, operands)
    numbers, groups = params["dimension_numbers"], params["feature_group_count"]
    image, kernel = operands
    batch, channels, *pixels = numbers.lhs_spec
    outputs, inputs, *window = numbers.rhs_spec
    for axes, dims in ((image, pixels), (kernel, window)):
        for i in dims:
            state.union.pin(axes[i], "numbers the pixels of a convolution")
    if groups == 1:
        state.union.tie(image[channels], kernel[inputs])
        for which, axis in enumerate((channels, inputs)):
            state.sites.append(Site(step, which, (axis,)))
    else:
        # A group goes as a whole, since all others are to have the same size.
        units = state.union.fresh(groups)
        for labels in (image[channels], kernel[outputs]):
            state.union.tie(labels, np.repeat(units, len(labels) // groups))
        state.union.pin(kernel[inputs], "numbers the inputs of each group")
    shape = state.shapes[step.makes[0]]
    made: list[Any] = list(state.fresh(shape, "numbers the pixels of a convolution"))
    made[numbers.out_spec[0]] = image[batch]
    made[numbers.out_spec[1]] = kernel[outputs]
    return [tuple(made)]
