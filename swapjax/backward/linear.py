"""Pieces of backward passes: products by one operand, and arrays along an axis."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

NO_FURTHER = (
    "forward-mode derivatives and second ones do not pass where gradients are pruned "
    "at random; take those of the loss itself, without pruning"
)


def by_operand(
    product: Callable[..., jax.Array],
    operands: Sequence[jax.Array],
    which: int,
    slope: jax.Array,
) -> jax.Array:
    """Compute the gradient of one operand of a product, which is linear in it."""

    def linear(x: jax.Array) -> jax.Array:
        return product(*(x if i == which else o for i, o in enumerate(operands)))

    (found,) = jax.linear_transpose(linear, operands[which])(slope)
    return found


def scaled(x: jax.Array, weights: jax.Array, axis: int) -> jax.Array:
    """Multiply equal blocks along an axis with a number each, in the array's dtype."""
    whole = jnp.repeat(weights, x.shape[axis] // weights.size)
    shape = [1] * x.ndim
    shape[axis] = -1
    return (x.astype(jnp.float32) * whole.reshape(shape)).astype(x.dtype)


def block_norms(x: jax.Array, axis: int, number: int) -> jax.Array:
    """Return the norms of equal blocks along an axis, ``float32[number]``."""
    squares = jnp.square(x.astype(jnp.float32))
    rest = tuple(i for i in range(x.ndim) if i != axis)
    return jnp.sqrt(jnp.sum(squares, axis=rest).reshape(number, -1).sum(1))


@jax.custom_jvp
def once(tree: Any) -> Any:
    """Return arrays of a backward pass that is differentiated no further.

    Raises:
        ValueError: where it is.
    """
    return tree


@once.defjvp
def _(primals: Any, tangents: Any) -> Any:
    del primals, tangents
    raise ValueError(NO_FURTHER)
