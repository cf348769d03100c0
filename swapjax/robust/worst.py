"""Of several attacks on the same images the worst, by image."""

import jax
import jax.numpy as jnp


def worse(one: tuple, other: tuple) -> tuple:
    """Take of two attacks the worse for each image.

    Args:
        one: images [n, ...], whether they are misclassified [n], their objective [n].
        other: the same of the other attack.

    Returns:
        The same of the worse: misclassified, then of larger objective.
    """
    more = (other[1] & ~one[1]) | ((other[1] == one[1]) & (other[2] > one[2]))
    return tuple(choose(more, b, a) for a, b in zip(one, other, strict=True))


def choose(where: jax.Array, yes: jax.Array, no: jax.Array) -> jax.Array:
    """Choose between two arrays [n, ...] by example."""
    return jnp.where(where.reshape(-1, *(1,) * (yes.ndim - 1)), yes, no)


def nothing(images: jax.Array) -> tuple:
    """Return a placeholder that any attack beats."""
    count, wide = images.shape[0], jnp.promote_types(images.dtype, jnp.float32)
    return images, jnp.zeros(count, bool), jnp.full(count, -jnp.inf, wide)
