"""Where the Square attack begins and what it changes, in each norm.

Images here are floats [n, h, w, c]; each has squares of its own.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from swapjax.corruptions.ball import norms, project

_TILES = 5  # along each side, that a search in l2 begins with
_LEAST = 3  # pixels along a square in l2, which has two halves


def stripes(
    key: jax.Array, images: jax.Array, epsilon: jax.Array, box: tuple
) -> jax.Array:
    """Move every column of every channel by epsilon, up or down."""
    n, _, width, channels = images.shape
    signs = jax.random.rademacher(key, (n, 1, width, channels), images.dtype)
    return jnp.clip(images + epsilon * signs, *box)


def recolour(
    key: jax.Array,
    images: jax.Array,
    x: jax.Array,
    size: jax.Array,
    epsilon: jax.Array,
    box: tuple,
) -> jax.Array:
    """Put a square that is epsilon away from the image in every channel into each."""
    n, height, width, channels = images.shape
    place, colour = jax.random.split(key)
    # Never all of the image, which would forget what was found.
    side = jnp.clip(jnp.round(size), 1, max(min(height, width) - 1, 1))
    rows, columns = _window(place, images, side.astype(jnp.int32))
    inside = _inside(rows, columns, side)[..., None]
    signs = jax.random.rademacher(colour, (n, 1, 1, channels), images.dtype)
    return jnp.where(inside, jnp.clip(images + epsilon * signs, *box), x)


def tiles(
    key: jax.Array, images: jax.Array, epsilon: jax.Array, box: tuple
) -> jax.Array:
    """Begin with 5 x 5 squares of random signs, of length epsilon together."""
    n, height, width, channels = images.shape
    side = max(min(height, width) // _TILES, 1)
    across = [min(size // side, _TILES) for size in (height, width)]
    along = jnp.arange(side)[None]
    one = bump(along, along, jnp.asarray(side), jnp.zeros(1, bool))[0]
    signs = jax.random.rademacher(key, (n, *across, channels), images.dtype)
    whole = jnp.repeat(jnp.repeat(signs, side, axis=1), side, axis=2)
    whole = whole * jnp.tile(one, across)[..., None].astype(images.dtype)
    spare = height - side * across[0], width - side * across[1]
    around = [(s // 2, s - s // 2) for s in spare]
    shift = jnp.pad(whole, [(0, 0), *around, (0, 0)])
    return _filled(images, shift, epsilon, box)


def move(
    key: jax.Array,
    images: jax.Array,
    x: jax.Array,
    size: jax.Array,
    epsilon: jax.Array,
    box: tuple,
) -> jax.Array:
    """Give a square what another square, and the radius left over, have of the shift.

    Algorithm 3 of arXiv:1912.00049.
    """
    n, height, width, channels = images.shape
    first, second, turn, colour = jax.random.split(key, 4)
    side = jnp.clip(jnp.round(size).astype(jnp.int32), _LEAST, min(height, width))
    rows, columns = _window(first, images, side)
    here = _inside(rows, columns, side)[..., None]
    there = _inside(*_window(second, images, side), side)[..., None]
    shift = (x - images).astype(jnp.promote_types(images.dtype, jnp.float32))
    unused = jnp.maximum(epsilon**2 - norms(shift, "l2") ** 2, 0)
    free = jnp.sqrt(_squares(shift * (here | there)) + unused / channels)

    turned = jax.random.bernoulli(turn, shape=(n,))
    signs = jax.random.rademacher(colour, (n, 1, 1, channels), shift.dtype)
    new = _unit(bump(rows, columns, side, turned)[..., None] * here)
    new = _unit(signs * new + _unit(shift * here))
    moved = jnp.where(here, new * free, jnp.where(there, 0, shift))
    return _filled(images, moved, epsilon, box)


def bump(
    rows: jax.Array, columns: jax.Array, side: jax.Array, turned: jax.Array
) -> jax.Array:
    """Compute the shape of a square in l2: two halves of opposite sign.

    Eq. 2 of arXiv:1912.00049: ``sum_{k=0}^{M} (n + 1 - k)^-2``, n half of the side and
    M smaller the further a pixel is from the middle of its half.

    Args:
        rows: of pixels, from the first of the square, integers [n, h].
        columns: likewise, [n, w].
        side: of the square, in pixels.
        turned: whether the halves lie one above the other, ``bool[n]``.

    Returns:
        Floats [n, h, w], of no meaning outside of the square.
    """
    half = side // 2

    def bent(position: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Say how far a position is from the middle of its half, and its sign."""
        is_first = position < half
        from_half = jnp.abs(position - half - (side - half) // 2)
        far = jnp.where(is_first, jnp.abs(position - half // 2), from_half)
        return far, jnp.where(is_first, 1.0, -1.0)

    lying = turned[:, None]
    rows_far, rows_sign = bent(rows)
    columns_far, columns_sign = bent(columns)
    down = jnp.where(lying, rows_far, jnp.abs(rows - half))
    across = jnp.where(lying, jnp.abs(columns - half), columns_far)
    sign = jnp.where(
        turned[:, None, None], rows_sign[:, :, None], columns_sign[:, None, :]
    )
    far = jnp.maximum(down[:, :, None], across[:, None, :])
    longest = rows.shape[1] + columns.shape[1] + 2
    sums = np.cumsum([0.0, *(1 / np.arange(1, longest) ** 2)])
    table = jnp.asarray(sums, jnp.float32)
    return sign * (table[half + 1] - jnp.take(table, far, mode="clip"))


def _window(
    key: jax.Array, images: jax.Array, side: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Draw a place for a square in each image, and number pixels from there."""
    n, height, width, _ = images.shape
    down, across = jax.random.split(key)
    top = jax.random.randint(down, (n, 1), 0, height - side + 1)
    left = jax.random.randint(across, (n, 1), 0, width - side + 1)
    return jnp.arange(height) - top, jnp.arange(width) - left


def _inside(rows: jax.Array, columns: jax.Array, side: jax.Array) -> jax.Array:
    down, across = ((at >= 0) & (at < side) for at in (rows, columns))
    return down[:, :, None] & across[:, None, :]


def _squares(shift: jax.Array) -> jax.Array:
    """Sum squares of each channel, [n, 1, 1, c]."""
    return jnp.sum(shift**2, axis=(1, 2), keepdims=True)


def _unit(shift: jax.Array) -> jax.Array:
    """Divide each channel by its norm."""
    length = jnp.sqrt(_squares(shift))
    return shift / jnp.where(length > 0, length, 1)


def _filled(
    images: jax.Array, shift: jax.Array, epsilon: jax.Array, box: tuple
) -> jax.Array:
    """Make a shift as long as epsilon, and add it."""
    length = norms(shift, "l2")
    shift = shift * (epsilon / jnp.where(length > 0, length, 1))
    x = (images + shift).astype(images.dtype)
    return project(x, images, epsilon, "l2", box)


BY_NORM: dict[str, tuple[Callable, Callable]] = {
    "linf": (stripes, recolour),
    "l2": (tiles, move),
}
