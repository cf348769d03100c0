"""Convolutions of many groups as sums of shifted products, entry by entry."""

import functools
import itertools
import operator
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from swapjax.loops.convolutions.setting import Setting, inverse, move, size

_FEW = 4  # products for each entry of a group
_MANY = 64  # shifts


class _Sides(NamedTuple):
    """How much there is of each axis in a group."""

    examples: int
    inputs: int
    outputs: int


def pays(setting: Setting) -> bool:
    """Whether groups are so small that matrix products would gain nothing."""
    return _way(setting) is not None


def compute(setting: Setting, image: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolve."""
    way = _way(setting)
    assert way is not None
    image = _grouped_image(setting, image)
    image = setting.padded(image, range(2, 2 + len(setting.pixels)))
    found = way(setting, image, _grouped_kernel(setting, kernel))
    # Outputs are numbered group by group.
    found = lax.reshape(found, (*found.shape[:-2], size(found.shape[-2:])))
    examples, outputs, *places = setting.result_axes
    found = lax.convert_element_type(found, setting.returned)
    return move(found, inverse((examples, *places, outputs)))


def _way(setting: Setting) -> Callable | None:
    """Choose the way with the fewest shifts of those without too many products."""
    examples, inputs, outputs = _sides(setting)
    ways = [
        (size(setting.taps), inputs, _tap_by_tap),
        (size(setting.places), examples, _place_by_place),
    ]
    shifts = {
        many: way
        for many, sides, way in reversed(ways)
        if many <= _MANY and sides * outputs <= _FEW
    }
    return shifts[min(shifts)] if shifts else None


def _tap_by_tap(setting: Setting, image: jax.Array, kernel: jax.Array) -> jax.Array:
    """Sum what the taps meet, [examples, *places, groups, outputs]."""
    axes = range(2, 2 + len(setting.pixels))

    def part(tap: tuple[int, ...]) -> jax.Array:
        seen = setting.cut(image, axes, tap)
        first = (0, *tap, 0, 0)
        last = (kernel.shape[0], *(i + 1 for i in tap), *kernel.shape[-2:])
        products = seen[..., None] * lax.slice(kernel, first, last)[None]
        return _sum(products, (1,))

    return functools.reduce(operator.add, map(part, _numbers(setting.taps)))


def _place_by_place(setting: Setting, image: jax.Array, kernel: jax.Array) -> jax.Array:
    """Sum over all taps at each place, [examples, *places, groups, outputs]."""
    axes = range(2, 2 + len(setting.pixels))

    def part(place: tuple[int, ...]) -> jax.Array:
        seen = setting.cut_at(image, axes, place)
        return _sum(seen[..., None] * kernel[None], (1, *axes))

    found = jnp.stack([part(place) for place in _numbers(setting.places)], axis=1)
    return lax.reshape(found, (found.shape[0], *setting.places, *found.shape[2:]))


def _sides(setting: Setting) -> _Sides:
    examples, inputs = (setting.image[i] for i in setting.image_axes[:2])
    outputs = setting.kernel[setting.kernel_axes[0]] // setting.groups
    if setting.by_examples:
        return _Sides(examples // setting.groups, inputs, outputs)
    return _Sides(examples, inputs // setting.groups, outputs)


def _grouped_image(setting: Setting, image: jax.Array) -> jax.Array:
    """Lay an image out as [examples, inputs, *pixels, groups], in a wide dtype."""
    examples, channels, *pixels = setting.image_axes
    image = move(image, (examples, channels, *pixels))
    sides = _sides(setting)
    axis, one = (0, sides.examples) if setting.by_examples else (1, sides.inputs)
    split = (*image.shape[:axis], setting.groups, one, *image.shape[axis + 1 :])
    image = lax.reshape(image, split)
    image = move(image, (*(i for i in range(image.ndim) if i != axis), axis))
    return lax.convert_element_type(image, setting.wide)


def _grouped_kernel(setting: Setting, kernel: jax.Array) -> jax.Array:
    """Lay a kernel out as [inputs, *taps, groups, outputs], in a wide dtype."""
    outputs, inputs, *taps = setting.kernel_axes
    kernel = move(kernel, (inputs, *taps, outputs))
    split = (*kernel.shape[:-1], setting.groups, _sides(setting).outputs)
    return lax.convert_element_type(lax.reshape(kernel, split), setting.wide)


def _sum(products: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Sum over axes; over one of length 1 there is nothing to sum."""
    if all(products.shape[axis] == 1 for axis in axes):
        return lax.squeeze(products, axes)
    return jnp.sum(products, axes)


def _numbers(counts: tuple[int, ...]) -> itertools.product:
    return itertools.product(*map(range, counts))
