"""What a convolution is told, and its axes in names."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core


@dataclasses.dataclass(frozen=True)
class Setting:
    """A ``conv_general_dilated`` of an image with a kernel.

    Attributes:
        params: of its equation.
        image: the shape of its first operand.
        kernel: that of its second.
        result: that of what it returns.
        dtype: of both operands.
        returned: the dtype of what it returns.
    """

    params: dict[str, Any]
    image: tuple[int, ...]
    kernel: tuple[int, ...]
    result: tuple[int, ...]
    dtype: jnp.dtype
    returned: jnp.dtype

    @property
    def groups(self) -> int:
        """How many groups of channels, or of examples, there are."""
        return max(self.params["feature_group_count"], self.params["batch_group_count"])

    @property
    def by_examples(self) -> bool:
        """Whether groups are of examples: each has output channels of its own."""
        return self.params["batch_group_count"] > 1

    @property
    def image_axes(self) -> tuple[int, ...]:
        """The axes of the image: examples, channels, pixels."""
        return self.params["dimension_numbers"].lhs_spec

    @property
    def kernel_axes(self) -> tuple[int, ...]:
        """The axes of the kernel: channels out, channels in, pixels."""
        return self.params["dimension_numbers"].rhs_spec

    @property
    def result_axes(self) -> tuple[int, ...]:
        """The axes of the result: examples, channels, pixels."""
        return self.params["dimension_numbers"].out_spec

    @property
    def pixels(self) -> tuple[int, ...]:
        """The size of the image in pixels, before it is padded."""
        return tuple(self.image[i] for i in self.image_axes[2:])

    @property
    def taps(self) -> tuple[int, ...]:
        """The size of the kernel in pixels, without its dilation."""
        return tuple(self.kernel[i] for i in self.kernel_axes[2:])

    @property
    def places(self) -> tuple[int, ...]:
        """The size of the result in pixels."""
        return tuple(self.result[i] for i in self.result_axes[2:])

    @property
    def strides(self) -> tuple[int, ...]:
        """How far the kernel moves from place to place."""
        return tuple(self.params["window_strides"])

    @property
    def spacing(self) -> tuple[int, ...]:
        """How far the taps of the kernel are apart."""
        return tuple(self.params["rhs_dilation"])

    @property
    def is_spread(self) -> bool:
        """Whether there are zeros between the pixels of the image."""
        return max(self.params["lhs_dilation"]) > 1

    @property
    def wide(self) -> jnp.dtype:
        """The dtype to sum in: float32 at least, of what is no integer."""
        if jnp.issubdtype(self.returned, jnp.inexact):
            return jnp.promote_types(self.returned, jnp.float32)
        return self.returned

    def padded(self, image: jax.Array, axes: Sequence[int]) -> jax.Array:
        """Pad an image whose pixels have these axes, and spread its pixels."""
        config = [(0, 0, 0)] * image.ndim
        told = zip(
            axes, self.params["padding"], self.params["lhs_dilation"], strict=True
        )
        for axis, (low, high), dilation in told:
            config[axis] = (low, high, dilation - 1)
        return pad(image, config)

    def cut(
        self, image: jax.Array, axes: Sequence[int], tap: Sequence[int]
    ) -> jax.Array:
        """Take what a tap of the kernel meets at every place, of a padded image."""
        return _cut(image, axes, tap, self.spacing, self.places, self.strides)

    def cut_along(self, image: jax.Array, axis: int, tap: int) -> jax.Array:
        """Take what taps of one number along an axis meet, pixels from axis 1 on."""
        i = axis - 1
        told = (self.spacing[i],), (self.places[i],), (self.strides[i],)
        return _cut(image, (axis,), (tap,), *told)

    def cut_at(
        self, image: jax.Array, axes: Sequence[int], place: Sequence[int]
    ) -> jax.Array:
        """Take what all taps of the kernel meet at a place, of a padded image."""
        return _cut(image, axes, place, self.strides, self.taps, self.spacing)


def setting_of(eqn: core.JaxprEqn) -> Setting:
    """Take the setting of an equation."""
    several: Any = [variable.aval for variable in (*eqn.invars, *eqn.outvars)]
    image, kernel, result = several
    shapes = (image.shape, kernel.shape, result.shape)
    return Setting(eqn.params, *shapes, image.dtype, result.dtype)


def pad(image: jax.Array, config: list[tuple[int, int, int]]) -> jax.Array:
    """Pad with zeros, where there is anything to pad."""
    if not any(map(any, config)):
        return image
    return lax.pad(image, lax.full((), 0, image.dtype), config)


def move(image: jax.Array, axes: Sequence[int]) -> jax.Array:
    """Put the axes in an order, where they are in another."""
    if tuple(axes) == tuple(range(image.ndim)):
        return image
    return lax.transpose(image, tuple(axes))


def inverse(axes: Sequence[int]) -> tuple[int, ...]:
    """Invert a permutation."""
    return tuple(sorted(range(len(axes)), key=axes.__getitem__))


def size(lengths: Sequence[int]) -> int:
    """Multiply lengths."""
    return math.prod(lengths)


def _cut(
    image: jax.Array,
    axes: Sequence[int],
    number: Sequence[int],
    steps: Sequence[int],
    counts: Sequence[int],
    strides: Sequence[int],
) -> jax.Array:
    """Take some pixels from ``number * steps`` on."""
    first, last, by = [0] * image.ndim, list(image.shape), [1] * image.ndim
    for axis, i, step, count, stride in zip(
        axes, number, steps, counts, strides, strict=True
    ):
        first[axis] = i * step
        last[axis] = i * step + (count - 1) * stride + 1
        by[axis] = stride
    return lax.slice(image, first, last, by)
