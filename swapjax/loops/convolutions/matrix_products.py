"""Convolutions as matrix products, one for each tap of the kernel."""

import functools
import itertools
import operator

import jax
from jax import lax

from swapjax.loops.convolutions.setting import Setting, inverse, move, size

_MANY = 64  # taps that are multiplied one by one at most


def pays(setting: Setting) -> bool:
    """Whether products are faster than a convolution without groups.

    With one tap, or at one place, a convolution is a product. With an image smaller
    than its kernel XLA's kernels are slow, 300 ms in place of 5 for 3 x 3 pixels on
    16 images of 2 x 2.
    """
    if size(setting.taps) == 1 or size(setting.places) == 1:
        return True
    small = any(
        pixels < taps for pixels, taps in zip(setting.pixels, setting.taps, strict=True)
    )
    return small and size(setting.taps) <= _MANY and not _is_at_few_places(setting)


def compute(setting: Setting, image: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolve."""
    if size(setting.taps) == 1:
        return _at_one_tap(setting, image, kernel)
    pixels = setting.image_axes[2:]
    image = setting.padded(image, pixels)
    if size(setting.places) == 1:
        return _at_one_place(setting, image, kernel)

    def part(tap: tuple[int, ...]) -> jax.Array:
        return _multiply(setting, setting.cut(image, pixels, tap), kernel, tap)

    taps = itertools.product(*map(range, setting.taps))
    return _placed(setting, functools.reduce(operator.add, map(part, taps)))


def _at_one_tap(setting: Setting, image: jax.Array, kernel: jax.Array) -> jax.Array:
    """Multiply with the one tap before there are zeros between pixels."""
    pixels, tap = setting.image_axes[2:], (0,) * len(setting.taps)
    if not setting.is_spread:
        image = setting.cut(setting.padded(image, pixels), pixels, tap)
        return _placed(setting, _multiply(setting, image, kernel, tap))
    found = _multiply(setting, image, kernel, tap)
    found = setting.cut(setting.padded(found, pixels), pixels, tap)
    return _placed(setting, found)


def _at_one_place(setting: Setting, image: jax.Array, kernel: jax.Array) -> jax.Array:
    """Multiply all that the one place sees with all of the kernel."""
    _, channels, *pixels = setting.image_axes
    _, inputs, *taps = setting.kernel_axes
    image = setting.cut_at(image, pixels, (0,) * len(pixels))
    found = _dot(setting, image, kernel, (channels, *pixels), (inputs, *taps))
    if setting.result_axes[0] > setting.result_axes[1]:
        found = lax.transpose(found, (1, 0))
    found = lax.reshape(found, setting.result)
    return lax.convert_element_type(found, setting.returned)


def _is_at_few_places(setting: Setting) -> bool:
    """Whether the result is smaller than the kernel, as gradients of kernels are."""
    return size(setting.places) < size(setting.taps)


def _multiply(
    setting: Setting, image: jax.Array, kernel: jax.Array, tap: tuple[int, ...]
) -> jax.Array:
    """Multiply pixels with the matrix of a tap; axes stay where they are."""
    outputs, inputs, *taps = setting.kernel_axes
    first, last = [0] * kernel.ndim, list(kernel.shape)
    for axis, i in zip(taps, tap, strict=True):
        first[axis], last[axis] = i, i + 1
    matrix = lax.squeeze(lax.slice(kernel, first, last), taps)
    channels = setting.image_axes[1]
    found = _dot(setting, image, matrix, (channels,), (int(inputs > outputs),))
    order = list(range(found.ndim - 1))
    order.insert(channels, found.ndim - 1)
    return move(found, order)


def _dot(
    setting: Setting,
    image: jax.Array,
    kernel: jax.Array,
    ours: tuple[int, ...],
    theirs: tuple[int, ...],
) -> jax.Array:
    """Sum over these axes of an image and of a kernel; outputs come last."""
    return lax.dot_general(
        image,
        kernel,
        ((ours, theirs), ((), ())),
        precision=setting.params["precision"],
        preferred_element_type=setting.wide,
    )


def _placed(setting: Setting, found: jax.Array) -> jax.Array:
    """Put what has the axes of the image in the order of the result."""
    order = [setting.image_axes[i] for i in inverse(setting.result_axes)]
    return lax.convert_element_type(move(found, order), setting.returned)
