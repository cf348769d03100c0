"""Where the stages of a run take examples: arrays to draw from, or batches."""

import collections
import functools
import hashlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from swapjax.core import keys, sharding, trees
from swapjax.loops.streams import Stream, take_data

_BYTES = 2**26  # of an array that is looked at at a time


class Source:
    """Examples for several stages, with a count of the batches taken.

    Args:
        data: a pytree of arrays with a leading axis of examples, or batches of them: a
            `Stream`, or what `streams.is_stream` takes for one. Arrays of NumPy stay on
            the host.
        wanted: examples per draw.
        name: the argument that they came in, for messages.
        with_keys: whether a draw is of pairs of examples and PRNG keys, one each.

    Attributes:
        wanted: examples per draw.
        spread: the devices that arrays are sharded over, or None.

    Raises:
        ValueError: for arrays that disagree about the number of examples, hold fewer
            than wanted, are not finite, or sharded in different ways.
    """

    def __init__(
        self, data: Any, wanted: int, name: str = "data", *, with_keys: bool = False
    ) -> None:
        self.wanted, self._name, self._with_keys = wanted, name, with_keys
        data = take_data(data, None, name=name)
        self._stream = data if isinstance(data, Stream) else None
        self._arrays = None if self._stream is not None else data
        self.spread = None
        if self._arrays is not None:
            self.spread = sharding.find_spread(self._arrays)
            available = trees.count_examples(self._arrays, name)
            if available < wanted:
                raise ValueError(
                    f"{name}: {available:,} examples, fewer than the {wanted:,} that "
                    "samples * batch asks for"
                )
            require_finite(self._arrays, name)

    @property
    def taken(self) -> int:
        """Batches taken so far, of those that come one after the other."""
        return 0 if self._stream is None else self._stream.taken

    def digest(self) -> str:
        """Compute a fingerprint of the data: a hash of arrays; batches have none."""
        if self._stream is not None:
            return "batches" if self._stream.repeats else "iterator"
        result = hashlib.sha256()
        for x in jax.tree.leaves(self._arrays):
            array = np.ascontiguousarray(keys.bits(x))
            result.update(f"{array.dtype} {array.shape}".encode())
            result.update(array.reshape(-1).view(np.uint8).data)
        return result.hexdigest()[:16]

    @property
    def counts(self) -> bool:
        """Whether batches are taken one after the other, and counted."""
        return self._stream is not None

    @property
    def stream(self) -> Any:
        """The data as `finetune` takes it: arrays, or the stream of batches."""
        return self._arrays if self._stream is None else self._stream

    def skip(self, batches: int) -> None:
        """Skip the batches that an interrupted run has already taken."""
        if self._stream is not None:
            collections.deque(self._stream.take(batches), maxlen=0)

    def draw(self, key: jax.Array | None) -> Any:
        """Draw the wanted number of examples, from arrays without replacement.

        Of batches those that come next are taken, as many as it needs; where they end
        and can begin anew, they do.

        Args:
            key: which of the arrays' examples, and seeds theirs; None for the first.

        Returns:
            A pytree of arrays [wanted, ...] on the device; with keys beside it if they
            are wanted.

        Raises:
            ValueError: for batches that end early, and entries not finite.
        """
        if not self._with_keys:
            return self._draw(key)
        assert key is not None
        own = jax.random.fold_in(key, np.uint32(2**32 - 1))
        return self._draw(key), jax.random.split(own, self.wanted)

    def _draw(self, key: jax.Array | None) -> Any:
        """Draw examples alone."""
        if self._stream is None:
            return self._choose(key)
        parts = list(self._next_batches(self._stream))
        drawn = jax.tree.map(
            lambda *x: jnp.concatenate([jnp.asarray(y) for y in x])[: self.wanted],
            *parts,
        )
        require_finite(drawn, self._name)
        return drawn

    def _choose(self, key: jax.Array | None) -> Any:
        """Draw from arrays, where they lie."""
        if key is None:
            return jax.tree.map(lambda x: jnp.asarray(x[: self.wanted]), self._arrays)
        leaves = jax.tree.leaves(self._arrays)
        if self.spread is None and all(isinstance(x, jax.Array) for x in leaves):
            return _draw(key, self._arrays, self.wanted)
        total = trees.count_examples(self._arrays)
        index = np.asarray(_choose(key, total, self.wanted))
        return jax.tree.map(lambda x: jnp.asarray(x[index]), self._arrays)

    def _next_batches(self, stream: Stream) -> Iterator:
        """Yield batches until there are as many examples as are wanted."""
        have, count, whole = 0, 0, stream.is_fresh
        while have < self.wanted:
            batch = next(stream, None)
            if batch is None:
                # Of a pass that began in here all is there.
                if whole or not stream.repeats:
                    raise ValueError(
                        f"{self._name}: {stream.noun} ended after {count:,} batches of "
                        f"{have:,} examples, fewer than the {self.wanted:,} that "
                        "samples * batch asks for at each stage"
                    )
                whole = True
                continue
            have, count = have + trees.count_examples(batch), count + 1
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


def take_to_host(data: Any) -> Any:
    """Bring examples to the host.

    Raises:
        ValueError: for PRNG keys, which the host has no arrays of.
    """
    for leaf in jax.tree.leaves(data):
        if keys.is_key(leaf):
            raise ValueError(
                f"data: has PRNG keys, {leaf.dtype}, which the host cannot keep; hand "
                "over jax.random.key_data of them, and let loss_fn take "
                "jax.random.wrap_key_data"
            )
    return jax.tree.map(np.asarray, data)


def require_finite(data: Any, name: str) -> None:
    """Raise for entries that are not finite; arrays of the host are looked at there."""
    names, leaves = trees.paths(data), jax.tree.leaves(data)
    pairs = zip(names, leaves, strict=True)
    bad = [(path, x) for path, x in pairs if not _is_finite(x)]
    found = [jnp.asarray(x) for _, x in bad]
    trees.require_finite([path for path, _ in bad], found, name)


def _is_finite(array: Any) -> bool:
    """Tell at once for arrays of NumPy; others are looked at together."""
    if not isinstance(array, np.ndarray):
        return False
    if array.dtype.kind not in "fc":
        return array.dtype.kind in "iub"
    return all(np.isfinite(part).all() for part in _parts(array))


def _parts(array: Any) -> Iterator:
    """Cut an array that may be too large for memory along its first axis."""
    rows = np.shape(array)[0] if np.ndim(array) else 0
    step = max(1, rows * _BYTES // max(1, array.nbytes))
    if not rows:
        yield array
    for i in range(0, rows, step):
        yield array[i : i + step]
