"""Second moments of the patches that convolutions read."""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from swapjax.loops.convolutions.setting import Setting

_BYTES = 2**25  # of patches, live at a time
_FEW_TAPS = 16  # of a kernel along an axis, that are sliced one by one
_HIGHEST = jax.lax.Precision.HIGHEST


def moment(read: jax.Array) -> jax.Array:
    """Compute ``sum_p a_p a_p^T`` for each group of [groups, positions, inputs]."""
    return _product(read, read)


def moment_of_patches(images: jax.Array, setting: Setting) -> jax.Array:
    """Compute the second moment of the patches under a kernel.

    Args:
        images: [examples, *pixels, channels].
        setting: of the convolution.

    Returns:
        [groups, inputs, inputs], summed over examples and positions; inputs are the
        pixels of the kernel, and for each the channels of a group.
    """
    moves = setting.strides == setting.spacing == (1,)
    if moves and setting.taps[0] > _FEW_TAPS:
        return _sliding(images, setting)
    return _in_parts(images, setting, moment)


def _product(left: jax.Array, right: jax.Array) -> jax.Array:
    """Compute ``sum_p a_p b_p^T`` for each group of [groups, positions, inputs]."""
    return jnp.einsum(
        "gpi,gpj->gij",
        left,
        right,
        precision=_HIGHEST,
        preferred_element_type=_wide(left.dtype),
    )


def _sliding(images: jax.Array, setting: Setting) -> jax.Array:
    """Compute the moment for a long kernel that moves sample by sample.

    Moved by one sample, two taps k and l read what they read before, less what was
    first and with what comes after: with places t from 0 to T - 1

        M[k + 1, l + 1] = M[k, l] + x[k + T] x[l + T]^T - x[k] x[l]^T.

    So ``M[0, l]`` takes all places, and the others two each: as many times faster as
    there are taps, or half as many as places.
    """
    (taps,), (places,), groups = setting.taps, setting.places, setting.groups
    examples, channels = len(images), images.shape[-1] // groups
    first = _in_parts(images, setting, lambda a: _product(a[:, :, :channels], a))

    def ends(some: jax.Array) -> jax.Array:
        split = some.reshape(examples, taps - 1, groups, channels)
        return split.transpose(2, 0, 1, 3).reshape(groups, examples, -1)

    def whole(group: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        first, after, before = group
        gained = moment(after[None])[0] - moment(before[None])[0]
        rows = gained.reshape(taps - 1, channels, taps - 1, channels)
        row = first.reshape(channels, taps, channels)

        def step(row: jax.Array, told: tuple) -> tuple[jax.Array, jax.Array]:
            gain, left = told
            row = jnp.concatenate([left[:, None], row[:, :-1] + gain], axis=1)
            return row, row

        _, others = jax.lax.scan(step, row, (rows, row.transpose(1, 2, 0)[1:]))
        found = jnp.concatenate([row[None], others])
        return found.reshape(taps * channels, -1)

    read = setting.padded(images, (1,))
    after, before = ends(read[:, places:]), ends(read[:, : taps - 1])
    # One group after the other, so that little is live beside the moments.
    return jax.lax.map(whole, (first, after, before))


def _in_parts(
    images: jax.Array, setting: Setting, measure: Callable[[jax.Array], jax.Array]
) -> jax.Array:
    """Sum what is measured of all patches, a few images at a time."""
    patches = functools.partial(_patches, setting=setting)
    count = images.shape[0]
    one = jax.eval_shape(patches, images[:1])
    size = max(1, _BYTES // max(1, one.size * one.dtype.itemsize))
    if count <= size:
        return measure(patches(images))
    parts = -(-count // size)
    size = -(-count // parts)
    # The last part is padded with images of zeros, which add nothing.
    fill = [(0, parts * size - count)] + [(0, 0)] * (images.ndim - 1)
    stacked = jnp.pad(images, fill).reshape(parts, size, *images.shape[1:])

    def step(total: jax.Array, part: jax.Array) -> tuple[jax.Array, None]:
        return total + measure(patches(part)), None

    found = jax.eval_shape(measure, one)
    return jax.lax.scan(step, jnp.zeros(found.shape, found.dtype), stacked)[0]


def _patches(images: jax.Array, setting: Setting) -> jax.Array:
    """Extract the patch under a kernel at each of its positions.

    Args:
        images: [examples, *pixels, channels].
        setting: of the convolution.

    Returns:
        [groups, examples * positions, pixels of the kernel * channels of a group].
    """
    axes = range(1, images.ndim - 1)
    read = setting.padded(images, axes)
    # Axis by axis: the pixels of the kernel one by one would be many slices.
    for axis in axes:
        read = _along(read, setting, axis)
    groups = setting.groups
    size = math.prod(setting.taps)
    read = read.reshape(-1, size, groups, images.shape[-1] // groups)
    return read.transpose(2, 0, 1, 3).reshape(groups, -1, size * read.shape[-1])


def _along(images: jax.Array, setting: Setting, axis: int) -> jax.Array:
    """Take what each tap along an axis meets: taps become the last axis but one."""
    taps, i = setting.taps[axis - 1], axis - 1
    if taps <= _FEW_TAPS:
        rows = [setting.cut_along(images, axis, tap) for tap in range(taps)]
        return jnp.stack(rows, axis=-2)
    # Hundreds of slices, as of a kernel over sound, take XLA minutes to compile.
    places = setting.strides[i] * np.arange(setting.places[i])
    index = places[:, None] + setting.spacing[i] * np.arange(taps)
    return jnp.moveaxis(jnp.take(images, index, axis, mode="clip"), axis + 1, -2)


def _wide(dtype: jnp.dtype) -> jnp.dtype:
    """Return the dtype to accumulate sums in: float32 or wider."""
    return jnp.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)
