"""Exact top-k with a traced k, over one array or over a whole tree.

``lax.top_k``, ``sort`` and ``quantile`` need a static k, or sort everything, or
round. Here the bits of a float are mapped to an unsigned integer of the same order,
and the k-th largest is found two bits at a time by counting what is above: 16 passes
that only compare and add. Nothing is concatenated: devices that share a leaf exchange
counts only.
"""

import functools
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp

from swapjax.core.counts import require_countable
from swapjax.core.types import Leaves


def sort_keys(x: jax.Array) -> jax.Array:
    """Map floats to unsigned integers of the same order.

    Args:
        x: floats of any shape and width. Below 32 bits they are widened, exactly.

    Returns:
        ``uint32`` (``uint64`` for float64) of the same shape. NaN becomes 0, below
        every number; the two zeros become one.
    """
    if x.dtype.itemsize < 4:
        x = x.astype(jnp.float32)
    wide = x.dtype.itemsize == 8
    uint, sint = (jnp.uint64, jnp.int64) if wide else (jnp.uint32, jnp.int32)
    top = jnp.asarray(1, uint) << (63 if wide else 31)
    bits = jax.lax.bitcast_convert_type(x, uint)
    # Not x == 0: a CPU takes subnormals for zero there.
    bits = jnp.where(bits == top, jnp.zeros_like(bits), bits)
    negative = jax.lax.bitcast_convert_type(bits, sint) < 0
    keys = jnp.where(negative, ~bits, bits | top)
    return jnp.where(jnp.isnan(x), jnp.zeros_like(keys), keys)


def top_k_mask(x: jax.Array, k: jax.Array | int) -> jax.Array:
    """Mark the k largest entries of an array.

    Args:
        x: floats of any shape. NaN ranks lowest.
        k: how many, at least 0 and at most ``x.size``; may be traced.

    Returns:
        ``bool[x.shape]`` with exactly k entries True. Ties go to the lower flat index.
    """
    return top_k_masks((x,), k)[0]


def top_k_masks(leaves: Leaves, k: jax.Array | int) -> Leaves:
    """Mark the k largest entries of several arrays taken together.

    Args:
        leaves: float arrays of any shapes and dtypes.
        k: how many of all entries, at least 0 and at most their number; may be traced.

    Returns:
        One bool array a leaf, exactly k entries True in all. Ties go to the earlier
        leaf, then to the lower flat index.

    Raises:
        ValueError: for more than 2^31 - 1 entries, which an int32 cannot count.
    """
    require_countable([leaf.shape for leaf in leaves])
    return top_keys(common_keys(leaves), k)


def top_keys(keys: Leaves, k: jax.Array | int) -> Leaves:
    """Mark the k largest of unsigned integers; see `top_k_masks`."""
    k = jnp.asarray(k, jnp.int32)
    if not keys or sum(key.size for key in keys) == 0:
        return tuple(jnp.zeros(key.shape, bool) for key in keys)

    bits = keys[0].dtype.itemsize * 8

    def enough(candidates: list[jax.Array]) -> list[jax.Array]:
        counts = _counts([[key >= t for t in candidates] for key in keys])
        return [n >= k for n in counts]

    threshold = _largest(enough, bits, _zero(keys))
    above = tuple(key > threshold for key in keys)
    tied = tuple(key == threshold for key in keys)
    sure, level = _counts(zip(above, tied, strict=True))
    # The usual case, no tie to break, must not pay for the second search.
    chosen = jax.lax.cond(
        k - sure == level, lambda: tied, lambda: _first(tied, k - sure)
    )
    return tuple(a | c for a, c in zip(above, chosen, strict=True))


def common_keys(leaves: Leaves) -> Leaves:
    """Sort keys of one width, comparable between leaves of any dtypes."""
    keys = tuple(sort_keys(leaf) for leaf in leaves)
    if len({key.dtype for key in keys}) > 1:
        keys = tuple(sort_keys(leaf.astype(jnp.float64)) for leaf in leaves)
    return keys


def _largest(
    holds: Callable[[list[jax.Array]], list[jax.Array]], bits: int, start: jax.Array
) -> jax.Array:
    """Find the largest unsigned t that holds, two bits at a time from the top.

    Args:
        holds: tells of three candidates whether they do, in one pass over memory. What
            holds for one holds for all below it, and for 0.
        bits: of t.
        start: zero, of the dtype of t.
    """
    dtype = start.dtype

    def next_bits(i: jax.Array, t: jax.Array) -> jax.Array:
        place = jnp.asarray(2 * (rounds - 1 - i), dtype)
        digits = [jnp.asarray(digit, dtype) << place for digit in (1, 2, 3)]
        found = holds([t | digit for digit in digits])
        return t | (sum(f.astype(dtype) for f in found) << place)

    rounds = (bits + 1) // 2
    return jax.lax.fori_loop(jnp.int32(0), jnp.int32(rounds), next_bits, start)


def _zero(leaves: Leaves) -> jax.Array:
    """Make a zero that differs from device to device of a shard_map if leaves do."""
    first, *others = (jax.lax.full_like(leaf, 0, shape=()) for leaf in leaves)
    return functools.reduce(jnp.bitwise_or, others, first)


def _first(tied: Leaves, room: jax.Array) -> Leaves:
    """Keep the first `room` of the True entries, by leaf and flat index."""
    places, offset = [], 0
    for leaf in tied:
        flat = jax.lax.iota(jnp.uint32, leaf.size).reshape(leaf.shape)
        places.append(flat + jnp.uint32(offset))
        offset += leaf.size
    pairs = tuple(zip(tied, places, strict=True))

    def fit(ends: list[jax.Array]) -> list[jax.Array]:
        counts = _counts([[t & (place < end) for end in ends] for t, place in pairs])
        return [n <= room for n in counts]

    end = _largest(fit, offset.bit_length(), _zero(tied).astype(jnp.uint32))
    return tuple(leaf & (place < end) for leaf, place in pairs)


def first_largest(key: jax.Array) -> jax.Array:
    """Mark the first of the largest keys, by two reductions instead of 32."""
    place = jax.lax.iota(jnp.uint32, key.size).reshape(key.shape)
    last = jnp.uint32(2**32 - 1)
    first = jnp.min(
        jnp.where(key == jnp.max(key, initial=0), place, last), initial=last
    )
    return place == first


def _counts(leaves: Iterable[Iterable[jax.Array]]) -> tuple[jax.Array, ...]:
    """Count the True entries of all leaves, several arrays of each at once.

    In one reduction: XLA reads a leaf once for all that is derived from it, and on a
    CPU adds several times as fast as in `jnp.sum` of one.
    """
    zero = jnp.zeros((), jnp.int32)
    parts = []
    for arrays in leaves:
        ones = tuple(x.astype(jnp.int32) for x in arrays)
        parts.append(
            jax.lax.reduce(ones, (zero,) * len(ones), _add, tuple(range(ones[0].ndim)))
        )
    return tuple(sum(column, start=zero) for column in zip(*parts, strict=True))


def _add(first: tuple, second: tuple) -> tuple:
    return tuple(a + b for a, b in zip(first, second, strict=True))
