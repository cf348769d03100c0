"""Images with labels, for scores that look at a loss."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax


def take_batch(batch: Any) -> tuple[jax.Array, jax.Array]:
    """Take images and labels.

    Raises:
        ValueError: for other than images with a whole number each.
    """
    try:
        x, y = (jnp.asarray(part) for part in batch)
    except (TypeError, ValueError):
        raise ValueError(
            f"batch must be images and labels, got {type(batch).__name__}"
        ) from None
    if x.ndim != 4 or y.shape != x.shape[:1] or y.dtype.kind not in "iu" or not len(y):
        raise ValueError(
            "batch must be images [n, height, width, channels] and a whole number for "
            f"each, got shapes {x.shape} and {y.shape} of {x.dtype} and {y.dtype}"
        )
    return x, y


def require_classes(y: jax.Array, classes: int) -> None:
    """Raise a ValueError for labels that are no numbers of classes."""
    numbers = np.asarray(y)  # NumPy's, as jitted functions come here while traced
    least, most = int(numbers.min()), int(numbers.max())
    if least < 0 or most >= classes:
        raise ValueError(
            f"labels must be from 0 to {classes - 1}, got {least} to {most}"
        )


def mean_cross_entropy(logits: jax.Array, y: jax.Array) -> jax.Array:
    """Return the loss of a batch."""
    each = optax.softmax_cross_entropy_with_integer_labels(logits, y)
    return jnp.mean(each)
