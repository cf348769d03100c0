"""Where examples come from: arrays to draw from, or an iterator of batches."""

import collections
import functools
import hashlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from swapjax.core import keys, sharding, trees


class Source:
    """Examples for several stages, with a count of the batches taken.

    Args:
        data: a pytree of arrays with a leading axis of examples, or an iterator of
            such batches.
        wanted: examples per draw.
        name: the argument that they came in, for messages.

    Attributes:
        wanted: examples per draw.
        taken: batches taken from the iterator so far.
        spread: the devices that arrays are sharded over, or None.

    Raises:
        ValueError: for arrays that disagree about the number of examples, hold fewer
            than wanted, are not finite, or sharded in different ways.
    """

    def __init__(self, data: Any, wanted: int, name: str = "data") -> None:
        self.wanted, self._name = wanted, name
        self._iterator = data if isinstance(data, Iterator) else None
        self._arrays = None if self._iterator is not None else data
        self.taken = 0
        self.spread = None
        if self._arrays is not None:
            self.spread = sharding.find_spread(self._arrays)
            available = trees.count_examples(self._arrays, name)
            if available < wanted:
                raise ValueError(
                    f"{name}: {available:,} examples, fewer than the {wanted:,} that "
                    "samples * batch asks for"
                )
            _require_finite(self._arrays, name)

    def digest(self) -> str:
        """Compute a fingerprint of the data: a hash of arrays; iterators have none."""
        if self._arrays is None:
            return "iterator"
        result = hashlib.sha256()
        for x in jax.tree.leaves(self._arrays):
            array = np.ascontiguousarray(keys.bits(x))
            result.update(f"{array.dtype} {array.shape}".encode() + array.tobytes())
        return result.hexdigest()[:16]

    @property
    def counts(self) -> bool:
        """Whether batches are taken of an iterator, which cannot give them again."""
        return self._iterator is not None

    @property
    def stream(self) -> Any:
        """The data as `finetune` takes it: arrays, or the iterator itself."""
        return self._arrays if self._iterator is None else self

    def __iter__(self) -> "Source":
        return self

    def __next__(self) -> Any:
        """Take the next batch of the iterator and count it."""
        assert self._iterator is not None
        batch = next(self._iterator)
        self.taken += 1
        return batch

    def skip(self, batches: int) -> None:
        """Skip the batches that an interrupted run has already taken of an iterator."""
        if self._iterator is not None:
            collections.deque(take(self, batches), maxlen=0)

    def draw(self, key: jax.Array | None) -> Any:
        """Draw the wanted number of examples, from arrays without replacement.

        Args:
            key: which of the arrays' examples; None for the first.

        Returns:
            A pytree of arrays [wanted, ...] on the device.

        Raises:
            ValueError: for an iterator that ends early, and entries not finite.
        """
        if self._iterator is None:
            total = trees.count_examples(self._arrays)
            if key is None:
                first = lambda x: jnp.asarray(x[: self.wanted])  # noqa: E731
                return jax.tree.map(first, self._arrays)
            leaves = jax.tree.leaves(self._arrays)
            if self.spread is None and all(isinstance(x, jax.Array) for x in leaves):
                return _draw(key, self._arrays, self.wanted)
            index = np.asarray(_choose(key, total, self.wanted))
            return jax.tree.map(lambda x: jnp.asarray(x[index]), self._arrays)
        parts, have = [], 0
        while have < self.wanted:
            (batch,) = take(self, 1)
            parts.append(batch)
            have += trees.count_examples(batch)
        drawn = jax.tree.map(
            lambda *x: jnp.concatenate([jnp.asarray(y) for y in x])[: self.wanted],
            *parts,
        )
        _require_finite(drawn, self._name)
        return drawn


def take(batches: Iterator, count: int) -> Iterator:
    """Yield `count` batches of an iterator.

    Raises:
        ValueError: when there are fewer.
    """
    for i in range(count):
        try:
            batch = next(batches)
        except StopIteration:
            raise ValueError(
                f"data: the iterator ended after {i} of {count} batches"
            ) from None
        yield batch


@functools.partial(jax.jit, static_argnums=(1, 2))
def _choose(key: jax.Array, total: int, wanted: int) -> jax.Array:
    """Choose some of all numbers below a total, each at most once."""
    return jax.random.choice(key, total, (wanted,), replace=False)


@functools.partial(jax.jit, static_argnums=2)
def _draw(key: jax.Array, arrays: Any, wanted: int) -> Any:
    """Draw examples in one program."""
    index = _choose(key, trees.count_examples(arrays), wanted)
    return jax.tree.map(lambda x: x[index], arrays)


def _require_finite(data: Any, name: str) -> None:
    leaves = [jnp.asarray(x) for x in jax.tree.leaves(data)]
    trees.require_finite(trees.paths(data), leaves, name)
