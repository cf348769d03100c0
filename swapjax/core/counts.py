"""Counts of entries, also where there are more of them than an int32 holds."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

LIMIT = 2**31 - 1  # what an int32 counts to


def partial_counts(mask: jax.Array) -> jax.Array:
    """Count the True entries of an array, in parts that an int32 holds.

    Args:
        mask: bool of any shape; may be traced.

    Returns:
        ``int32[]``; of an array with more entries than an int32 counts, one count for
        each row along its last axis.
    """
    if mask.size <= LIMIT:
        return jnp.sum(mask, dtype=jnp.int32)
    return jnp.sum(mask, axis=-1, dtype=jnp.int32)


def total(parts: Any) -> int:
    """Add up what `partial_counts` found, on the host."""
    return int(np.sum(np.asarray(parts), dtype=np.int64))


def count_true(mask: Any) -> int:
    """Count the True entries of an array outside of jit."""
    return total(partial_counts(jnp.asarray(mask)))


def exceeds(counts: Sequence[jax.Array], limits: Sequence[jax.Array]) -> jax.Array:
    """Tell whether the sum of some counts is above that of others, ``bool[]``.

    The sums may be more than an int32 holds, though none of the numbers is: their high
    and low halves are added apart.

    Args:
        counts: ``int32[]``, not negative.
        limits: the same.
    """
    high, low = _halves(counts)
    high_limit, low_limit = _halves(limits)
    return (high > high_limit) | ((high == high_limit) & (low > low_limit))


def _halves(numbers: Sequence[jax.Array]) -> tuple[jax.Array, jax.Array]:
    zero = jnp.zeros((), jnp.int32)
    low = sum((n & 0xFFFF for n in numbers), start=zero)
    high = sum((n >> 16 for n in numbers), start=zero)
    return high + (low >> 16), low & 0xFFFF


def require_countable(shapes: Sequence[tuple[int, ...]]) -> None:
    """Raise if a group of leaves has more entries than an int32 can count.

    Args:
        shapes: of the leaves that share a count.

    Raises:
        ValueError: naming the way out.
    """
    entries = sum(math.prod(shape) for shape in shapes)
    if entries <= LIMIT:
        return
    if len(shapes) == 1:
        raise ValueError(
            f"a leaf of {entries:,} entries, shape {tuple(shapes[0])}, is more than "
            f"top-k can count ({LIMIT:,}); keep it as several leaves, or exclude it"
        )
    raise ValueError(
        f"a group of {entries:,} entries is more than top-k can count ({LIMIT:,}); "
        "split it with allocation='uniform' or 'erk', or with overrides"
    )


def require_countable_groups(
    groups: Sequence[int], shapes: Sequence[tuple[int, ...]]
) -> None:
    """Raise if one of several groups of leaves has too many entries.

    Args:
        groups: the group that each leaf belongs to.
        shapes: of the leaves.

    Raises:
        ValueError: as `require_countable` does.
    """
    for group in dict.fromkeys(groups):
        pairs = zip(groups, shapes, strict=True)
        require_countable([shape for g, shape in pairs if g == group])
