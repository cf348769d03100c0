"""Products whose backward pass VCAS samples: by examples, and by rows for weights."""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core

from swapjax.backward.linear import block_norms, by_operand, once, scaled
from swapjax.backward.sampling import draw, keep_probabilities
from swapjax.backward.vcas_control import share_above
from swapjax.core import programs


class CutRate(NamedTuple):
    """How the examples of a cut are sampled.

    Attributes:
        rate: share of the examples to keep, ``float32[]``.
        uniforms: to draw them with, ``float32[examples]``.
        shares: of the norms, of which to tell how many examples have them, [2].
        probe: ``float32[4]`` zeros, whose cotangent is the share of the examples that
            was kept; and, if variances are measured, the shares of them that have
            `shares` of the norms.
    """

    rate: Any
    uniforms: Any
    shares: Any
    probe: Any


class RowRate(NamedTuple):
    """How the rows of a product are sampled for the gradient of its weight.

    Attributes:
        rate: share of the rows to keep, of those with a gradient, ``float32[]``.
        uniforms: to draw them with, ``float32[rows]``; of none, all rows are kept.
        probe: ``float32[4]`` zeros, whose cotangent is the share of the examples with a
            gradient, the share of their rows that was kept, and, if variances are
            measured, that which sampling at this rate adds.
    """

    rate: Any
    uniforms: Any
    probe: Any


def examples_axis(shape: Sequence[int], examples: int) -> int | None:
    """Return the first axis whose length is a multiple of the number of examples.

    Batches lead, and what is flattened keeps them together, so that a group of
    neighbours is an example. Where that is wrong, other groups are sampled, which is
    without bias as well. None where there is no such axis.
    """
    return next((i for i, n in enumerate(shape) if n and n % examples == 0), None)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def cut(examples: int, measure: bool, x: jax.Array, how: CutRate) -> jax.Array:
    """Return x; sample the examples of its gradient.

    Args:
        examples: in a batch.
        measure: whether to tell shares of the norms.
        x: an array with an axis of examples, see `examples_axis`; of others the
            gradient stays whole.
        how: the rate and all else.
    """
    del examples, measure, how
    return x


def _cut_forward(examples: int, measure: bool, x: jax.Array, how: CutRate) -> tuple:
    del examples, measure
    return x, how


def _cut_backward(
    examples: int, measure: bool, how: CutRate, slope: jax.Array
) -> tuple:
    slope = once(slope)
    axis = examples_axis(slope.shape, examples)
    if axis is None:
        return slope, CutRate(None, None, None, jnp.ones(4, jnp.float32))
    norms = block_norms(slope, axis, examples)
    count = how.rate * examples
    # What cuts after it have thinned already is left alone.
    enough = jnp.sum(norms > 0) <= count
    chances = jnp.where(enough, norms > 0, keep_probabilities(norms, count))
    weights = draw(how.uniforms, chances)
    shares = share_above(norms, how.shares) if measure else jnp.zeros(2)
    told = jnp.stack([jnp.mean(weights > 0), *shares, jnp.zeros(())])
    new = scaled(slope, weights, axis)
    return new, CutRate(None, None, None, told.astype(jnp.float32))


cut.defvjp(_cut_forward, _cut_backward)


class RowProduct(NamedTuple):
    """A product of a weight with data, as an equation of a program has it.

    Attributes:
        equation: a ``dot_general`` or a ``conv_general_dilated``.
        data: which operand the data are, 0 or 1.
        examples: in a batch.
        measure: whether to tell the variance that sampling adds.
    """

    equation: core.JaxprEqn
    data: int
    examples: int
    measure: bool

    def __call__(self, *operands: jax.Array) -> jax.Array:
        """Compute it."""
        return programs.bind(self.equation, operands)[0]

    def rows(self, x: jax.Array, slope: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return the squared norms of rows: of the data, and of the gradient.

        The gradient of the weight is the sum of the rows' outer products. Both are of
        the shape of the gradient, with 1 for each axis of the weight.
        """
        x, slope = (jnp.square(a.astype(jnp.float32)) for a in (x, slope))
        params = self.equation.params
        if self.equation.primitive.name == "conv_general_dilated":
            return self._patches(x, slope)
        contracting, batch = params["dimension_numbers"]
        own, many = contracting[self.data], batch[self.data]
        free = [i for i in range(x.ndim) if i not in (*own, *many)]
        x = jnp.sum(x.transpose(*many, *free, *own), axis=tuple(range(-len(own), 0)))
        first = len(many) if self.data else len(many) + len(free)
        of_weight = tuple(range(first, first + slope.ndim - x.ndim))
        return (
            jnp.expand_dims(x, of_weight),
            jnp.sum(slope, axis=of_weight, keepdims=True),
        )

    def count_rows(self) -> int:
        """Count them."""
        equation: Any = self.equation
        out, weight = equation.outvars[0].aval, equation.invars[1 - self.data].aval
        params = equation.params
        if equation.primitive.name == "conv_general_dilated":
            columns = weight.shape[params["dimension_numbers"].rhs_spec[0]]
        else:
            contracting, batch = params["dimension_numbers"]
            own = (*contracting[1 - self.data], *batch[1 - self.data])
            columns = math.prod(n for i, n in enumerate(weight.shape) if i not in own)
        return int(out.size // columns)

    def _patches(self, x: jax.Array, slope: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return the squared norms of the patches that a convolution looks at."""
        params = self.equation.params
        numbers = params["dimension_numbers"]
        kernel: Any = self.equation.invars[1].aval
        shape = list(kernel.shape)
        shape[numbers.rhs_spec[0]] = 1
        patches = lax.conv_general_dilated(
            x, jnp.ones(shape, x.dtype), params["window_strides"], params["padding"],
            params["lhs_dilation"], params["rhs_dilation"], numbers,
        )  # fmt: skip
        channels = numbers.out_spec[1]
        # Rounding in a fast convolution may leave less than nothing.
        return jnp.maximum(patches, 0), jnp.sum(slope, axis=channels, keepdims=True)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def sampled(
    product: RowProduct, left: jax.Array, right: jax.Array, how: RowRate
) -> jax.Array:
    """Compute a product; sample rows for the gradient of its weight.

    Args:
        product: what to compute.
        left: its first operand.
        right: its second operand.
        how: the rate and all else.
    """
    del how
    return product(left, right)


def _forward(
    product: RowProduct, left: jax.Array, right: jax.Array, how: RowRate
) -> tuple:
    return product(left, right), (left, right, how)


def _backward(product: RowProduct, kept: tuple, slope: jax.Array) -> tuple:
    left, right, how = kept
    left, right, slope = once((left, right, slope))
    operands = [left, right]
    data = operands[product.data]

    of_data, of_slope = product.rows(data, slope)
    scores = jnp.sqrt(of_data * of_slope)
    alive, drawn = jnp.sum(scores > 0), jnp.float32(1)
    variance, thinned = jnp.float32(0), slope
    if product.measure or how.uniforms.size:
        chances = keep_probabilities(scores.ravel(), how.rate * alive)
        if product.measure:
            odds = jnp.where(chances > 0, 1 / jnp.where(chances > 0, chances, 1) - 1, 0)
            variance = jnp.sum(odds * jnp.square(scores.ravel()))
        if how.uniforms.size:
            weights = draw(how.uniforms, chances).reshape(scores.shape)
            thinned = (slope.astype(jnp.float32) * weights).astype(slope.dtype)
            drawn = jnp.sum(weights > 0) / jnp.maximum(alive, 1)
    axis = examples_axis(of_slope.shape, product.examples)
    share = (
        jnp.float32(1)
        if axis is None
        else jnp.mean(block_norms(of_slope, axis, product.examples) > 0)
    )
    told = jnp.stack([share, drawn, variance, jnp.zeros(())])
    gradients = [
        by_operand(product.__call__, operands, product.data, slope),
        by_operand(product.__call__, operands, 1 - product.data, thinned),
    ]
    if product.data:
        gradients.reverse()
    return *gradients, RowRate(None, None, told.astype(jnp.float32))


sampled.defvjp(_forward, _backward)
