"""Weights and masks in files: safetensors, and .npz for reading.

Nothing is ever unpickled. A params file holds one array a leaf under its path, a masks
file one bit an entry. PyTorch's names and layouts (``fc1.weight`` [out, in]) are
understood when reading: see `swapjax.io.torch_weights`.
"""

import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from swapjax.core import holes, keys, trees
from swapjax.core.given_masks import require_bool, require_true, take_masks
from swapjax.core.text import printable, reason
from swapjax.core.types import Masks, Params
from swapjax.io import tensors, torch_weights
from swapjax.io.npz import read_npz as read_npz
from swapjax.sparsity import masks

_PACKED = "swapjax.masks"  # the metadata key under which shapes of masks are kept


def save_params(
    path: str | Path, params: Params, metadata: Mapping[str, str] | None = None
) -> None:
    """Write params to a safetensors file, whole or not at all.

    Args:
        path: the file.
        params: any pytree of arrays; float64 becomes float32 unless x64 is enabled.
            Of PRNG keys the data are kept.
        metadata: strings to keep with them.

    Raises:
        ValueError: for leaves that are no arrays, two of one path, dtypes that such a
            file cannot hold, and metadata whose names begin with ``swapjax.``.
    """
    trees.require_arrays(params, printable(path))
    for name, text in (metadata or {}).items():
        if not (isinstance(name, str) and isinstance(text, str)):
            raise ValueError(f"metadata: {name!r} is {text!r}, strings wanted")
    reserved = [name for name in metadata or {} if name.startswith("swapjax.")]
    if reserved:
        raise ValueError(f"metadata: {', '.join(reserved)} is a name of swapjax's own")
    leaves = {name: _bits(leaf) for name, leaf in trees.by_path(params).items()}
    tensors.write(path, leaves, metadata or {})


def load_params(
    path: str | Path,
    like: Params,
    flattened: Mapping[str, tuple[int, int, int]] | None = None,
    transposed: Collection[str] | None = None,
) -> Params:
    """Read params for a network.

    Args:
        path: a ``.safetensors`` or ``.npz`` file, with the paths of `like` or with
            PyTorch's names and layouts.
        like: a tree with the structure, shapes and dtypes that are wanted.
        flattened: the shape [h, w, c] that a dense layer reads flattened, by the path
            of its kernel; PyTorch's weights of a dense layer after a convolution need
            it.
        transposed: paths of kernels of transposed convolutions, for PyTorch's weights;
            ``()`` says that there are none. PyTorch's and Flax's differ in the order
            of channels and in direction, and where there are as many channels in as
            out no shape tells: without this argument names must, see
            `swapjax.io.torch_weights`. Leave out those of layers with Flax's
            ``transpose_kernel=True``, whose kernels are laid out as of convolutions.

    Returns:
        The tree, with the dtypes of `like`.

    Raises:
        ValueError: for a file that cannot be read, and one whose leaves are missing,
            too many, misshapen, of another kind of numbers, or not finite; every one
            is named. For a kernel of PyTorch's that may be of a convolution or of a
            transposed one.
    """
    arrays, metadata = read(path)
    if _PACKED in metadata:
        raise ValueError(f"{printable(path)}: holds masks, not params")
    return fit(str(path), arrays, like, flattened, transposed)


def fit(
    name: str,
    arrays: Mapping[str, np.ndarray],
    like: Params,
    flattened: Mapping[str, tuple[int, int, int]] | None = None,
    transposed: Collection[str] | None = None,
) -> Params:
    """Put arrays into a tree, by its paths or by PyTorch's names.

    Args:
        name: of where they come from, for what is said of faults.
        arrays: by name.
        like: a tree with the structure, shapes and dtypes that are wanted.
        flattened: as `load_params` takes it.
        transposed: as `load_params` takes it.

    Raises:
        ValueError: as `load_params` does for arrays that do not fit.
    """
    wanted = trees.by_path(like)
    shapes = {path: _shape(leaf) for path, leaf in wanted.items()}
    arrays = torch_weights.rename(
        printable(name), arrays, shapes, flattened, transposed
    )
    found = _match(name, arrays, wanted)
    return jax.tree.unflatten(jax.tree.structure(like), list(found.values()))


def save_masks(path: str | Path, tree: Masks) -> None:
    """Write masks to a safetensors file, eight entries to the byte.

    What `optax.masked` or Equinox has left out of them is never pruned: True.

    Raises:
        ValueError: for leaves that are not bool.
    """
    require_bool(tree)
    leaves = {
        name: np.asarray(True) if leaf is holes.HOLE else np.asarray(leaf)
        for name, leaf in holes.by_path(tree).items()
    }
    shapes = {name: list(np.shape(leaf)) for name, leaf in leaves.items()}
    packed = {name: masks.pack(np.asarray(leaf)) for name, leaf in leaves.items()}
    tensors.write(path, packed, {_PACKED: json.dumps(shapes)})


def load_masks(path: str | Path, like: Params) -> Masks:
    """Read masks for params.

    Returns:
        Masks with the tree of params; a scalar in the file stands for all that is below
        its path.

    Raises:
        ValueError: for a file that cannot be read, and masks of other params.
    """
    arrays, metadata = read(path)
    if _PACKED not in metadata:
        raise ValueError(f"{printable(path)}: holds no masks")
    found = holes.match(arrays, like)
    _require_names(path, found.missing, found.extra)
    beyond = {printable(name): leaf for name, leaf in found.beyond.items()}
    require_true(beyond, printable(path))
    tree = jax.tree.unflatten(jax.tree.structure(like), found.leaves)
    return take_masks(tree, like, printable(path))


def read(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Read every array of a file, masks unpacked.

    Args:
        path: a ``.safetensors`` or ``.npz`` file.

    Returns:
        Arrays by name, and the metadata.

    Raises:
        ValueError: for a file that does not exist, is damaged, differs from what was
            written, or holds pickles.
    """
    path = Path(path)
    if not os.path.isfile(path):  # which no name can make fail
        raise ValueError(f"{printable(path)}: no such file")
    if path.suffix == ".npz":
        return read_npz(path), {}
    if path.suffix in (".pt", ".pth", ".ckpt"):
        raise ValueError(
            f"{printable(path)}: is PyTorch's own kind of file; save the state dict as "
            ".safetensors, or read it with swapjax.io.torch_weights.read"
        )
    arrays, metadata = tensors.read(path, ours=(_PACKED,))
    if _PACKED in metadata:
        try:
            shapes = json.loads(metadata[_PACKED])
            arrays = {k: masks.unpack(v, tuple(shapes[k])) for k, v in arrays.items()}
        except Exception as e:  # what JSON holds may be anything
            raise ValueError(
                f"{printable(path)}: not a readable safetensors file: shapes of its "
                f"masks: {reason(e)}"
            ) from None
    return arrays, metadata


def _match(
    path: str, arrays: Mapping[str, np.ndarray], wanted: Mapping[str, Any]
) -> dict[str, jax.Array]:
    missing = [name for name in wanted if name not in arrays]
    extra = [name for name in arrays if name not in wanted]
    _require_names(path, missing, extra)
    wrong = [
        f"{printable(name)} is {arrays[name].shape}, wanted {_shape(leaf)}"
        for name, leaf in wanted.items()
        if arrays[name].shape != _shape(leaf)
    ]
    if wrong:
        raise ValueError(f"{printable(path)}: {'; '.join(wrong)}")
    found, wrong = {}, []
    for name, leaf in wanted.items():
        native = np.dtype(_bits(leaf).dtype).newbyteorder("=")
        dtype = jax.dtypes.canonicalize_dtype(native)
        data = _cast(arrays[name], dtype)
        if data is None:
            told = f"{arrays[name].dtype}, wanted {dtype}"
            wrong.append(f"{printable(name)} is of {told}")
        else:
            found[name] = keys.from_bits(jnp.asarray(data), leaf)
    if wrong:
        raise ValueError(f"{printable(path)}: {'; '.join(wrong)}")
    trees.require_finite(found, found.values(), printable(path))
    return found


def _cast(array: np.ndarray, dtype: np.dtype) -> np.ndarray | None:
    """Give an array another dtype; None where that is more than rounding.

    Floats take floats and whole numbers, complex numbers take any; all else must come
    through as it was.
    """
    # To NumPy durations are numbers.
    if array.dtype.kind not in "biufc" and not _is(array.dtype, np.floating):
        return None
    array = array.astype(array.dtype.newbyteorder("="))
    if array.dtype == dtype:
        return array
    if _is(array.dtype, np.complexfloating) and not _is(dtype, np.complexfloating):
        return None
    with np.errstate(all="ignore"):  # what is not finite afterwards is told
        result = array.astype(dtype)
        if _is(dtype, np.inexact) and array.dtype != np.bool_:
            return result
        same = np.array_equal(result.astype(array.dtype), array)
    # The largest float is rounded up to what an integer wraps around.
    signs = np.array_equal(result < 0, array < 0)
    return result if same and signs and dtype.kind != "f" else None


def _is(dtype: np.dtype, kind: Any) -> bool:
    return bool(jnp.issubdtype(dtype, kind))  # which knows bfloat16 and float8


def _shape(leaf: Any) -> tuple[int, ...]:
    return tuple(_bits(leaf).shape)


def _bits(leaf: Any) -> Any:
    """Return what a file holds of a leaf: the data of a key, an array of a number."""
    return keys.bits(leaf) if hasattr(leaf, "dtype") else jnp.asarray(leaf)


def _require_names(path: str | Path, missing: list[str], extra: list[str]) -> None:
    faults = []
    if missing:
        faults.append(f"missing {', '.join(map(printable, missing))}")
    if extra:
        faults.append(f"not of this network {', '.join(map(printable, extra))}")
    if faults:
        raise ValueError(f"{printable(path)}: {'; '.join(faults)}")
