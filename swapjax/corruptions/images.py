"""Common corruptions of images: noise, blur, brightness, contrast, pixels, JPEG.

Their kinds and strengths are those of CIFAR-10-C (Hendrycks and Dietterich, ICLR 2019,
arXiv:1903.12261), written anew: boundaries, roundings and random numbers are not those
of the published files.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from swapjax.core.checks import require_count
from swapjax.corruptions.along import along_both
from swapjax.corruptions.box import Box, in_unit, take_images, take_layout
from swapjax.corruptions.jpeg import lose
from swapjax.corruptions.poisson import poisson

_SEVERITIES = 5


def corrupt_images(
    key: jax.Array,
    images: Any,
    kind: str,
    severity: int,
    *,
    box: Box | None = None,
) -> jax.Array:
    """Spoil images in one of the ways of CIFAR-10-C.

    ================== ================================= ==========================
    kind               what is done to values in [0, 1]  strengths, severity 1 to 5
    ================== ================================= ==========================
    ``gaussian_noise`` normal noise of this deviation    .04, .06, .08, .09, .10
    ``shot_noise``     Poisson counts, of this many at 1 500, 250, 100, 75, 50
    ``impulse_noise``  this share becomes 0 or 1         .01, .02, .03, .05, .07
    ``gaussian_blur``  of this deviation in pixels       .4, .6, .7, .8, 1
    ``brightness``     this is added to the value of HSV .05, .1, .15, .2, .3
    ``contrast``       distances from the mean, times    .75, .5, .4, .3, .15
    ``pixelate``       as few pixels a side, averaged    .95, .9, .85, .75, .65
    ``jpeg``           `compress_jpeg` of this quality   80, 65, 58, 50, 40
    ================== ================================= ==========================

    The strengths are the published ones, for 32 x 32 pixels; images of other sizes get
    the same. Those of CIFAR-10-C's other kinds are not here.

    Args:
        key: a JAX PRNG key; the same key gives the same images. Kinds that draw
            nothing do not look at it.
        images: [n, height, width] or [n, height, width, channels], any n; floats in the
            box, or uint8. Brightness takes all channels of a pixel together, and jpeg
            three of them for red, green and blue.
        kind: one of `IMAGE_CORRUPTIONS`.
        severity: 1 to 5.
        box: the least and the largest value of an image, by default 0 and 1, or 0 and
            255 of uint8. For data with mean m and deviation s taken out,
            ``(-m / s, (1 - m) / s)``.

    Returns:
        Images of the same shape and dtype, in the box; uint8 are rounded. It takes
        memory for a few times the images in float32.

    Raises:
        ValueError: for an unknown kind, a severity out of range, images of another rank
            or dtype or not in the box, and a box without width.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from swapjax.corruptions import corrupt_images
        >>> images = jnp.full((2, 28, 28), 0.5)
        >>> corrupt_images(jax.random.key(0), images, "shot_noise", 3).shape
        (2, 28, 28)
    """
    if kind not in _KINDS:
        raise ValueError(
            f"kind must be one of {', '.join(IMAGE_CORRUPTIONS)}, got {kind!r}"
        )
    require_count("severity", severity)
    if severity > _SEVERITIES:
        raise ValueError(f"severity must be {_SEVERITIES} or less, got {severity}")
    images, box = take_images("images", images, box)
    take_layout(images)
    if not images.size:
        return images
    return _corrupt(key, images, box, kind, int(severity))


# The box is static since XLA computes with constants in another order of roundings:
# what is compiled into a larger program is the same then.
@functools.partial(jax.jit, static_argnames=("box", "kind", "severity"))
def _corrupt(
    key: jax.Array, images: jax.Array, box: Box, kind: str, severity: int
) -> jax.Array:
    spoil, strengths = _KINDS[kind]
    return in_unit(images, box, lambda x: spoil(key, x, strengths[severity - 1]))


def _gaussian_noise(key: jax.Array, x: jax.Array, deviation: float) -> jax.Array:
    return x + deviation * jax.random.normal(key, x.shape, x.dtype)


def _shot_noise(key: jax.Array, x: jax.Array, most: int) -> jax.Array:
    return poisson(key, most * jnp.clip(x, 0, 1), most).astype(x.dtype) / most


def _impulse_noise(key: jax.Array, x: jax.Array, share: float) -> jax.Array:
    """Put salt and pepper, as much of each, on single values."""
    draw = jax.random.uniform(key, x.shape, x.dtype)
    return jnp.where(draw < share, (draw < share / 2).astype(x.dtype), x)


def _gaussian_blur(key: jax.Array, x: jax.Array, deviation: float) -> jax.Array:
    del key
    reach = int(4 * deviation + 0.5)
    offsets = np.arange(-reach, reach + 1)
    weights = np.exp(-0.5 * (offsets / deviation) ** 2)

    def blur(size: int) -> np.ndarray:
        # Beyond the border is what lies on it.
        matrix = np.zeros((size, size))
        for offset, weight in zip(offsets, weights / weights.sum(), strict=True):
            place = np.clip(np.arange(size) + offset, 0, size - 1)
            np.add.at(matrix, (np.arange(size), place), weight)
        return matrix

    return along_both(blur, x)


def _brightness(key: jax.Array, x: jax.Array, more: float) -> jax.Array:
    """Raise the value of HSV, and leave hue and saturation as they are."""
    del key
    value = jnp.max(x, axis=-1, keepdims=True)
    new = jnp.clip(value + more, 0, 1)
    return jnp.where(value > 0, x * (new / jnp.where(value > 0, value, 1)), new)


def _contrast(key: jax.Array, x: jax.Array, factor: float) -> jax.Array:
    """Draw values towards the mean of their image and channel."""
    del key
    mean = jnp.mean(x, axis=(1, 2), keepdims=True)
    return mean + factor * (x - mean)


def _pixelate(key: jax.Array, x: jax.Array, share: float) -> jax.Array:
    """Average over the areas of fewer pixels, and enlarge these again."""
    del key

    def there_and_back(size: int) -> np.ndarray:
        few = max(1, int(size * share))
        edges = np.arange(few + 1) * size / few
        pixels = np.arange(size)
        left, right = edges[:-1, None], edges[1:, None]
        overlap = np.minimum(right, pixels + 1) - np.maximum(left, pixels)
        average = np.maximum(overlap, 0) * few / size
        return average[((pixels + 0.5) * few / size).astype(int)]

    return along_both(there_and_back, x)


def _jpeg(key: jax.Array, x: jax.Array, quality: int) -> jax.Array:
    del key
    return lose(x, quality)


_KINDS: dict[str, tuple[Callable[..., jax.Array], tuple[float, ...]]] = {
    "gaussian_noise": (_gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10)),
    "shot_noise": (_shot_noise, (500, 250, 100, 75, 50)),
    "impulse_noise": (_impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07)),
    "gaussian_blur": (_gaussian_blur, (0.4, 0.6, 0.7, 0.8, 1.0)),
    "brightness": (_brightness, (0.05, 0.1, 0.15, 0.2, 0.3)),
    "contrast": (_contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
    "pixelate": (_pixelate, (0.95, 0.9, 0.85, 0.75, 0.65)),
    "jpeg": (_jpeg, (80, 65, 58, 50, 40)),
}
IMAGE_CORRUPTIONS = tuple(_KINDS)
"""The kinds of `corrupt_images`."""
