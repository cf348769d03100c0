"""Draw some of many without bias: probabilities by norm, and two ways to draw."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from swapjax.core.checks import take_key
from swapjax.core.members import differ_like, own_seed

_BITS = 30  # of the whole line that a systematic draw walks along, in int32


def own_key(key: jax.Array, number: int | np.uint32, arrays: Any) -> jax.Array:
    """Make a key to draw with, of each member of a ``vmap`` over arrays its own.

    Args:
        key: of the step, which losses draw with as well.
        number: folded into it, apart from what losses fold in.
        arrays: by which members differ, and devices of a ``shard_map``, too.

    Raises:
        ValueError: for other than one PRNG key.
    """
    kind, _ = take_key(key, traced=True)
    arrays = lax.stop_gradient(arrays)
    numbers = jax.random.key_data(jax.random.fold_in(key, number))
    return jax.random.wrap_key_data(own_seed(kind, numbers, arrays), impl=kind)


def keep_probabilities(norms: jax.Array, count: jax.Array | float) -> jax.Array:
    """Return how probable it is to keep each of several parts, by their norms.

    ``p_i = min(1, c norm_i)`` with the c for which they sum to the count, which for
    independent draws has the least variance ``sum (1 / p_i - 1) norm_i^2`` of those
    with that sum. What is zero is never kept; where there are no more than `count`
    others, all of them are. A norm that is not finite is kept, so that it is seen.

    Args:
        norms: not negative, ``float32[n]``.
        count: how many to keep on average, from 0 to n; a traced number will do.
    """
    seen = jnp.where(jnp.isfinite(norms), norms, jnp.inf).astype(jnp.float32)

    def scale_for(certain: jax.Array) -> jax.Array:
        """Return c, if these are kept for certain."""
        rest = jnp.sum(jnp.where(certain, 0, seen))
        left = jnp.maximum(count - jnp.sum(certain), 0)
        return jnp.where(left > 0, left / jnp.where(rest > 0, rest, 1), 0)

    def grow(loop: tuple) -> tuple:
        certain, _ = loop
        new = certain | (seen * scale_for(certain) >= 1)
        return new, jnp.any(new != certain)

    # What is certain once stays so, as c grows: a few rounds do.
    start = jnp.isinf(seen), differ_like(jnp.bool_(True), seen)
    certain, _ = lax.while_loop(lambda loop: loop[1], grow, start)
    scale = scale_for(certain)
    some = jnp.where(certain, 1, jnp.minimum(seen * scale, 1))
    return jnp.where(jnp.sum(seen > 0) <= count, seen > 0, some).astype(jnp.float32)


def draw(uniforms: jax.Array, probabilities: jax.Array) -> jax.Array:
    """Draw each part on its own, and return what to multiply it with.

    Args:
        uniforms: independent, in [0, 1), ``float[n]``.
        probabilities: of keeping each, ``float[n]``.

    Returns:
        ``1 / p_i`` for what is kept, 0 for the rest; 1 on average where p is not 0.
    """
    kept = uniforms < probabilities
    return jnp.where(kept, 1 / jnp.where(kept, probabilities, 1), 0)


def draw_fixed(
    bits: jax.Array, norms: jax.Array, count: int
) -> tuple[jax.Array, jax.Array]:
    """Draw a fixed number of parts by their norms, without replacement.

    Systematic sampling (Madow, 1949): the parts lie along a line, each as long as its
    probability, and a comb with a random offset takes those that its teeth meet. The
    lengths are whole numbers, so that the probabilities in the weights are those of the
    draw, to the last bit.

    Args:
        bits: random ones, ``uint32[]``.
        norms: not negative, ``float32[n]``.
        count: how many to keep, from 1 to n.

    Returns:
        Indices ``int32[count]``, ascending, and what to multiply the parts with,
        ``float32[count]``: ``1 / p_i``; 0 beside the index n where fewer than `count`
        have a norm. Not a number, all of them, if some norm is not finite: what is lost
        in one part must not be dropped unseen.
    """
    finite = jnp.all(jnp.isfinite(norms))
    norms = jnp.where(finite, norms, 1)  # more than `count` that are certain overflow
    unit = 2 ** (_BITS - (count - 1).bit_length())
    probable = keep_probabilities(norms, count)
    lengths = jnp.floor(probable * unit).astype(jnp.int32)
    # What is small but not zero must have a chance, for which the longest gives way.
    lengths = jnp.where(probable > 0, jnp.maximum(lengths, 1), 0)
    over = jnp.maximum(jnp.sum(lengths) - count * unit, 0)
    lengths = lengths.at[jnp.argmax(lengths)].add(-over)
    ends = jnp.cumsum(lengths)
    teeth = (bits % unit).astype(jnp.int32) + unit * jnp.arange(count)
    met = jnp.searchsorted(ends, teeth, side="right").astype(jnp.int32)
    found = teeth < ends[-1]
    index = jnp.where(found, met, norms.size)
    own = lengths[jnp.minimum(index, norms.size - 1)].astype(jnp.float32)
    weights = jnp.where(found, unit / jnp.where(found, own, 1), 0)
    return index, jnp.where(finite, weights, jnp.nan)
