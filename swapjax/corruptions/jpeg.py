"""What JPEG loses: 8 x 8 cosines, quantised, and colour at half the resolution."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from swapjax.core.checks import require_count
from swapjax.corruptions.along import along_both
from swapjax.corruptions.box import Box, in_unit, take_images, take_layout

_BLOCK = 8
# ITU-T T.81, annex K: steps of brightness and of colour at quality 50.
_BRIGHTNESS = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ]
)
_COLOUR = np.full((_BLOCK, _BLOCK), 99)
_COLOUR[:4, :4] = [
    [17, 18, 24, 47],
    [18, 21, 26, 66],
    [24, 26, 56, 99],
    [47, 66, 99, 99],
]
# ITU-T T.871: brightness and two differences of colour, of red, green and blue.
_WEIGHTS = np.array([0.299, 0.587, 0.114])
_TO_DIFFERENCES = np.stack(
    [
        _WEIGHTS,
        (np.array([0, 0, 1]) - _WEIGHTS) / (2 * (1 - _WEIGHTS[2])),
        (np.array([1, 0, 0]) - _WEIGHTS) / (2 * (1 - _WEIGHTS[0])),
    ]
)
_MIDDLE = 128


def compress_jpeg(
    images: Any, quality: int, *, subsample: bool = True, box: Box | None = None
) -> jax.Array:
    """Compress images as JPEG does, and decompress them.

    All that loses anything is done (ITU-T T.81, sequential, 8 bits): values are rounded
    to bytes, red, green and blue become brightness and two colours, these at half the
    resolution; blocks of 8 x 8 pixels are transformed to cosines, divided by the steps
    of the quality, as libjpeg scales them, and rounded. The coding of what is left, in
    which nothing is lost, is not. Sizes that 8 does not divide are filled up with what
    lies on the border. Files of libjpeg differ by its roundings.

    Args:
        images: [n, height, width] or [n, height, width, channels], any n; floats in the
            box, or uint8. Three channels are red, green and blue; of another number
            each is an image in grey.
        quality: 1 to 100.
        subsample: whether colours have half the resolution (4:2:0), as most files have.
        box: the least and the largest value of an image, as in `corrupt_images`.

    Returns:
        Images of the same shape and dtype, in the box.

    Raises:
        ValueError: for a quality out of range, images of another rank or dtype or not
            in the box, and a box without width.
    """
    require_count("quality", quality)
    if quality > 100:
        raise ValueError(f"quality must be 100 or less, got {quality}")
    images, box = take_images("images", images, box)
    take_layout(images)
    if not images.size:
        return images
    return _compress(images, box, int(quality), bool(subsample))


@functools.partial(jax.jit, static_argnames=("box", "quality", "subsample"))
def _compress(images: jax.Array, box: Box, quality: int, subsample: bool) -> jax.Array:
    return in_unit(images, box, lambda x: lose(x, quality, subsample=subsample))


def lose(x: jax.Array, quality: int, *, subsample: bool = True) -> jax.Array:
    """Lose what `compress_jpeg` loses, of values in [0, 1], [n, h, w, channels]."""
    x = jnp.round(255 * jnp.clip(x, 0, 1))
    if x.shape[-1] != 3:
        return _lose_plane(x, _steps(_BRIGHTNESS, quality)) / 255
    planes = jnp.round(_mix(x, _TO_DIFFERENCES) + _shift(x))
    brightness = _lose_plane(planes[..., :1], _steps(_BRIGHTNESS, quality))
    colours = planes[..., 1:]
    if subsample:
        colours = jnp.round(along_both(_halve, colours))
    colours = _lose_plane(colours, _steps(_COLOUR, quality))
    if subsample:
        colours = along_both(_double, colours)[:, : x.shape[1], : x.shape[2]]
    planes = jnp.concatenate([brightness, colours], axis=-1)
    x = _mix(planes - _shift(x), np.linalg.inv(_TO_DIFFERENCES))
    return jnp.clip(jnp.round(x), 0, 255) / 255


def _lose_plane(x: jax.Array, steps: np.ndarray) -> jax.Array:
    """Round the cosines of each block, of values in [0, 255]."""
    n, height, width, channels = x.shape
    fill = [(0, -size % _BLOCK) for size in (height, width)]
    whole = jnp.pad(x, [(0, 0), *fill, (0, 0)], mode="edge") - _MIDDLE
    blocks = whole.reshape(
        n, whole.shape[1] // _BLOCK, _BLOCK, whole.shape[2] // _BLOCK, _BLOCK, channels
    )
    cosines, size = jnp.asarray(_cosines(), x.dtype), jnp.asarray(steps, x.dtype)
    full = jax.lax.Precision.HIGHEST
    found = jnp.einsum("ki,naibjc,lj->nakblc", cosines, blocks, cosines, precision=full)
    size = size[:, None, :, None]
    found = jnp.round(found / size) * size
    blocks = jnp.einsum("ki,nakblc,lj->naibjc", cosines, found, cosines, precision=full)
    whole = jnp.clip(jnp.round(blocks.reshape(whole.shape)) + _MIDDLE, 0, 255)
    return whole[:, :height, :width]


def _cosines() -> np.ndarray:
    """Return the orthogonal matrix of the cosine transform, [frequency, pixel]."""
    waves, pixels = np.arange(_BLOCK)[:, None], np.arange(_BLOCK)
    matrix = np.cos((2 * pixels + 1) * waves * np.pi / (2 * _BLOCK))
    return matrix * np.where(waves == 0, np.sqrt(1 / _BLOCK), np.sqrt(2 / _BLOCK))


def _steps(table: np.ndarray, quality: int) -> np.ndarray:
    """Scale a table from quality 50 to another, as libjpeg does."""
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    return np.clip((table * percent + 50) // 100, 1, 255)


def _halve(size: int) -> np.ndarray:
    """Average two neighbours each; the last one twice where it is left over."""
    half = -(-size // 2)
    matrix = np.zeros((half, size))
    for offset in (0, 1):
        np.add.at(
            matrix,
            (np.arange(half), np.minimum(2 * np.arange(half) + offset, size - 1)),
            0.5,
        )
    return matrix


def _double(half: int) -> np.ndarray:
    """Put two pixels in the place of one, a quarter of each from the neighbour."""
    pixels = np.arange(2 * half)
    own = pixels // 2
    neighbour = np.clip(own + np.where(pixels % 2, 1, -1), 0, half - 1)
    matrix = np.zeros((2 * half, half))
    np.add.at(matrix, (pixels, own), 0.75)
    np.add.at(matrix, (pixels, neighbour), 0.25)
    return matrix


def _mix(x: jax.Array, matrix: np.ndarray) -> jax.Array:
    full = jax.lax.Precision.HIGHEST
    return jnp.einsum("dc,nhwc->nhwd", jnp.asarray(matrix, x.dtype), x, precision=full)


def _shift(x: jax.Array) -> jax.Array:
    return jnp.asarray([0, _MIDDLE, _MIDDLE], x.dtype)
