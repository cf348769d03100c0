"""Named arrays in safetensors files, with a digest of all that is in them."""

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors

from swapjax.core import files
from swapjax.core.text import printable, reason

_OURS = "swapjax."  # how the metadata begin that are not the user's
_DIGEST = "swapjax.sha256"
# Says that there is a digest: its own name may be damaged too. Files of swapjax 0.2 and
# of others have neither.
_FORMAT = ("swapjax.format", "1")
_MINI = {
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
}
_DTYPES = {"BF16": jnp.bfloat16, "BOOL": np.bool_, "C64": np.complex64} | {
    f"{kind[0].upper()}{bits}": getattr(np, f"{kind}{bits}")
    for kind, sizes in {
        "float": (16, 32, 64), "int": (8, 16, 32, 64), "uint": (8, 16, 32, 64)
    }.items()
    for bits in sizes
}  # fmt: skip
_DTYPES |= {name: getattr(jnp, kind) for name, kind in _MINI.items()}
_NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}


def write(
    path: str | Path, arrays: Mapping[str, Any], metadata: Mapping[str, str]
) -> None:
    """Write arrays and strings, whole or not at all.

    The same arrays and strings make the same bytes.

    Args:
        path: the file; it is replaced if it exists.
        arrays: by name; those of 64 bits become of 32 unless x64 is enabled.
        metadata: strings by name.

    Raises:
        ValueError: for an array of a dtype or name that such a file cannot hold, and
            whole numbers that do not fit into 32 bits.
    """
    if "__metadata__" in arrays:
        raise ValueError(f"{printable(path)}: a leaf cannot be called __metadata__")
    host = {
        name: _native(f"{printable(path)}: {printable(name)}", np.asarray(array))
        for name, array in arrays.items()
    }
    told = {**metadata, _DIGEST: _digest(host, metadata), _FORMAT[0]: _FORMAT[1]}
    shapes = {name: (array.shape, array.dtype) for name, array in host.items()}
    text, places = header(path, shapes, told)

    def save(path: Path) -> None:
        with path.open("wb") as file:
            file.write(text)
            for name in places:
                file.write(_bytes(host[name]))

    files.write_atomically(path, save)


def header(
    path: str | Path,
    arrays: Mapping[str, tuple[tuple[int, ...], np.dtype]],
    metadata: Mapping[str, str],
) -> tuple[bytes, dict[str, tuple[int, int]]]:
    """Make the bytes that a file begins with, and tell where each array lies after.

    Args:
        path: of the file, for messages.
        arrays: shape and dtype of each, by name.
        metadata: strings by name.

    Returns:
        The bytes; for each array, in the order of the file, where it begins and ends
        behind them.

    Raises:
        ValueError: for an array of a dtype that such a file cannot hold.
    """
    for name, (_, dtype) in arrays.items():
        if dtype not in _NAMES:
            what = f"{printable(path)}: {printable(name)}"
            raise ValueError(f"{what} is of {dtype}, which safetensors do not hold")
    # As the library does: the widest first, so that each begins at its multiple.
    names = sorted(arrays, key=lambda name: (-arrays[name][1].itemsize, name))
    told: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    places, end = {}, 0
    for name in names:
        shape, dtype = arrays[name]
        places[name] = start, end = end, end + math.prod(shape) * dtype.itemsize
        told[name] = {
            "dtype": _NAMES[dtype],
            "shape": shape,
            "data_offsets": [start, end],
        }
    text = json.dumps(told, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, places


def read(
    path: str | Path,
    ours: tuple[str, ...] = (),
    *,
    sealed: Callable[[Mapping[str, str]], bool] = lambda _: False,
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Read every array, and the strings beside them.

    Args:
        path: the file.
        ours: the names of metadata that begin as those of swapjax do and are known.
        sealed: tells by the metadata whether there must be a digest.

    Returns:
        Arrays by name; strings by name, the digest left out.

    Raises:
        ValueError: for a file that is damaged, differs from what was written, or
            holds arrays of a kind that NumPy has not.
    """
    try:
        # It compares lengths and offsets; of the kinds of arrays it knows fewer.
        with safetensors.safe_open(path, framework="numpy"):
            pass
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length), object_pairs_hook=distinct)
            metadata = header.pop("__metadata__", None) or {}
            arrays = {}
            for name, told in header.items():
                file.seek(8 + length + told["data_offsets"][0])
                arrays[name] = _read_tensor(file, name, told)
        digest = metadata.pop(_DIGEST, None)
        known = digest is not None or _FORMAT[0] in metadata or sealed(metadata)
        if metadata.pop(*_FORMAT) != _FORMAT[1]:
            raise ValueError("it was written by a later version of swapjax")
        if known and digest != _digest(arrays, metadata):
            raise ValueError("it differs from what was written to it")
        unknown = [k for k in metadata if k.startswith(_OURS) and k not in ours]
        if unknown:
            raise ValueError(f"it tells of {', '.join(unknown)}, which is not known")
    except Exception as e:  # JSON and the library raise many kinds for damage
        raise ValueError(
            f"{printable(path)}: not a readable safetensors file: {reason(e)}"
        ) from None
    return arrays, metadata


def dtype_of(name: str, told: str) -> np.dtype:
    """Find the dtype of a tensor by what safetensors call it.

    Raises:
        ValueError: for one that NumPy has not.
    """
    if told not in _DTYPES:
        raise ValueError(f"{name} is of {told}, which is not read")
    return np.dtype(_DTYPES[told])


def _read_tensor(file: Any, name: str, told: Mapping[str, Any]) -> np.ndarray:
    dtype = dtype_of(name, told["dtype"])
    start, end = told["data_offsets"]
    raw = np.fromfile(file, np.uint8, end - start)
    if dtype == np.bool_ and raw.size and raw.max() > 1:
        raise ValueError(f"{name} holds bytes other than 0 and 1 as bool")
    return raw.view(dtype).reshape(told["shape"])


def _native(what: str, array: np.ndarray) -> np.ndarray:
    """Give an array the dtype that JAX would, and the order of bytes of files."""
    if array.dtype.newbyteorder("=") not in _NAMES:
        raise ValueError(f"{what} is of {array.dtype}, which safetensors do not hold")
    dtype = jax.dtypes.canonicalize_dtype(array.dtype.newbyteorder("="))
    with np.errstate(over="ignore"):
        result = np.asarray(array, dtype, order="C")
    if dtype.kind in "iu" and not np.array_equal(result, array):
        raise ValueError(f"{what} does not fit into {dtype}; enable x64 to keep it")
    return result


def _digest(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> str:
    result = hashlib.sha256(json.dumps(sorted(metadata.items())).encode())
    for name, array in sorted(arrays.items()):
        result.update(json.dumps([name, array.dtype.name, array.shape]).encode())
        result.update(_bytes(array))
    return result.hexdigest()


def _bytes(array: np.ndarray) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of what JSON holds, whose names must differ.

    Raises:
        ValueError: for a name that is there twice.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("it holds a name twice")
    return found
