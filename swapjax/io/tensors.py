"""Named arrays in safetensors files, with a digest of all that is in them."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
        arrays: by name; float64 becomes float32 unless x64 is enabled.
        metadata: strings by name.

    Raises:
        ValueError: for an array of a dtype that such a file cannot hold.
    """
    host = {name: np.asarray(jnp.asarray(array)) for name, array in arrays.items()}
    for name, array in host.items():
        if array.dtype not in _NAMES:
            raise ValueError(
                f"{printable(path)}: {printable(name)} is of {array.dtype}, which "
                "safetensors files do not hold"
            )
    told = {**metadata, _DIGEST: _digest(host, metadata)}
    files.write_atomically(
        path, lambda p: safetensors.numpy.save_file(host, p, metadata=told)
    )


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
