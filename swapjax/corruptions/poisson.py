"""Poisson counts of many different means, all at once."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

_SMALL = 12  # counts of a mean below 1 that are told apart; more have odds of 1e-10


def poisson(key: jax.Array, means: jax.Array, most: int) -> jax.Array:
    """Draw a Poisson count for each mean, by inversion.

    A count of mean m is the sum of one of mean floor(m), looked up in a table, and of
    one of the rest, counted up. `jax.random.poisson` draws new numbers until the last
    entry accepts one, which takes ten times as long on a CPU.

    Args:
        key: a JAX PRNG key.
        means: floats of any shape, from 0 to most.
        most: the largest mean.

    Returns:
        ``int32`` of their shape. Both parts are exact up to the 23 bits of a uniform
        float32, which cuts tails off beyond odds of 1e-7.
    """
    of_whole, of_rest = jax.random.split(key)
    whole = jnp.clip(jnp.floor(means), 0, most)
    uniform = jax.random.uniform(of_whole, means.shape)
    table = _table(most)
    row = whole.astype(jnp.int32) * table.shape[1]
    flat = jnp.asarray(table.ravel())
    count = jnp.zeros(means.shape, jnp.int32)
    for bit in reversed(range(table.shape[1].bit_length() - 1)):
        # The first count whose share of draws up to it is above the number.
        probe = count + (1 << bit)
        count = jnp.where(flat[row + probe - 1] <= uniform, probe, count)
    rest = means - whole
    uniform = jax.random.uniform(of_rest, means.shape)
    share = reached = jnp.exp(-rest)
    for i in range(1, _SMALL + 1):
        count += uniform >= reached
        share = share * rest / i
        reached = reached + share
    return count


def _table(most: int) -> np.ndarray:
    """Tabulate the shares of draws up to each count, [most + 1, a power of 2]."""
    width = 1 << int(most + 8 * np.sqrt(most) + _SMALL).bit_length()
    means, counts = np.arange(most + 1)[:, None], np.arange(width)
    return special.pdtr(counts, means).astype(np.float32)
