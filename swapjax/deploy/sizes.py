"""How large params are: in memory, packed by their zeros, and compressed."""

import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from swapjax.core import keys

_CHUNK = 2**22  # bytes that are compressed at a time


class Size(NamedTuple):
    """How large some arrays are.

    Attributes:
        entries: of all arrays.
        nonzeros: those that are not zero.
        bytes: of the arrays, in memory and in a safetensors file, less its header.
        packed: bytes with a bit for each entry of what has zeros, and its nonzeros.
        deflated: bytes after zlib, as in a zip or gzip file.
    """

    entries: int
    nonzeros: int
    bytes: int
    packed: int
    deflated: int


def size_of(leaves: Sequence[Any]) -> Size:
    """Measure arrays.

    Args:
        leaves: arrays; what is none counts nothing.
    """
    sizes = [_one(leaf) for leaf in leaves if hasattr(leaf, "dtype")]
    return Size(*map(sum, zip(*sizes, strict=True))) if sizes else Size(0, 0, 0, 0, 0)


def _one(leaf: Any) -> Size:
    array = np.ascontiguousarray(np.asarray(keys.bits(leaf)))
    nonzeros = int(np.count_nonzero(array))
    packed = nonzeros * array.dtype.itemsize + -(-array.size // 8)
    return Size(
        array.size,
        nonzeros,
        array.nbytes,
        min(packed, array.nbytes),
        _deflated(array),
    )


def _deflated(array: np.ndarray) -> int:
    flat = array.reshape(-1).view(np.uint8).data
    packer = zlib.compressobj()
    starts = range(0, len(flat), _CHUNK)
    parts = [len(packer.compress(flat[i : i + _CHUNK])) for i in starts]
    return sum(parts) + len(packer.flush())
