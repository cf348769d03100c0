"""The ball around images that an attack must stay in, and steps within it."""

import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

Norm = Literal["linf", "l2"]
Start = Literal["uniform", "gaussian"]
# Of the width of the box: the start of TRADES and of hypersphere embedding.
_SMALL = 1e-3


def require_norm(norm: Any) -> None:
    """Raise unless a norm is one that there are balls of.

    Raises:
        ValueError: naming the argument.
    """
    if norm not in get_args(Norm):
        raise ValueError(f"norm must be 'linf' or 'l2', got {norm!r}")


def require_start(start: Any) -> None:
    """Raise unless a start is one that attacks have.

    Raises:
        ValueError: naming the argument.
    """
    if start is not None and start not in get_args(Start):
        raise ValueError(f"start must be 'uniform', 'gaussian' or None, got {start!r}")


def cast(numbers: tuple, images: jax.Array) -> tuple[jax.Array, ...]:
    """Bring radius, step and box to the dtype of images."""
    return tuple(jnp.asarray(x, images.dtype) for x in numbers)


def norms(shift: jax.Array, norm: Norm) -> jax.Array:
    """Measure each image of a shift [n, ...].

    Returns:
        One norm an image, [n, 1, ...], in float32 or wider.
    """
    wide = shift.astype(jnp.promote_types(shift.dtype, jnp.float32))
    axes = tuple(range(1, shift.ndim))
    largest = jnp.max(jnp.abs(wide), axis=axes, keepdims=True, initial=0)
    if norm == "linf":
        return largest
    # Squares of what is as small as 1e-30 are zero in float32.
    unit = jnp.where(largest > 0, largest, 1)
    return unit * jnp.sqrt(jnp.sum((wide / unit) ** 2, axis=axes, keepdims=True))


def steepest(gradient: jax.Array, norm: Norm) -> jax.Array:
    """Find the shift of norm 1 along which a function rises fastest.

    Args:
        gradient: of the function, one an image, [n, ...].
        norm: in which the shift has norm 1.

    Returns:
        The signs in the largest norm, the gradient divided by its norm in l2; zeros
        where there is no gradient. Its length makes no difference.
    """
    if norm == "linf":
        return jnp.sign(gradient)
    length = norms(gradient, norm)
    return (gradient / jnp.where(length > 0, length, 1)).astype(gradient.dtype)


def project(
    x: jax.Array, centre: jax.Array, epsilon: jax.Array, norm: Norm, box: tuple
) -> jax.Array:
    """Bring images back within epsilon of the centre, and into the box.

    In l2 the shift is shortened, then clipped, which makes it no longer since the
    centre lies in the box.
    """
    if norm == "linf":
        low, high = bounds(centre, epsilon, box)
        return jnp.clip(x, low, high)
    length = norms(x - centre, norm)
    kept = jnp.minimum(1, epsilon / jnp.where(length > 0, length, 1))
    return jnp.clip(centre + (x - centre) * kept.astype(x.dtype), *box)


def bounds(
    centre: jax.Array, epsilon: jax.Array, box: tuple
) -> tuple[jax.Array, jax.Array]:
    """Return the least and the largest values in the ball of the largest norm."""
    return jnp.maximum(centre - epsilon, box[0]), jnp.minimum(centre + epsilon, box[1])


def draw(
    key: jax.Array,
    images: jax.Array,
    epsilon: jax.Array,
    norm: Norm,
    box: tuple,
    start: Start = "uniform",
) -> jax.Array:
    """Draw where an attack begins.

    Args:
        key: a JAX PRNG key.
        images: floats [n, ...], the centres.
        epsilon: radius of the ball.
        norm: of the ball.
        box: the least and the largest value.
        start: ``"uniform"`` in the ball, or ``"gaussian"``, a thousandth of the box
            from the images.

    Returns:
        Points of the ball that lie in the box.
    """
    if start == "gaussian":
        width = _SMALL * (box[1] - box[0])
        shift = jax.random.normal(key, images.shape, images.dtype)
        return project(images + width * shift, images, epsilon, norm, box)
    if norm == "linf":
        shift = jax.random.uniform(key, images.shape, images.dtype, -1, 1)
        return jnp.clip(images + epsilon * shift, *box)
    first, second = jax.random.split(key)
    shift = steepest(jax.random.normal(first, images.shape, images.dtype), norm)
    size = math.prod(images.shape[1:])
    one_each = (images.shape[0], *(1,) * (images.ndim - 1))
    # The volume within a radius grows with its power of the dimension.
    radius = jax.random.uniform(second, one_each, images.dtype) ** (1 / max(size, 1))
    return project(images + epsilon * radius * shift, images, epsilon, norm, box)


def climb(
    slope: Callable[[jax.Array], jax.Array],
    centre: jax.Array,
    start: jax.Array,
    sizes: tuple,
    norm: Norm,
    box: tuple,
) -> jax.Array:
    """Take steps of one length up a function, each back into the ball and the box.

    Args:
        slope: the gradient at images [n, ...].
        centre: of the ball.
        start: where to begin.
        sizes: radius, step, and how many steps; all may be traced.
        norm: of the ball and the steps.
        box: the least and the largest value.

    Returns:
        Where it ends.
    """
    epsilon, step, steps = sizes

    def once(_: jax.Array, x: jax.Array) -> jax.Array:
        x = x + step * steepest(slope(x), norm)
        return project(x, centre, epsilon, norm, box)

    return jax.lax.fori_loop(0, steps, once, start)
