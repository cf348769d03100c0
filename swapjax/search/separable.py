"""Operations whose convolutions go channel by channel, and what halves an image."""

from typing import Any

import jax
import jax.numpy as jnp

from swapjax.search import layers
from swapjax.search.draw import Draw
from swapjax.search.layers import Run
from swapjax.search.operations import Operation


def dilated_conv(size: int, dilation: int = 2) -> Operation:
    """Return ReLU, a convolution of each channel, one of each pixel, and batch norm.

    Args:
        size: of the first kernel, in pixels.
        dilation: how far these are apart.
    """

    def init(draw: Draw, inputs: int, outputs: int, stride: int) -> dict:
        del stride
        return {
            "depthwise": draw.convolution(size, inputs, inputs, groups=inputs),
            "pointwise": draw.convolution(1, inputs, outputs),
            "bn": draw.batch_norm(outputs, affine=draw.affine),
        }

    def apply(run: Run, params: Any, x: jax.Array, stride: int) -> jax.Array:
        x = layers.convolve(
            jax.nn.relu(x),
            params["depthwise"]["kernel"],
            stride=stride,
            dilation=dilation,
            groups=x.shape[-1],
        )
        return run.batch_norm(
            params["bn"], layers.convolve(x, params["pointwise"]["kernel"])
        )

    return Operation(init, apply)


def separable_conv(size: int) -> Operation:
    """Return the same without dilation twice, the stride in the first.

    Args:
        size: of the kernels of channels, in pixels.
    """
    one = dilated_conv(size, dilation=1)

    def init(draw: Draw, inputs: int, outputs: int, stride: int) -> dict:
        first = one.init(draw, inputs, inputs, stride)
        return {"first": first, "second": one.init(draw, inputs, outputs, 1)}

    def apply(run: Run, params: Any, x: jax.Array, stride: int) -> jax.Array:
        x = one.apply(run, params["first"], x, stride)
        return one.apply(run, params["second"], x, 1)

    return Operation(init, apply)


def factorized_reduce() -> Operation:
    """Return ReLU, two convolutions of every other pixel side by side, batch norm.

    The second takes the pixels between those of the first.
    """

    def init(draw: Draw, inputs: int, outputs: int, stride: int) -> dict:
        del stride
        half = outputs // 2
        return {
            "even": draw.convolution(1, inputs, half),
            "odd": draw.convolution(1, inputs, outputs - half),
            "bn": draw.batch_norm(outputs, affine=draw.affine),
        }

    def apply(run: Run, params: Any, x: jax.Array, stride: int) -> jax.Array:
        del stride
        x = jax.nn.relu(x)
        even = layers.convolve(x, params["even"]["kernel"], stride=2)
        odd = layers.convolve(x[:, 1:, 1:], params["odd"]["kernel"], stride=2)
        return run.batch_norm(params["bn"], jnp.concatenate([even, odd], -1))

    return Operation(init, apply)


def skip() -> Operation:
    """Return the identity at stride 1, `factorized_reduce` at stride 2."""
    reduce = factorized_reduce()

    def init(draw: Draw, inputs: int, outputs: int, stride: int) -> dict:
        return {} if stride == 1 else reduce.init(draw, inputs, outputs, stride)

    def apply(run: Run, params: Any, x: jax.Array, stride: int) -> jax.Array:
        return x if stride == 1 else reduce.apply(run, params, x, stride)

    return Operation(init, apply)


def inverted_residual(expansion: int, size: int) -> Operation:
    """Return the block of MobileNetV2 (arXiv 1801.04381), with ReLU in place of ReLU6.

    More channels by pixel, a convolution of each, and back to few without ReLU; x is
    added where the sizes agree.

    Args:
        expansion: how many times as many channels there are between.
        size: of the kernel of channels, in pixels.
    """

    def init(draw: Draw, inputs: int, outputs: int, stride: int) -> dict:
        del stride
        wide = expansion * inputs
        return {
            "expand": draw.convolution(1, inputs, wide),
            "bn1": draw.batch_norm(wide, affine=draw.affine),
            "depthwise": draw.convolution(size, wide, wide, groups=wide),
            "bn2": draw.batch_norm(wide, affine=draw.affine),
            "project": draw.convolution(1, wide, outputs),
            "bn3": draw.batch_norm(outputs, affine=draw.affine),
        }

    def apply(run: Run, params: Any, x: jax.Array, stride: int) -> jax.Array:
        y = run.batch_norm(
            params["bn1"], layers.convolve(x, params["expand"]["kernel"])
        )
        y = jax.nn.relu(y)
        y = layers.convolve(
            y, params["depthwise"]["kernel"], stride=stride, groups=y.shape[-1]
        )
        y = jax.nn.relu(run.batch_norm(params["bn2"], y))
        y = run.batch_norm(
            params["bn3"], layers.convolve(y, params["project"]["kernel"])
        )
        return x + y if x.shape == y.shape else y

    return Operation(init, apply)
