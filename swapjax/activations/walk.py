"""Evaluate a program equation by equation, and follow leaves to their products.

A leaf is followed through equations that only rearrange it, cut it or join it to others
(transposes, reshapes, slices, concatenations), that scale it or multiply it with a
constant, into programs that are called (``jit``, ``jax.checkpoint``, functions with
custom derivatives), and into loops and branches. Where it enters a ``dot_general``, has
the experts of a ``ragged_dot_general``, or is the kernel of a
``conv_general_dilated``, the other operand is the input of its layer. A leaf that
enters any other equation is not a layer, which raises an error that names it.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from swapjax.activations import constants, loops
from swapjax.activations import view as views
from swapjax.activations.dependence import called
from swapjax.activations.product import of_convolution, of_dot, of_ragged_dot
from swapjax.activations.values import Frame, Value
from swapjax.core import programs
from swapjax.roles.program.primitives import CALLS, MOVES, SAME

_SAME = SAME | {"optimization_barrier"}
_MOVES = MOVES | {"concatenate", "pad", "slice", "split", "stack"}
_LOOPS = {"scan": loops.scan, "while": loops.while_loop, "cond": loops.cond}
_WORDS = {
    "gather": "is looked up by gather, as a table is",
    "dynamic_update_slice": "is written into by dynamic_update_slice",
    "shard_map": "is used within shard_map, where it cannot be followed",
}


def walk(
    program: core.Jaxpr, consts: Sequence[Any], inputs: Sequence[Value], frame: Frame
) -> list[Value]:
    """Evaluate a program, and append each product with a leaf to those of the frame."""
    return programs.evaluate(
        program,
        consts,
        inputs,
        lambda _, eqn, operands: _evaluate(eqn, operands, frame),
        known=Value,
    )


def _evaluate(eqn: core.JaxprEqn, operands: list[Value], frame: Frame) -> list[Value]:
    """Evaluate one equation."""
    name = eqn.primitive.name
    if name in CALLS:
        return walk(*called(eqn), operands, frame)
    if any(value.early is not None for value in operands):
        found = _early(eqn, operands, frame)
        if found is not None:
            return [found]
        operands = [constants.settle(value, frame) for value in operands]
    views_in = [value.view for value in operands if value.view is not None]
    if views_in and name in _LOOPS:
        return _LOOPS[name](eqn, operands, frame, walk)

    arrays = programs.bind(eqn, [value.array for value in operands])
    data = any(value.data for value in operands)
    plain = [Value(array, data) for array in arrays]
    if not views_in:
        if len(operands) == 1:
            kept = constants.narrow(eqn, operands[0])
            return [dataclasses.replace(value, narrow=kept) for value in plain]
        return plain
    moved = _move(eqn, operands, plain, frame)
    if moved is not None:
        return moved
    if name in ("mul", "div", "neg", "add", "sub"):
        leaf = constants.scale(eqn, operands)
        if leaf is not None:
            return [dataclasses.replace(leaf, array=plain[0].array)]
    if name == "dot_general":
        return [_dot(eqn, operands, plain[0], frame)]
    if name == "conv_general_dilated":
        _convolve(eqn, operands, frame)
        return plain
    if name == "ragged_dot_general" and _share_out(eqn, operands, frame):
        return plain
    raise frame.error(views_in[0], _WORDS.get(name, f"enters the loss through {name}"))


def _move(
    eqn: core.JaxprEqn, operands: list[Value], plain: list[Value], frame: Frame
) -> list[Value] | None:
    """Rearrange views; None if the equation does something else."""
    name = eqn.primitive.name
    if name in _SAME and len(operands) == len(plain):
        return [
            dataclasses.replace(value, array=result.array)
            for value, result in zip(operands, plain, strict=True)
        ]
    if name == "dynamic_slice" and operands[0].view is not None:
        seen = [_slice(eqn, operands, frame)]
    elif name in _MOVES:
        shapes = [
            [jnp.shape(v.array) for v in several] for several in (operands, plain)
        ]
        seen = views.move(eqn, [value.view for value in operands], *shapes)
    else:
        return None
    leaf = next(value for value in operands if value.view is not None)
    scales = [value for value in operands if value.scale is not None]
    if scales and name in ("concatenate", "stack"):
        raise frame.error(seen[0], f"is scaled and enters {name}")
    return [
        Value(
            result.array,
            result.data,
            view,
            constants.moved_scale(eqn, leaf, len(view.shape), frame)
            if scales
            else None,
        )
        for result, view in zip(plain, seen, strict=True)
    ]


def _slice(eqn: core.JaxprEqn, operands: list[Value], frame: Frame) -> views.View:
    """Take a ``dynamic_slice`` of a view."""
    leaf, *starts = operands
    seen, sizes = leaf.view, eqn.params["slice_sizes"]
    assert seen is not None
    fixed: list[int | None] = []
    for side, size, start in zip(seen.shape, sizes, starts, strict=True):
        told = size < side and not isinstance(start.array, jax.core.Tracer)
        fixed.append(min(max(int(start.array), 0), side - size) if told else None)
    cut = [
        size if start is not None else side
        for side, size, start in zip(seen.shape, sizes, fixed, strict=True)
    ]
    result = views.cut(seen, fixed, cut)
    for axis, size in enumerate(sizes):
        side = result.shape[axis]
        if size == side:
            continue
        if size > 1:
            raise frame.error(seen, "is cut where a number in the program tells")
        index = jnp.clip(starts[axis].array, 0, side - 1)
        result = views.pick(result, axis, frame.open(side, index))
    return result


def _dot(
    eqn: core.JaxprEqn, operands: list[Value], plain: Value, frame: Frame
) -> Value:
    """Take a ``dot_general`` that a leaf enters."""
    which = 0 if operands[0].view is not None else 1
    leaf, other = operands[which], operands[1 - which]
    assert leaf.view is not None
    if other.view is not None:
        raise frame.error(leaf.view, "is multiplied with a leaf that may be pruned")
    if not other.data:
        product = constants.early(eqn, which, leaf, other)
        if product is not None:
            return dataclasses.replace(plain, early=product)
        frame.add(constants.at_once(eqn, which, leaf, other, frame))
        return plain
    found = of_dot(eqn, leaf.view, which, leaf.array.shape, other.array)
    frame.add(constants.scaled(found, leaf, frame))
    return plain


def _convolve(eqn: core.JaxprEqn, operands: list[Value], frame: Frame) -> None:
    """Take a ``conv_general_dilated`` that a leaf enters."""
    image, kernel = operands
    if image.view is not None:
        raise frame.error(image.view, "is convolved as an image, not as a kernel")
    assert kernel.view is not None
    if eqn.params["batch_group_count"] > 1:
        raise frame.error(
            kernel.view, "is the kernel of a convolution with groups of examples"
        )
    found = of_convolution(eqn, kernel.view, kernel.array.shape, image.array)
    if not image.data:
        found = found._replace(moment=found.moment * frame.examples)
    frame.add(constants.scaled(found, kernel, frame))


def _share_out(eqn: core.JaxprEqn, operands: list[Value], frame: Frame) -> bool:
    """Take a ``ragged_dot_general`` of rows with the matrices of experts, or do not."""
    rows, leaf, sizes = operands
    if leaf.view is None or rows.view is not None or not rows.data:
        return False
    found = of_ragged_dot(eqn, leaf.view, leaf.array.shape, rows.array, sizes.array)
    if found is not None:
        frame.add(constants.scaled(found, leaf, frame))
    return found is not None


def _early(eqn: core.JaxprEqn, operands: list[Value], frame: Frame) -> Value | None:
    """Follow a product of a leaf with a constant; None where that ends."""
    name = eqn.primitive.name
    (product, which), *others = [
        (value.early, i) for i, value in enumerate(operands) if value.early is not None
    ]
    if others or product is None:
        return None
    if name in _SAME or name == "transpose":
        if name == "transpose":
            product = constants.transposed(eqn, product)
        array = eqn.primitive.bind(operands[0].array, **eqn.params)
        return Value(array, operands[0].data, early=product)
    if name != "dot_general" or not operands[1 - which].data:
        return None
    other = operands[1 - which]
    if other.view is not None:
        return None
    found = constants.met(eqn, which, product, other, frame)
    if found is None:
        return None
    frame.add(found)
    arrays = (value.array for value in operands)
    return Value(eqn.primitive.bind(*arrays, **eqn.params), data=True)
