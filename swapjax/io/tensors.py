"""Named arrays in safetensors files, with a digest of all that is in them."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from swapjax.core import files
from swapjax.core.text import printable, reason

_OURS = "swapjax."  # how the metadata begin that are not the user's
_DIGEST = "swapjax.sha256"
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
_NAMES = {np.dtype(dtype) for dtype in _DTYPES.values()}


def write(
    path: str | Path, arrays: Mapping[str, Any], metadata: Mapping[str, str]
) -> None:
    """Write arrays and strings, whole or not at all.

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
    told = {**metadata, _DIGEST: _digest(host, metadata)}
    # Not save_file, which has a temporary file of its own that nobody would remove.
    content = _in_order(safetensors.numpy.save(host, metadata=told))
    files.write_atomically(path, lambda p: p.write_bytes(content))


def _in_order(content: bytes) -> bytes:
    """Sort the metadata of a file, which the library writes in any order.

    The same arrays make the same bytes then.
    """
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at multiples of 8
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


def read(
    path: str | Path, ours: tuple[str, ...] = ()
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Read every array, and the strings beside them.

    Args:
        path: the file.
        ours: the names of metadata that begin as those of swapjax do and are known.

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
            header = json.loads(file.read(length), object_pairs_hook=_distinct)
            metadata = header.pop("__metadata__", None) or {}
            arrays = {}
            for name, told in header.items():
                file.seek(8 + length + told["data_offsets"][0])
                arrays[name] = _read_tensor(file, name, told)
        digest = metadata.pop(_DIGEST, None)
        if digest is not None and digest != _digest(arrays, metadata):
            raise ValueError("it differs from what was written to it")
        unknown = [k for k in metadata if k.startswith(_OURS) and k not in ours]
        if unknown:
            raise ValueError(f"it tells of {', '.join(unknown)}, which is not known")
    except Exception as e:  # JSON and the library raise many kinds for damage
        raise ValueError(
            f"{printable(path)}: not a readable safetensors file: {reason(e)}"
        ) from None
    return arrays, metadata


def _read_tensor(file: Any, name: str, told: Mapping[str, Any]) -> np.ndarray:
    if told["dtype"] not in _DTYPES:
        raise ValueError(f"{name} is of {told['dtype']}, which is not read")
    dtype = np.dtype(_DTYPES[told["dtype"]])
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
        result.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return result.hexdigest()


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("it holds a name twice")
    return found
