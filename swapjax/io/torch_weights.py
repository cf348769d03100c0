"""Weights of PyTorch networks: their names, layouts and files.

PyTorch keeps kernels of convolutions as [out, in, h, w], Flax as [h, w, in, out]. Those
of transposed convolutions PyTorch keeps as [in, out, h, w], and Flax's run the other
way: [h, w, in, out] with h and w reversed. With as many channels in as out the two
cannot be told apart by shape. Where the caller does not say, the layer's name must:
``up``, ``deconv1``, ``conv_transpose`` are taken for transposed ones, with a warning,
``conv2`` and ``downsample.0`` for convolutions unless they lie in what is called so or
in a decoder. Others are refused. With other numbers in and out the shape tells, with a
warning too, unless the name is that of a convolution.
"""

import os
import re
import warnings
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from swapjax.core.text import printable, reason

# What PyTorch calls a leaf, and what it may be called here.
_LEAVES = {
    "weight": ("kernel", "scale", "embedding", "weight"),
    "running_mean": ("mean", "running_mean"),
    "running_var": ("var", "running_var"),
}
# What torch.compile and DataParallel put into names.
_WRAPPERS = {"_orig_mod", "module"}
# MobileNetV1 is commonly written as one sequence of sequences.
_SEQUENCES = {"0": "conv1", "1": "bn1", "3": "conv2", "4": "bn2"}
_SEQUENCE = re.compile(r"^model/(\d+)/([0134])/")
_COMPUTED = re.compile(r"parametrizations[./]|[./]weight_[guv]$|^weight_[guv]$")
# Not input_conv, groupconv, conv_type.
_TRANSPOSED = re.compile(
    r"deconv|(?<![a-z])(up|t|trans)_?conv|transpose|conv_?t(r|rans)?(?![a-z])|upsampl"
    r"|^up_?\d*$",
    re.I,
)
_CONVOLUTION = re.compile(r"conv|down_?sampl|shortcut", re.I)
_AMONG_TRANSPOSED = re.compile(
    r"deconv|transpos|upsampl|(?<![a-z])up|decod|generat", re.I
)


def rename(
    source: str,
    arrays: Mapping[str, np.ndarray],
    wanted: Mapping[str, tuple[int, ...]],
    flattened: Mapping[str, tuple[int, int, int]] | None = None,
    transposed: Collection[str] | None = None,
) -> dict[str, np.ndarray]:
    """Give PyTorch's arrays the paths and layouts that they have here.

    Dense weights [out, in] become [in, out], those of convolutions [out, in, h, w]
    become [h, w, in, out]. Weights that PyTorch prunes are multiplied by their masks,
    counts of batches are dropped, they serve training only.

    Args:
        source: of the arrays, the start of a sentence.
        arrays: by PyTorch's names; those under the paths wanted stay as they are.
        wanted: shapes of leaves by their paths here.
        flattened: the shape [h, w, c] that a dense layer reads flattened, by the path
            of its kernel; PyTorch lays it out as [c, h, w].
        transposed: paths of kernels of transposed convolutions; None where it is not
            known.

    Returns:
        Arrays by path. A name that fits no leaf stays, for the caller to complain of.

    Raises:
        ValueError: for two arrays of one leaf, weights that PyTorch computes from
            others, and kernels that may be of a convolution or of a transposed one.
    """
    strange = [path for path in transposed or () if path not in wanted]
    if strange:
        raise ValueError(f"transposed: {printable(', '.join(strange))} is no leaf")
    result: dict[str, np.ndarray] = {}
    origin: dict[str, str] = {}
    for name, array in _pruned(source, arrays, wanted).items():
        path = _find(name, wanted)
        if path not in wanted and path.endswith("num_batches_tracked"):
            continue
        if path in result:
            raise ValueError(
                f"{source}: {printable(origin[path])} and {printable(name)} are both "
                f"{printable(path)}"
            )
        theirs = name.endswith("weight") and path.endswith("kernel")
        if theirs and path in wanted:
            shape = (flattened or {}).get(path)
            if array.ndim > 2:
                array = _convolution(
                    source, name, array, path, wanted[path], transposed
                )
            elif array.ndim == 2:
                array = _dense(array, shape)
        result[path], origin[path] = array, name
    return result


def to_arrays(
    tensors: Mapping[str, Any], source: str = "state dict"
) -> dict[str, np.ndarray]:
    """Make NumPy arrays of a state dict, or of what it is wrapped in.

    Args:
        tensors: by name.
        source: of them, the start of a sentence.

    Raises:
        ValueError: for names that are no strings, and values that are no arrays.
    """
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(tensors.get(key), Mapping):
            tensors = tensors[key]
    return {name: _to_array(source, name, value) for name, value in tensors.items()}


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
            f"{printable(path)}: .pt files need PyTorch to be read; pip install "
            "torch, or save the state dict as .safetensors"
        ) from None
    if not os.path.isfile(path):
        raise ValueError(f"{printable(path)}: no such file")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # PyTorch raises many kinds for a damaged file
        raise ValueError(
            f"{printable(path)}: not a readable PyTorch file: {reason(e)}"
        ) from None
    if not isinstance(found, Mapping):
        raise ValueError(
            f"{printable(path)}: holds a {type(found).__name__}, not a state dict"
        )
    return to_arrays(found, printable(path))


def _pruned(
    source: str, arrays: Mapping[str, np.ndarray], wanted: Collection[str]
) -> dict[str, np.ndarray]:
    """Multiply what torch.nn.utils.prune took apart; refuse what others did."""
    result = dict(arrays)
    for name in arrays:
        if name in wanted or _find(name, wanted) in wanted:
            continue
        stem, mask = name.removesuffix("_orig"), name.removesuffix("_orig") + "_mask"
        pruned = stem != name and mask in arrays
        if _COMPUTED.search(name) or (name.endswith("weight_orig") and not pruned):
            raise ValueError(
                f"{source}: {printable(name)} is a part of a weight that PyTorch "
                "computes; take the parametrization or the norm off before saving"
            )
        if not pruned:
            continue
        if stem in arrays:
            raise ValueError(
                f"{source}: {printable(stem)} and its _orig are both there"
            )
        if arrays[mask].shape != arrays[name].shape or not np.all(
            np.isin(arrays[mask], (0, 1))
        ):
            raise ValueError(
                f"{source}: {printable(mask)} is no mask of {arrays[name].shape}"
            )
        del result[mask]
        kept = arrays[mask].astype(bool)
        value = result.pop(name)
        result[stem] = np.where(kept, value, np.zeros((), value.dtype))
    return result


def _find(name: str, wanted: Collection[str]) -> str:
    """Find the leaf that a name of PyTorch's is for; without one, name it our way."""
    if name in wanted:
        return name
    paths = list(_paths(name))
    for path in paths:
        stem, slash, kind = path.rpartition("/")
        for leaf in _LEAVES.get(kind, (kind,)):
            if f"{stem}{slash}{leaf}" in wanted:
                return f"{stem}{slash}{leaf}"
    return paths[1]


def _paths(name: str) -> Iterator[str]:
    """List the paths a name may have here, the likeliest first."""
    parts = name.replace(".", "/").split("/")
    yield "/".join(parts)
    bare = [part for part in parts[:-1] if part not in _WRAPPERS] + parts[-1:]
    path = "/".join(bare)
    yield path
    yield _SEQUENCE.sub(_out_of_sequence, path)
    yield path.removeprefix("model/")


def _out_of_sequence(match: re.Match) -> str:
    number, layer = int(match[1]), _SEQUENCES[match[2]]
    return f"{layer}/" if number == 0 else f"blocks/{number - 1}/{layer}/"


def _dense(array: np.ndarray, shape: tuple[int, int, int] | None) -> np.ndarray:
    outputs = array.shape[0]
    if shape is None or array.shape[1] != np.prod(shape):
        return array.T
    height, width, channels = shape
    array = array.reshape(outputs, channels, height, width)
    return array.transpose(2, 3, 1, 0).reshape(-1, outputs)


def _convolution(
    source: str,
    name: str,
    array: np.ndarray,
    path: str,
    wanted: tuple[int, ...],
    transposed: Collection[str] | None,
) -> np.ndarray:
    """Lay out the kernel of a convolution, or of a transposed one."""
    spatial = range(2, array.ndim)
    plain = array.transpose(*spatial, 1, 0)
    turned = np.flip(array.transpose(*spatial, 0, 1), tuple(range(array.ndim - 2)))
    if transposed is not None:
        return turned if path in transposed else plain
    fits, turned_fits = plain.shape == wanted, turned.shape == wanted
    says, told = _says(name), f"{source}: {printable(name)} "
    if turned_fits and (says or (says is None and not fits)):
        if fits or not says:
            warnings.warn(
                f"{told}is taken for the kernel of a transposed convolution by its "
                f"{'name' if says else 'shape'}; the argument transposed settles it",
                stacklevel=5,
            )
        return turned
    if turned_fits and not fits:
        raise ValueError(
            f"{told}has the shape of a transposed convolution's kernel; if it is one, "
            f"say transposed=[{path!r}]"
        )
    # A kernel of Flax's transpose_kernel=True is laid out as of a convolution.
    if fits and turned_fits and says is None and not np.array_equal(plain, turned):
        raise ValueError(
            f"{told}may be the kernel of a convolution or of a transposed one; say "
            f"transposed=[{path!r}] if it is of a transposed one, transposed=() if "
            "none of the network is"
        )
    return plain


def _says(name: str) -> bool | None:
    """Whether a name is one of a transposed convolution; None where it is silent."""
    *around, layer, _ = ["", *re.split(r"[./]", name)]
    if _TRANSPOSED.search(layer):
        return True
    if any(_AMONG_TRANSPOSED.search(part) for part in (*around, layer)):
        return None
    is_plain = any(_CONVOLUTION.search(part) for part in (*around[-1:], layer))
    return False if is_plain else None


def _to_array(source: str, name: Any, value: Any) -> np.ndarray:
    if not isinstance(name, str):
        raise ValueError(f"{source}: {printable(repr(name))} is a name, not a string")
    what = f"{source}: {printable(name)}"
    try:
        if hasattr(value, "detach"):
            value = value.detach().cpu()
            if value.is_floating_point() and value.element_size() < 4:
                value = value.float()  # of the kinds that NumPy has not
            value = value.numpy()
        array = np.asarray(value)
    except Exception as e:  # PyTorch has many kinds of tensors that are no arrays
        raise ValueError(f"{what}: is no array: {reason(e)}") from None
    if array.dtype.kind in "OUS":
        raise ValueError(f"{what}: is a {type(value).__name__}, not an array")
    return array
