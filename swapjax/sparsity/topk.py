"""Exact top-k with a traced k, over one array or over a whole tree.

``lax.top_k``, ``sort`` and ``quantile`` need a static k, or sort everything, or
round. Here the bits of a float are mapped to an unsigned integer of the same order,
and the k-th largest is found two bits at a time by counting what is above: 16 passes
that only compare and add. Nothing is concatenated: devices that share a leaf exchange
counts only. Groups with counts of their own are searched at once, each with a threshold
of its own.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np

from swapjax.core.counts import require_countable
from swapjax.core.types import Leaves
from swapjax.sparsity.cutting import apart, cut
from swapjax.sparsity.pieces import Pieces
from swapjax.sparsity.segments import Segments
from swapjax.sparsity.stacking import Stacking


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
    one = Segments(Stacking.none(len(keys)), (0,) * len(keys), 1)
    return top_keys_of_groups(keys, jnp.asarray(k, jnp.int32)[None], one)


def top_keys_of_groups(keys: Leaves, k: jax.Array, segments: Segments) -> Leaves:
    """Mark the largest unsigned integers of every group of layers.

    Many leaves on a single device are laid end to end, for one search. Otherwise leaves
    without a group in common are searched apart.

    Args:
        keys: arrays of unsigned integers of one width.
        k: ``int32[groups]``, how many of each group; may be traced.
        segments: the layers of each leaf, and the group of each layer.

    Returns:
        One bool array a leaf, of every group exactly k entries True. Ties go to the
        layer with the lower number, then to the lower flat index within it.
    """
    stacking = segments.stacking.laid(keys)
    if stacking is not None:
        vector = jnp.concatenate([key.reshape(-1) for key in keys])
        laid = dataclasses.replace(segments, stacking=stacking)
        (chosen,) = top_keys_of_groups((vector,), k, laid)
        never = k[0] < 0
        return cut(apart(chosen, never), [key.shape for key in keys], never)
    if segments.stacking.runs and segments.total > 1:
        pieces = Pieces.of(segments)
        rows = pieces.cut(keys[0])
        return (pieces.join(_top_of_groups(rows, k, pieces.segments, pieces.real())),)
    parts = segments.apart()
    if len(parts) < 2:
        return _top_of_groups(keys, k, segments)
    found: dict[int, jax.Array] = {}
    for leaves in parts:
        groups, part = segments.of(leaves)
        own = tuple(keys[i] for i in leaves)
        own_k = k[np.asarray(groups, np.int32)]
        found |= zip(leaves, _top_of_groups(own, own_k, part), strict=True)
    return tuple(found[i] for i in range(len(keys)))


@functools.partial(jax.jit, static_argnums=2)
def _top_of_groups(
    keys: Leaves, k: jax.Array, segments: Segments, real: Leaves | None = None
) -> Leaves:
    """Mark the largest of every group in one search; see `top_keys_of_groups`.

    Args:
        keys: as there, like the arguments that follow.
        k: how many.
        segments: the groups.
        real: where there are entries at all, by default everywhere; 0 elsewhere.
    """
    if not keys or sum(key.size for key in keys) == 0:
        return tuple(jnp.zeros(key.shape, bool) for key in keys)

    bits = keys[0].dtype.itemsize * 8

    def enough(candidates: list[jax.Array]) -> list[jax.Array]:
        along = [segments.spread(t, keys) for t in candidates]
        counts = segments.count(
            [
                [key >= t for t in thresholds]
                for key, *thresholds in zip(keys, *along, strict=True)
            ]
        )
        return [n >= k for n in counts]

    threshold = _largest(enough, bits, segments.zero(keys))
    bounds = segments.spread(threshold, keys)
    above = tuple(key > t for key, t in zip(keys, bounds, strict=True))
    tied = tuple(key == t for key, t in zip(keys, bounds, strict=True))
    if real is not None:
        tied = tuple(t & r for t, r in zip(tied, real, strict=True))
    sure, level = segments.count(list(zip(above, tied, strict=True)))
    # The usual case, no tie to break, must not pay for the second search.
    chosen = jax.lax.cond(
        jnp.all(k - sure == level),
        lambda: tied,
        lambda: _first(tied, k - sure, segments),
    )
    return tuple(a | c for a, c in zip(above, chosen, strict=True))


def common_keys(leaves: Leaves) -> Leaves:
    """Sort keys of one width, comparable between leaves of any dtypes."""
    keys = tuple(sort_keys(leaf) for leaf in leaves)
    if len({key.dtype for key in keys}) > 1:
        keys = tuple(sort_keys(leaf.astype(jnp.float64)) for leaf in leaves)
    return keys


def common_width(keys: Iterable[jax.Array]) -> Leaves:
    """Give unsigned integers the width of the widest of them, in the same order."""
    found = tuple(keys)
    widest = max((key.dtype for key in found), key=lambda dtype: dtype.itemsize)
    return tuple(_widen(key, widest) for key in found)


def _widen(key: jax.Array, dtype: jnp.dtype) -> jax.Array:
    if key.dtype == dtype:
        return key
    # The greatest stays the greatest.
    greatest = key == ~jnp.zeros((), key.dtype)
    return jnp.where(greatest, ~jnp.zeros((), dtype), key.astype(dtype))


def _largest(
    holds: Callable[[list[jax.Array]], list[jax.Array]], bits: int, start: jax.Array
) -> jax.Array:
    """Find the largest unsigned t that holds, two bits at a time from the top.

    Args:
        holds: tells of three candidates whether they do, in one pass over memory. What
            holds for one holds for all below it, and for 0.
        bits: of t.
        start: zeros, of the shape and dtype of t.
    """
    dtype = start.dtype

    def next_bits(i: jax.Array, t: jax.Array) -> jax.Array:
        place = jnp.asarray(2 * (rounds - 1 - i), dtype)
        digits = [jnp.asarray(digit, dtype) << place for digit in (1, 2, 3)]
        found = holds([t | digit for digit in digits])
        return t | (sum(f.astype(dtype) for f in found) << place)

    rounds = (bits + 1) // 2
    return jax.lax.fori_loop(jnp.int32(0), jnp.int32(rounds), next_bits, start)


def _first(tied: Leaves, room: jax.Array, segments: Segments) -> Leaves:
    """Keep the first True entries of each group, up to room."""
    places = segments.places(tied)
    pairs = tuple(zip(tied, places, strict=True))

    def fit(ends: list[jax.Array]) -> list[jax.Array]:
        along = [segments.spread(end, tied) for end in ends]
        counts = segments.count(
            [
                [t & (place < end) for end in bounds]
                for (t, place), *bounds in zip(pairs, *along, strict=True)
            ]
        )
        return [n <= room for n in counts]

    bits = segments.most(tied).bit_length()
    end = _largest(fit, bits, segments.zero(tied).astype(jnp.uint32))
    along = segments.spread(end, tied)
    return tuple(
        leaf & (place < limit)
        for (leaf, place), limit in zip(pairs, along, strict=True)
    )


def first_largest(keys: Leaves, segments: Segments) -> Leaves:
    """Mark the first of the largest keys of every layer, by two reductions, not 32.

    Args:
        keys: arrays of unsigned integers.
        segments: the layers of each leaf.
    """
    last = jnp.uint32(2**32 - 1)
    if segments.stacking.runs:
        return (Pieces.of(segments).first_largest(keys[0]),)
    found = []
    for leaf, (key, place) in enumerate(zip(keys, segments.places(keys), strict=True)):
        axes = segments.stacking.inner(leaf, key.ndim)
        most = jnp.max(key, axis=axes, keepdims=True, initial=0)
        at = jnp.where(key == most, place, last)
        first = jnp.min(at, axis=axes, keepdims=True, initial=last)
        found.append(place == first)
    return tuple(found)
