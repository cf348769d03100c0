"""The range that values of images lie in: checked, and scaled to 0 and 1."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Box = tuple[float, float]


def take_images(name: str, images: Any, box: Box | None) -> tuple[jax.Array, Box]:
    """Look at images before they are spoilt.

    Args:
        name: of the argument, for messages.
        images: floats or bytes of any shape.
        box: the least and the largest value that an image can hold; None for 0 and 1,
            or for bytes 0 and 255. Values are compared where they are known, which is
            not under jit.

    Returns:
        The images as an array of JAX, and the box.

    Raises:
        ValueError: naming the argument, for other dtypes, a box without width or one of
            bytes that is not theirs, and values that are NaN or outside of it.
    """
    array = images if isinstance(images, jax.Array) else np.asarray(images)
    is_float = jnp.issubdtype(array.dtype, jnp.floating)
    if not is_float and array.dtype != np.uint8:
        raise ValueError(
            f"{name} must be floats in a box or uint8 from 0 to 255, got {array.dtype}"
        )
    whole = (0.0, 1.0) if is_float else (0.0, 255.0)
    low, high = whole if box is None else take_box(box)
    if not is_float and (low, high) != whole:
        raise ValueError(f"box must be (0, 255) for {name} of uint8, got {box}")
    if is_float and array.size and not isinstance(array, jax.core.Tracer):
        with jax.ensure_compile_time_eval():  # constants of what is being traced
            least, largest = map(float, _ends(array))
        # What was standardised with a mean and a deviation is off by roundings.
        narrow = jnp.finfo(array.dtype if array.dtype.itemsize < 4 else jnp.float32)
        slack = 8 * float(narrow.eps) * max(abs(low), abs(high))
        if not (low - slack <= least and largest <= high + slack):
            raise ValueError(
                f"{name} must lie in the box from {low:g} to {high:g}, got values from "
                f"{least:g} to {largest:g}; box= takes another"
            )
    return jnp.asarray(array), (low, high)


def take_layout(images: jax.Array) -> None:
    """Raise unless images have a height and a width.

    Raises:
        ValueError: naming the argument.
    """
    if images.ndim not in (3, 4):
        raise ValueError(
            "images must have shape [n, height, width] or [n, height, width, "
            f"channels], got {list(images.shape)}"
        )


def in_unit(
    images: jax.Array, box: Box, spoil: Callable[[jax.Array], jax.Array]
) -> jax.Array:
    """Spoil images whose values are in [0, 1].

    Args:
        images: [n, height, width] or [n, height, width, channels].
        box: their least and largest value. A constant under jit: XLA computes with
            constants in another order of roundings, and so what is compiled by itself
            is the same as within a larger program.
        spoil: a function of floats [n, height, width, channels].

    Returns:
        What it returned, in the box again, in the shape and dtype of images.
    """
    low, high = box
    # No half precision: the levels of 8 bits are to be told apart.
    wide = jnp.float64 if images.dtype == jnp.float64 else jnp.float32
    x = images.reshape(*images.shape[:3], -1).astype(wide)
    x = jnp.clip(spoil((x - low) / (high - low)), 0, 1) * (high - low) + low
    if not jnp.issubdtype(images.dtype, jnp.floating):
        x = jnp.round(x)
    # Products with the width of the box are off by a rounding.
    return jnp.clip(x, low, high).astype(images.dtype).reshape(images.shape)


def take_box(box: Any) -> Box:
    """Take the least and the largest value of an image.

    Raises:
        ValueError: for other than two numbers that rise.
    """
    try:
        low, high = map(float, box)
    except (TypeError, ValueError):
        raise ValueError(
            f"box must be two numbers, the least and the largest, got {box!r}"
        ) from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"box must be two numbers that rise, got {box!r}")
    return low, high


@jax.jit
def _ends(array: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Find the least and the largest value; both are NaN where one is."""
    # XLA's maximum hides NaN on a CPU, a sum with 0 times it does not.
    spoilt = jnp.sum(array * 0)
    return jnp.min(array) + spoilt, jnp.max(array) + spoilt
