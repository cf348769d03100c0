"""What steps take their examples from: arrays on the device, on the host, or batches.

All come as arrays on the device and an index into them, ``int32[steps, batch]``, so
that the steps are the same program, and end the same to the last bit.
"""

import math
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from swapjax.loops import steps

Fed = tuple[Any, jax.Array]

_BYTES = 2**27  # of examples that are sent at a time
_BATCHES = 10  # of a stream at a time: the next wait until these are there
_SHARE = 0.5  # of a device's memory that arrays may take to stay there


def from_device(
    data: Any, key: jax.Array, batch: int, first: int, last: int, replays: int = 1
) -> Iterator[Fed]:
    """Feed batches of arrays on the device; see `steps.indices`."""
    for index in steps.indices(key, data, batch, first, last, replays=replays):
        yield data, index


def from_host(
    data: Any, key: jax.Array, batch: int, first: int, last: int, replays: int = 1
) -> Iterator[Fed]:
    """Feed the same batches of arrays that stay on the host, some at a time."""
    examples = len(jax.tree.leaves(data)[0])
    each = batch * math.ceil(sum(x.nbytes for x in jax.tree.leaves(data)) / examples)
    most = max(1, _BYTES // max(1, each))
    for index in steps.indices(key, data, batch, first, last, most=most):
        rows = np.asarray(index).ravel()
        # In order, as files are read best, and back on the device.
        order = np.argsort(rows, kind="stable")
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        part = jax.tree.map(lambda x, r=rows[order]: jnp.asarray(x[r]), data)
        yield part, _repeat(place.reshape(index.shape), replays)


def from_batches(batches: Iterable, replays: int = 1) -> Iterator[Fed]:
    """Feed batches of arrays as they come; those of one size together."""
    group: list[Any] = []
    for batch in batches:
        size = _size(batch)
        full = len(group) >= _BATCHES or len(group) * _bytes(batch) >= _BYTES
        if group and (full or size != _size(group[0])):
            yield _join(group, replays)
            group = []
        group.append(batch)
    if group:
        yield _join(group, replays)


def stays_on_host(data: Any, asked: bool | None) -> bool:
    """Decide whether arrays stay on the host.

    Args:
        data: arrays of NumPy and of JAX.
        asked: what the user says; None to go by their size and the device's memory,
            where that is known.

    Raises:
        ValueError: for arrays of JAX that are to stay there.
    """
    leaves = jax.tree.leaves(data)
    own = all(isinstance(x, np.ndarray) for x in leaves)
    if asked and not own:
        raise ValueError("on_host: arrays of NumPy can stay on the host, not of JAX")
    if asked is not None or not own:
        return bool(asked)
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit", math.inf)
    return sum(x.nbytes for x in leaves) > _SHARE * limit


def _join(group: list[Any], replays: int) -> Fed:
    """Lay batches end to end on the device."""
    size = _size(group[0])

    def lay(*parts: Any) -> jax.Array:
        if all(isinstance(x, np.ndarray) for x in parts):
            return jnp.asarray(np.concatenate(parts))
        return jnp.concatenate([jnp.asarray(x) for x in parts])

    index = np.arange(len(group) * size).reshape(len(group), size)
    return jax.tree.map(lay, *group), _repeat(index, replays)


def _repeat(index: np.ndarray, replays: int) -> jax.Array:
    return jnp.asarray(np.repeat(index, replays, axis=0).astype(np.int32))


def _size(batch: Any) -> int:
    return len(jax.tree.leaves(batch)[0])


def _bytes(batch: Any) -> int:
    return sum(x.nbytes for x in jax.tree.leaves(batch))
