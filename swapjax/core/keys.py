"""PRNG keys among arrays: told apart, and as numbers that files and digests take."""

from typing import Any

import jax
import jax.numpy as jnp


def is_key(leaf: Any) -> bool:
    """Tell whether an array holds PRNG keys."""
    return isinstance(leaf, jax.Array) and jnp.issubdtype(
        leaf.dtype, jax.dtypes.prng_key
    )


def bits(leaf: Any) -> Any:
    """Return what a file can hold of an array: the data of a key, or itself."""
    return jax.random.key_data(leaf) if is_key(leaf) else leaf


def from_bits(data: jax.Array, like: Any) -> jax.Array:
    """Undo `bits`: make keys again, of the kind of those that like holds, if any."""
    if not is_key(like):
        return data
    return jax.random.wrap_key_data(data, impl=jax.random.key_impl(like))
