"""Products whose backward pass takes some blocks of the gradient only, gathered."""

import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core

from swapjax.backward.linear import block_norms, by_operand, once, scaled
from swapjax.backward.sampling import draw_fixed
from swapjax.core import programs

Along = Literal["channels", "examples"]


class Blocks(NamedTuple):
    """How the gradient of a product's output is cut into blocks.

    Attributes:
        equation: a ``dot_general`` or a ``conv_general_dilated``.
        which: the operand that has the axis of the blocks too: that of the data for
            examples, that of the weight for channels.
        axis: of that operand.
        output_axis: of the gradient.
        number: of blocks along it.
        kept: how many of them are.
    """

    equation: core.JaxprEqn
    which: int
    axis: int
    output_axis: int
    number: int
    kept: int

    def product(self, *operands: jax.Array) -> jax.Array:
        """Compute it."""
        return programs.bind(self.equation, operands)[0]


def blocks_of(
    equation: Any, data: int, along: Along, keep: float, size: int, examples: int
) -> Blocks | None:
    """Find the blocks of a product.

    Args:
        equation: a product of a weight with data.
        data: which operand the data are, 0 or 1.
        along: what is dropped.
        keep: the share of the blocks that is kept, at least one of them.
        size: channels or examples of a block, at most: the largest divisor up to that.
        examples: in a batch.

    Returns:
        None where there is no such axis, as for groups of channels, and where all
        blocks would be kept.
    """
    if along == "examples":
        which, axes = data, _example_axes(equation, data)
        axes = [
            pair
            for pair in axes
            if equation.invars[data].aval.shape[pair[0]] % examples == 0
        ]
        whole = examples
    else:
        which, axes = 1 - data, _channel_axes(equation, data)
        shape = equation.invars[which].aval.shape
        # With several, as heads and their channels, the longest.
        axes = sorted(axes, key=lambda pair: -shape[pair[0]])
        whole = shape[axes[0][0]] if axes else 0
    if not axes or not whole:
        return None
    length = next(n for n in range(min(size, whole), 0, -1) if whole % n == 0)
    number = whole // length
    count = max(1, round(keep * number))
    if count >= number:
        return None
    return Blocks(equation, which, *axes[0], number, count)


def _example_axes(equation: Any, data: int) -> list[tuple[int, int]]:
    """List the axes of the data that the output has and the weight has not."""
    params = equation.params
    if equation.primitive.name == "conv_general_dilated":
        if params["batch_group_count"] > 1:
            return []
        numbers = params["dimension_numbers"]
        return [(numbers.lhs_spec[0], numbers.out_spec[0])]
    return _free_axes(equation, data)


def _channel_axes(equation: Any, data: int) -> list[tuple[int, int]]:
    """List the axes of the weight that the output has and the data have not."""
    params = equation.params
    if equation.primitive.name == "conv_general_dilated":
        if params["feature_group_count"] > 1 or params["batch_group_count"] > 1:
            return []
        numbers = params["dimension_numbers"]
        return [(numbers.rhs_spec[0], numbers.out_spec[1])]
    return _free_axes(equation, 1 - data)


def _free_axes(equation: Any, which: int) -> list[tuple[int, int]]:
    """List the axes of an operand of a ``dot_general`` that the other has not."""
    contracted, batch = equation.params["dimension_numbers"]
    ranks = [len(v.aval.shape) for v in equation.invars]
    own = (*contracted[which], *batch[which])
    first = len(batch[0])
    if which == 1:
        first += ranks[0] - len(contracted[0]) - len(batch[0])
    free = [axis for axis in range(ranks[which]) if axis not in own]
    return [(axis, first + i) for i, axis in enumerate(free)]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def dropped(
    blocks: Blocks, left: jax.Array, right: jax.Array, bits: jax.Array
) -> jax.Array:
    """Compute a product; take some blocks of its gradient only, drawn by their norms.

    What is kept is divided by the probability of being kept, so that both gradients are
    what they were on average. Of the operand that has the blocks' axis, the gradient of
    the others is zero; that of the other operand is a sum over those kept. Where a
    block of the gradient is not finite, both are not a number.

    Args:
        blocks: of the product.
        left: its first operand.
        right: its second operand.
        bits: random ones, ``uint32[]``.
    """
    del bits
    return blocks.product(left, right)


def _forward(blocks: Blocks, left: jax.Array, right: jax.Array, bits: Any) -> tuple:
    return blocks.product(left, right), (left, right, bits)


def _backward(blocks: Blocks, kept: tuple, slope: jax.Array) -> tuple:
    left, right, bits = kept
    left, right, slope = once((left, right, slope))
    axis = blocks.output_axis
    norms = block_norms(slope, axis, blocks.number)
    index, weights = draw_fixed(bits, norms, blocks.kept)
    some = _take(slope, index, axis, blocks.number)
    some = scaled(some, weights, axis)
    operands = [left, right]
    which = blocks.which
    small = _take(operands[which], index, blocks.axis, blocks.number)
    operands[which] = small
    gradients = [by_operand(blocks.product, operands, i, some) for i in (0, 1)]
    fill = jnp.where(jnp.isfinite(weights[0]), 0, jnp.nan)
    small = gradients[which]
    gradients[which] = _put_back(small, index, blocks.axis, blocks.number, fill)
    return *gradients, None


dropped.defvjp(_forward, _backward)


def _take(x: jax.Array, index: jax.Array, axis: int, number: int) -> jax.Array:
    """Take some of the blocks along an axis, beside each other."""
    before, after = x.shape[:axis], x.shape[axis + 1 :]
    parts = x.reshape(*before, number, x.shape[axis] // number, *after)
    taken = jnp.take(parts, index, axis=axis, mode="clip")
    return taken.reshape(*before, -1, *after)


def _put_back(
    x: jax.Array, index: jax.Array, axis: int, number: int, fill: jax.Array
) -> jax.Array:
    """Undo `_take`, with a number for what was not taken."""
    before, after = x.shape[:axis], x.shape[axis + 1 :]
    parts = x.reshape(*before, index.size, x.shape[axis] // index.size, *after)
    # Gathered, which XLA does faster than it scatters.
    place = jnp.searchsorted(index, jnp.arange(number))
    there = jnp.take(index, place, mode="clip") == jnp.arange(number)
    whole = jnp.take(parts, place, axis=axis, mode="clip")
    mask = there.reshape([-1 if i == axis else 1 for i in range(whole.ndim)])
    filled = jnp.where(mask, whole, fill.astype(x.dtype))
    return filled.reshape(*before, -1, *after)
