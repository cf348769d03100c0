"""Kept entries by number: which is the i-th of all that masks keep, and where it lies.

Entries are numbered from 0, leaf by leaf and in a leaf by flat index. Leaves are never
laid end to end: numbers come from a running count in each.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from swapjax.core import counts
from swapjax.core.types import Leaves


class Kept(NamedTuple):
    """The kept entries of some leaves.

    Attributes:
        running: how many are kept up to and including each entry of a leaf, flat.
        before: how many are kept in the leaves before each, and in all, [leaves + 1].
        masks: the bool leaves.
    """

    running: Leaves
    before: jax.Array
    masks: Leaves

    @property
    def total(self) -> jax.Array:
        """The number of kept entries."""
        return self.before[-1]

    def places(self, start: jax.Array | int, width: int) -> jax.Array:
        """Locate the entries numbered start, start + 1, ..., ``int32[width]``.

        Returns:
            Places in the leaves as if they were laid end to end; beyond the last entry
            that is kept, the number of all entries.
        """
        numbers = start + jnp.arange(width, dtype=jnp.int32)
        found = jnp.full(width, sum(r.size for r in self.running), jnp.int32)
        offset = 0
        for leaf, running in enumerate(self.running):
            first, end = self.before[leaf], self.before[leaf + 1]
            inside = (numbers >= first) & (numbers < end)

            def look(
                found: jax.Array,
                running: jax.Array = running,
                inside: jax.Array = inside,
                first: jax.Array = first,
                offset: int = offset,
            ) -> jax.Array:
                at = jnp.searchsorted(running, numbers - first + 1)
                return jnp.where(inside, offset + at.astype(jnp.int32), found)

            # Most leaves hold none of the entries asked for.
            found = jax.lax.cond(jnp.any(inside), look, lambda f: f, found)
            offset += running.size
        return found

    def spread(self, values: jax.Array, start: jax.Array | int = 0) -> Leaves:
        """Put values at the entries numbered start, start + 1, ...; zero elsewhere.

        Args:
            values: [width].
            start: the number of the first.

        Returns:
            One array a leaf, of the dtype of values.
        """
        leaves = []
        for leaf, (running, mask) in enumerate(
            zip(self.running, self.masks, strict=True)
        ):
            number = self.before[leaf] + running - 1 - start
            number = jnp.where(number < 0, len(values), number)
            taken = jnp.take(values, number, mode="fill", fill_value=0)
            leaves.append(jnp.where(mask, taken.reshape(mask.shape), 0))
        return tuple(leaves)


def number(masks: Leaves) -> Kept:
    """Give every entry that is True its number, in order.

    Args:
        masks: bool leaves.

    Raises:
        ValueError: for more entries than an int32 counts.
    """
    entries = sum(m.size for m in masks)
    if entries > counts.LIMIT:
        raise ValueError(
            f"the method numbers all {entries:,} prunable entries, and no more than "
            f"{counts.LIMIT:,} can be; exclude some, or take another method"
        )
    running = tuple(jnp.cumsum(m.ravel(), dtype=jnp.int32) for m in masks)
    none = jnp.zeros((), jnp.int32)
    each = jnp.stack([r[-1] if r.size else none for r in running])
    return Kept(running, jnp.concatenate([none[None], jnp.cumsum(each)]), masks)
