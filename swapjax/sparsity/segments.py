"""Groups of layers that share a count: thresholds along leaves, counts by group."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from swapjax.core import counts
from swapjax.core.types import Leaves
from swapjax.sparsity.stacking import Stacking


@dataclasses.dataclass(frozen=True)
class Segments:
    """The layers of some leaves, and the group of each. Static: it has a hash.

    Attributes:
        stacking: the layers of each leaf.
        groups: the group of each layer, by number.
        total: the number of groups.
    """

    stacking: Stacking
    groups: tuple[int, ...]
    total: int

    @classmethod
    def of_layers(cls, stacking: Stacking) -> "Segments":
        """Let every layer be a group of its own."""
        return cls(stacking, tuple(range(stacking.count)), stacking.count)

    def of(self, leaves: Sequence[int]) -> tuple[tuple[int, ...], "Segments"]:
        """Take some leaves alone, with layers and groups numbered anew.

        Returns:
            The groups that these leaves have a part in, in order; the leaves.
        """
        stacking = self.stacking
        old = sorted(n for leaf in leaves for n in stacking.numbers[leaf])
        new = {n: i for i, n in enumerate(old)}
        groups = sorted({self.groups[n] for n in old})
        place = {group: i for i, group in enumerate(groups)}
        part = Stacking(
            tuple(stacking.axes[leaf] for leaf in leaves),
            tuple(tuple(new[n] for n in stacking.numbers[leaf]) for leaf in leaves),
        )
        own = tuple(place[self.groups[n]] for n in old)
        return tuple(groups), Segments(part, own, len(groups))

    def apart(self) -> list[list[int]]:
        """List the leaves that share groups together, and all others by themselves."""
        above = list(range(self.total))  # a group that shares leaves with this one

        def first(group: int) -> int:
            while above[group] != group:
                group = above[group]
            return group

        parts: dict[int, list[int]] = {}
        for numbers in self.stacking.numbers:
            for n in numbers:
                above[first(self.groups[n])] = first(self.groups[numbers[0]])
        for leaf, numbers in enumerate(self.stacking.numbers):
            of = first(self.groups[numbers[0]]) if numbers else ~leaf
            parts.setdefault(of, []).append(leaf)
        return list(parts.values())

    def spread(self, values: jax.Array, leaves: Leaves) -> list[jax.Array]:
        """Lay the value of each group along the leaves, so that it broadcasts.

        Args:
            values: [groups].
            leaves: arrays, for their shapes.
        """
        found = []
        for leaf, x in enumerate(leaves):
            own = {self.groups[n] for n in self.stacking.numbers[leaf]}
            if len(own) == 1:
                found.append(values[own.pop()])
                continue
            by_layer = values[np.asarray(self.groups, np.int32)]
            found.append(self.stacking.spread(leaf, by_layer, x.shape))
        return found

    def count(self, leaves: Sequence[Sequence[jax.Array]]) -> tuple[jax.Array, ...]:
        """Count the True entries by group, several arrays of each leaf at once.

        In one reduction: XLA reads a leaf once for all that is derived from it, and on
        a CPU adds several times as fast as in `jnp.sum` of one.

        Args:
            leaves: for each leaf some bool arrays of its shape, as many for each.

        Returns:
            ``int32[groups]`` for the first arrays of all leaves, the second, and so on.
        """
        zero = jnp.zeros((), jnp.int32)
        parts = []
        for leaf, arrays in enumerate(leaves):
            ones = tuple(x.astype(jnp.int32) for x in arrays)
            axes = tuple(range(ones[0].ndim))
            if self.total > 1:
                axes = self.stacking.inner(leaf, ones[0].ndim)
            parts.append(jax.lax.reduce(ones, (zero,) * len(ones), _add, axes))
        return tuple(self.sum(column) for column in zip(*parts, strict=True))

    def sum(self, of_leaves: Sequence[jax.Array]) -> jax.Array:
        """Add up by group what each leaf has of its layers, or of all of them.

        Args:
            of_leaves: one array a leaf, over its stack; of shape () in one group.

        Returns:
            [groups].
        """
        if self.total == 1:
            total = functools.reduce(jnp.add, (x.sum(dtype=x.dtype) for x in of_leaves))
            return total[None]
        layers = self.stacking.gather(of_leaves)
        if self.groups == tuple(range(self.total)):
            return layers
        groups = np.asarray(self.groups, np.int32)
        return jnp.zeros((self.total,), layers.dtype).at[groups].add(layers)

    def places(self, leaves: Leaves) -> Leaves:
        """Give each entry its number in its group, by layer and flat index within it.

        Args:
            leaves: arrays, for their shapes.

        Returns:
            ``uint32``, one array a leaf.
        """
        stacking = self.stacking
        offsets, ends = [], [0] * self.total
        for group, size in zip(self.groups, self._sizes(leaves), strict=True):
            offsets.append(ends[group])
            ends[group] += size
        starts = np.asarray(offsets, np.uint32)
        if stacking.runs:
            (x,), (numbers,) = leaves, stacking.numbers
            before = np.cumsum((0, *stacking.runs[:-1])).astype(np.uint32)
            moved = np.zeros_like(starts)
            moved[list(numbers)] = starts[list(numbers)] - before
            # Layers mostly come in the order of their numbers.
            by_run = stacking.spread(0, moved, x.shape) if any(moved) else moved[0]
            return (_index((0,), x.shape) + by_run,)
        return tuple(
            _index(stacking.inner(leaf, x.ndim), x.shape)
            + stacking.spread(leaf, starts, x.shape)
            for leaf, x in enumerate(leaves)
        )

    def most(self, leaves: Leaves) -> int:
        """Count the entries of the largest group."""
        found = [0] * self.total
        for group, size in zip(self.groups, self._sizes(leaves), strict=True):
            found[group] += size
        return max(found)

    def _sizes(self, leaves: Leaves) -> tuple[int, ...]:
        """Count the entries of each layer."""
        if self.stacking.runs:
            found = [0] * self.stacking.count
            for n, run in zip(*self.stacking.numbers, self.stacking.runs, strict=True):
                found[n] = run
            return tuple(found)
        each = [self.stacking.layer_size(i, x.shape) for i, x in enumerate(leaves)]
        return self.stacking.by_layer(each)

    def zero(self, leaves: Leaves) -> jax.Array:
        """Make zeros that differ from device to device of a shard_map if leaves do.

        Returns:
            [groups], of the dtype of the leaves.
        """
        first, *others = (jax.lax.full_like(leaf, 0, shape=()) for leaf in leaves)
        one = functools.reduce(jnp.bitwise_or, others, first)
        return jnp.broadcast_to(one, (self.total,))


@functools.partial(jax.jit, static_argnums=1)
def _count_layers(masks: Leaves, stacking: Stacking) -> tuple[jax.Array, ...]:
    """Count the True entries of each layer, in parts that an int32 holds."""
    found: list[jax.Array] = []
    for leaf, mask in enumerate(masks):
        axes = stacking.inner(leaf, mask.ndim)
        if stacking.layer_size(leaf, mask.shape) > counts.LIMIT:
            axes = axes[-1:]
        found.append(jnp.sum(mask, axis=axes, keepdims=True, dtype=jnp.int32))
    return tuple(found)


def count_layers(masks: Leaves, stacking: Stacking) -> tuple[int, ...]:
    """Count the True entries of each layer, by number. Not for use under jit.

    Args:
        masks: bool leaves.
        stacking: their layers.
    """
    result = [0] * stacking.count
    for leaf, parts in enumerate(_count_layers(masks, stacking)):
        axes, numbers = stacking.axes[leaf], stacking.numbers[leaf]
        moved = np.moveaxis(np.asarray(parts), axes, range(len(axes)))
        each = moved.reshape(len(numbers), -1)
        for n, part in zip(numbers, each, strict=True):
            result[n] = counts.total(part)
    return tuple(result)


def _index(axes: tuple[int, ...], shape: tuple[int, ...]) -> jax.Array:
    """Give each entry its number along some axes, in C order."""
    found = jnp.zeros((), jnp.uint32)
    if axes == tuple(range(len(shape))):
        return jax.lax.iota(jnp.uint32, math.prod(shape)).reshape(shape)
    strides = itertools.accumulate(
        (shape[a] for a in axes[:0:-1]), int.__mul__, initial=1
    )
    for axis, stride in zip(reversed(axes), strides, strict=True):
        along = jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
        found = found + along * jnp.uint32(stride)
    return jnp.broadcast_to(found, shape)


def _add(first: tuple, second: tuple) -> tuple:
    return tuple(a + b for a, b in zip(first, second, strict=True))
