"""What is known of values that are moved, cut, joined, summed or looked up."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from swapjax.deploy.known import Known, alike, masked, nothing, summed
from swapjax.roles.ties.reshape import blocks
from swapjax.roles.ties.steps import Shape, Step

Move = Callable[[Step, Sequence[Known], Shape], Known]


def _broadcast(step: Step, operands: Sequence[Known], shape: Shape) -> Known:
    dims = step.equation.params["broadcast_dimensions"]

    def move(x: np.ndarray) -> np.ndarray:
        sides = [1] * len(shape)
        for dim, side in zip(dims, x.shape, strict=True):
            sides[dim] = side
        return x.reshape(sides)

    return operands[0].on(move, shape)


def _reshape(step: Step, operands: Sequence[Known], shape: Shape) -> Known:
    old = operands[0].shape
    if 0 in old:
        return nothing(shape)
    matched = blocks(old, shape)

    def move(x: np.ndarray) -> np.ndarray:
        before, after = list(x.shape), [1] * len(shape)
        for left, right in matched:
            if all(before[i] == 1 for i in left):
                continue
            for i in left:
                before[i] = old[i]
            for i in right:
                after[i] = shape[i]
        return np.broadcast_to(x, before).reshape(after)

    return operands[0].on(move, shape)


def _transpose(step: Step, operands: Sequence[Known], shape: Shape) -> Known:
    order = step.equation.params["permutation"]
    return operands[0].on(lambda x: np.transpose(x, order), shape)


def _squeeze(step: Step, operands: Sequence[Known], shape: Shape) -> Known:
    gone = tuple(step.equation.params["dimensions"])
    return operands[0].on(lambda x: np.squeeze(x, gone), shape)


def _expand(step: Step, operands: Sequence[Known], shape: Shape) -> Known:
    new = tuple(step.equation.params["dimensions"])
    return operands[0].on(lambda x: np.expand_dims(x, new), shape)


def _rev(step: Step, operands: Sequence[Known], shape: Shape) -> Known:
    turned = tuple(step.equation.params["dimensions"])
    return operands[0].on(lambda x: np.flip(x, turned), shape)


def _slice(step: Step, operands: Sequence[Known], shape: Shape) -> Known:
    params = step.equation.params
    strides = params["strides"] or (1,) * len(shape)
    limits = zip(params["start_indices"], params["limit_indices"], strides, strict=True)
    cuts = [slice(*limit) for limit in limits]

    def move(x: np.ndarray) -> np.ndarray:
        sides = zip(x.shape, operands[0].shape, cuts, strict=True)
        return x[tuple(cut if n == whole else slice(None) for n, whole, cut in sides)]

    return operands[0].on(move, shape)


def _concatenate(step: Step, operands: Sequence[Known], shape: Shape) -> Known:
    dim = step.equation.params["dimension"]

    def join(parts: list[np.ndarray]) -> np.ndarray:
        sides = np.max([part.shape for part in parts], axis=0)
        wanted = [
            [part.shape[i] if i == dim else n for i, n in enumerate(sides)]
            for part in parts
        ]
        pairs = zip(parts, wanted, strict=True)
        return np.concatenate([np.broadcast_to(x, w) for x, w in pairs], axis=dim)

    whole = [x.along([dim]) for x in operands]
    return Known(join([x.value for x in whole]), join([x.known for x in whole]), shape)


def _pad(step: Step, operands: Sequence[Known], shape: Shape) -> Known:
    config, (x, filling) = step.equation.params["padding_config"], operands
    if any(inner or low < 0 or high < 0 for low, high, inner in config):
        return nothing(shape)
    if filling.is_whole and x.is_whole and (x.value == filling.value).all():
        ones = (1,) * len(shape)
        return masked(filling.value.reshape(ones), filling.known.reshape(ones), shape)
    x = x.along([i for i, (low, high, _) in enumerate(config) if low or high])
    ends = [(low, high) for low, high, _ in config]
    value = np.pad(x.value, ends, constant_values=filling.value.item())
    known = np.pad(x.known, ends, constant_values=bool(filling.known))
    return masked(value, known, shape)


def _sum(step: Step, operands: Sequence[Known], shape: Shape) -> Known:
    del shape
    return summed(operands[0], tuple(step.equation.params["axes"]))


def _extreme(best: Callable[..., Any]) -> Move:
    """Make the rule of a maximum or a minimum."""

    def rule(step: Step, operands: Sequence[Known], shape: Shape) -> Known:
        axes = tuple(step.equation.params["axes"])
        known = np.asarray(np.all(operands[0].known, axis=axes))
        return masked(best(operands[0].value, axis=axes), known, shape)

    return rule


def _window(step: Step, operands: Sequence[Known], shape: Shape) -> Known:
    """Pool: what is the same over all pixels stays so; a sum, if it is zero."""
    params, (x, *_) = step.equation.params, operands
    pooled = tuple(
        i
        for i in range(len(shape))
        if (params["window_dimensions"][i], params["window_strides"][i]) != (1, 1)
        or tuple(params["padding"][i]) != (0, 0)
    )
    if any(n != 1 for n in params["base_dilation"]):
        return nothing(shape)
    x = alike(x, pooled)
    if step.name == "reduce_window_sum":
        count = 1
        for i in pooled:
            count *= params["window_dimensions"][i]
        padded = any(low or high for low, high in params["padding"])
        known = x.zero if padded else x.known
        return masked(x.value * count, known, shape)
    return Known(x.value, x.known, shape)


def _gather(step: Step, operands: Sequence[Known], shape: Shape) -> Known:
    """Look up: what is the same in all rows is known."""
    numbers = step.equation.params["dimension_numbers"]
    sizes, table = step.equation.params["slice_sizes"], operands[0]
    if numbers.operand_batching_dims:
        return nothing(shape)
    partly = tuple(i for i, n in enumerate(table.shape) if sizes[i] != n)
    found, dropped = alike(table, partly), tuple(numbers.collapsed_slice_dims)

    def move(x: np.ndarray) -> np.ndarray:
        if any(x.shape[i] != 1 for i in dropped):
            x = x[
                tuple(
                    slice(0, 1) if i in dropped else slice(None) for i in range(x.ndim)
                )
            ]
        x, sides = np.squeeze(x, dropped), [1] * len(shape)
        for dim, side in zip(sorted(numbers.offset_dims), x.shape, strict=True):
            sides[dim] = side
        return x.reshape(sides)

    if any(i in dropped and i not in partly and table.shape[i] > 1 for i in dropped):
        return nothing(shape)
    return found.on(move, shape)


def _part(step: Step, operands: Sequence[Known], shape: Shape) -> Known:
    """Take a part that a number tells: what is the same everywhere is known."""
    whole = operands[0].shape
    cut = tuple(i for i, n in enumerate(shape) if n != whole[i])
    found = alike(operands[0], cut)
    return Known(found.value, found.known, shape)


MOVES: dict[str, Move] = {
    "broadcast_in_dim": _broadcast,
    "concatenate": _concatenate,
    "dynamic_slice": _part,
    "expand_dims": _expand,
    "gather": _gather,
    "pad": _pad,
    "reduce_max": _extreme(np.max),
    "reduce_min": _extreme(np.min),
    "reduce_sum": _sum,
    "reduce_window_max": _window,
    "reduce_window_min": _window,
    "reduce_window_sum": _window,
    "reshape": _reshape,
    "rev": _rev,
    "slice": _slice,
    "squeeze": _squeeze,
    "transpose": _transpose,
}


def parts(step: Step, operand: Known, shapes: Sequence[Shape]) -> list[Known]:
    """Split along an axis."""
    axis, sizes = step.equation.params["axis"], step.equation.params["sizes"]
    whole = operand.along([axis])
    ends = list(itertools.accumulate(sizes))[:-1]
    values, known = (np.split(x, ends, axis) for x in (whole.value, whole.known))
    return [Known(*each) for each in zip(values, known, shapes, strict=True)]
