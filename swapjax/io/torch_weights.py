"""Weights of PyTorch networks: their names, layouts and files."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

# What PyTorch calls a leaf of a normalisation layer, and what it is called here.
_STATISTICS = {"running_mean": "mean", "running_var": "var"}
# MobileNetV1 is commonly written as one sequence of sequences.
_SEQUENCES = {"0": "conv1", "1": "bn1", "3": "conv2", "4": "bn2"}
_SEQUENCE = re.compile(r"^model/(\d+)/([0134])/")


def rename(
    arrays: Mapping[str, np.ndarray],
    wanted: Mapping[str, Any],
    flattened: Mapping[str, tuple[int, int, int]] | None = None,
) -> dict[str, np.ndarray]:
    """Give PyTorch's arrays the paths and layouts that they have here.

    Dense weights [out, in] become [in, out], those of convolutions [out, in, h, w]
    become [h, w, in, out]. Counts of batches are dropped, they serve training only.

    Args:
        arrays: by PyTorch's names.
        wanted: leaves by their paths here.
        flattened: the shape [h, w, c] that a dense layer reads flattened, by the path
            of its kernel; PyTorch lays it out as [c, h, w].

    Returns:
        Arrays by path. A name that fits no leaf stays, for the caller to complain of.
    """
    result = {}
    for name, array in arrays.items():
        path = name.removeprefix("module.").replace(".", "/")
        if path.endswith("num_batches_tracked"):
            continue
        path = _SEQUENCE.sub(_out_of_sequence, path)
        stem, _, kind = path.rpartition("/")
        kernel, scale = f"{stem}/kernel".lstrip("/"), f"{stem}/scale".lstrip("/")
        if kind == "weight" and array.ndim >= 2 and kernel in wanted:
            shape = (flattened or {}).get(kernel)
            result[kernel] = _transpose(array, shape)
        elif kind == "weight" and scale in wanted:
            result[scale] = array
        else:
            result[f"{stem}/{_STATISTICS.get(kind, kind)}".lstrip("/")] = array
    return result


def to_arrays(tensors: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """NumPy arrays of a state dict, or of what it is wrapped in."""
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(tensors.get(key), Mapping):
            tensors = tensors[key]
    return {name: _to_array(name, value) for name, value in tensors.items()}


def read(path: Path) -> dict[str, np.ndarray]:
    """Read a ``.pt`` or ``.pth`` file, without unpickling anything but weights.

    Raises:
        ImportError: where PyTorch is not installed.
        ValueError: for a file that is not a state dict, or holds other objects.
    """
    try:
        import torch
    except ImportError:
        raise ImportError(
            f"{path}: .pt files need PyTorch to be read; pip install torch, or save "
            "the state dict as .safetensors"
        ) from None
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # PyTorch raises many kinds for a damaged file
        reason = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise ValueError(f"{path}: not a readable PyTorch file: {reason}") from None
    if not isinstance(found, Mapping):
        raise ValueError(f"{path}: holds a {type(found).__name__}, not a state dict")
    return to_arrays(found)


def _out_of_sequence(match: re.Match) -> str:
    number, layer = int(match[1]), _SEQUENCES[match[2]]
    return f"{layer}/" if number == 0 else f"blocks/{number - 1}/{layer}/"


def _transpose(array: np.ndarray, shape: tuple[int, int, int] | None) -> np.ndarray:
    outputs = array.shape[0]
    if shape is not None and array.ndim == 2 and array.shape[1] == np.prod(shape):
        height, width, channels = shape
        array = array.reshape(outputs, channels, height, width)
        return array.transpose(2, 3, 1, 0).reshape(-1, outputs)
    return array.transpose(*range(2, array.ndim), 1, 0)


def _to_array(name: str, value: Any) -> np.ndarray:
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        if value.is_floating_point():
            value = value.float()
        value = value.numpy()
    array = np.asarray(value)
    if array.dtype.kind in "OUS":
        raise ValueError(f"{name}: is a {type(value).__name__}, not an array")
    return array
