"""The range that values of images lie in, and what is checked of images against it."""

import math
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
    low, high = whole if box is None else _take_box(box)
    if not is_float and (low, high) != whole:
        raise ValueError(f"box must be (0, 255) for {name} of uint8, got {box}")
    if is_float and array.size and not isinstance(array, jax.core.Tracer):
        least, largest = map(float, _ends(array))
        # What was standardised with a mean and a deviation is off by roundings.
        slack = 8 * float(jnp.finfo(array.dtype).eps) * max(abs(low), abs(high))
        if not (low - slack <= least and largest <= high + slack):
            raise ValueError(
                f"{name} must lie in the box from {low:g} to {high:g}, got values from "
                f"{least:g} to {largest:g}; box= takes another"
            )
    return jnp.asarray(array), (low, high)


def _take_box(box: Any) -> Box:
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
