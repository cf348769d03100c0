"""Weights and masks in files: safetensors, and .npz for reading.

Nothing is ever unpickled. A params file holds one array a leaf under its path, a masks
file one bit an entry. PyTorch's names and layouts (``fc1.weight`` [out, in]) are
understood when reading: see `swapjax.io.torch_weights`.
"""

import json
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.flax

from swapjax.core import files, holes, trees
from swapjax.core.given_masks import require_bool, require_true, take_masks
from swapjax.core.types import Masks, Params
from swapjax.io import torch_weights
from swapjax.sparsity import masks

# What the standard library raises for an archive that is damaged.
_BROKEN_ZIP = (
    OSError,
    EOFError,
    KeyError,
    NotImplementedError,
    zipfile.BadZipFile,
    zlib.error,
)
_PACKED = "swapjax.masks"  # the metadata key under which shapes of masks are kept


def save_params(
    path: str | Path, params: Params, metadata: Mapping[str, str] | None = None
) -> None:
    """Write params to a safetensors file, whole or not at all.

    Args:
        path: the file.
        params: any pytree of arrays; float64 becomes float32 unless x64 is enabled.
        metadata: strings to keep with them.
    """
    _write(path, _by_path(params), dict(metadata or {}))


def load_params(
    path: str | Path,
    like: Params,
    flattened: Mapping[str, tuple[int, int, int]] | None = None,
) -> Params:
    """Read params for a network.

    Args:
        path: a ``.safetensors`` or ``.npz`` file, with the paths of `like` or with
            PyTorch's names and layouts.
        like: a tree with the structure, shapes and dtypes that are wanted.
        flattened: the shape [h, w, c] that a dense layer reads flattened, by the path
            of its kernel; PyTorch's weights of a dense layer after a convolution need
            it.

    Returns:
        The tree, with the dtypes of `like`.

    Raises:
        ValueError: for a file that cannot be read, and one whose leaves are missing,
            too many, misshapen, or not finite; every one is named.
    """
    arrays, metadata = read(path)
    if _PACKED in metadata:
        raise ValueError(f"{path}: holds masks, not params")
    return fit(str(path), arrays, like, flattened)


def fit(
    name: str,
    arrays: dict[str, np.ndarray],
    like: Params,
    flattened: Mapping[str, tuple[int, int, int]] | None = None,
) -> Params:
    """Put arrays into a tree, by its paths or by PyTorch's names.

    Args:
        name: of where they come from, for what is said of faults.
        arrays: by name.
        like: a tree with the structure, shapes and dtypes that are wanted.
        flattened: as `load_params` takes it.

    Raises:
        ValueError: for leaves that are missing, too many, misshapen, or not finite;
            every one is named.
    """
    wanted = _by_path(like)
    if not set(arrays) & set(wanted):
        arrays = torch_weights.rename(arrays, wanted, flattened)
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
    _write(path, packed, {_PACKED: json.dumps(shapes)})


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
        raise ValueError(f"{path}: holds no masks")
    found = holes.match(arrays, like)
    _require_names(path, found.missing, found.extra)
    require_true(found.beyond, str(path))
    tree = jax.tree.unflatten(jax.tree.structure(like), found.leaves)
    return take_masks(tree, like, str(path))


def read(path: str | Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Read every array of a file, masks unpacked.

    Args:
        path: a ``.safetensors`` or ``.npz`` file.

    Returns:
        Arrays by name, and the metadata.

    Raises:
        ValueError: for a file that does not exist, is truncated, or holds pickles.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    if path.suffix == ".npz":
        return read_npz(path), {}
    try:
        with safetensors.safe_open(path, framework="flax") as f:
            metadata = f.metadata() or {}
            arrays = {name: np.asarray(f.get_tensor(name)) for name in f.keys()}  # noqa: SIM118
        if _PACKED in metadata:
            shapes = json.loads(metadata[_PACKED])
            arrays = {k: masks.unpack(v, tuple(shapes[k])) for k, v in arrays.items()}
    except (safetensors.SafetensorError, OSError, ValueError, KeyError) as e:
        raise ValueError(f"{path}: not a readable safetensors file: {e}") from None
    return arrays, metadata


def read_npz(path: str | Path) -> dict[str, np.ndarray]:
    """Read every array of a .npz file.

    Raises:
        ValueError: for a file that is missing, truncated or holds pickles.
    """
    try:
        with open(path, "rb") as file:
            # NumPy takes whatever is neither .npz nor .npy for a pickle.
            if not zipfile.is_zipfile(file):
                raise ValueError("it is no zip archive")
            file.seek(0)
            with np.load(file, allow_pickle=False) as f:
                return {name: f[name] for name in f.files}
    except _BROKEN_ZIP as e:
        raise ValueError(f"{path}: not a readable .npz file: {e}") from None
    except ValueError as e:
        # NumPy says "allow_pickle=False" here; that is not for the user to change.
        reason = "it holds pickled objects" if "pickle" in str(e) else str(e)
        raise ValueError(f"{path}: not a readable .npz file: {reason}") from None


def _write(path: str | Path, arrays: Mapping[str, Any], metadata: dict) -> None:
    host = {name: jnp.asarray(array) for name, array in arrays.items()}
    files.write_atomically(
        path, lambda p: safetensors.flax.save_file(host, p, metadata=metadata)
    )


def _by_path(tree: Params) -> dict[str, Any]:
    names = trees.paths(tree)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"two leaves of the tree have the path {', '.join(twice)}")
    return dict(zip(names, jax.tree.leaves(tree), strict=True))


def _match(
    path: str, arrays: dict[str, np.ndarray], wanted: dict[str, Any]
) -> dict[str, jax.Array]:
    missing = [name for name in wanted if name not in arrays]
    extra = [name for name in arrays if name not in wanted]
    _require_names(path, missing, extra)
    wrong = [
        f"{name} is {arrays[name].shape}, wanted {tuple(leaf.shape)}"
        for name, leaf in wanted.items()
        if arrays[name].shape != tuple(leaf.shape)
    ]
    if wrong:
        raise ValueError(f"{path}: {'; '.join(wrong)}")
    found = {
        name: jnp.asarray(arrays[name]).astype(leaf.dtype)
        for name, leaf in wanted.items()
    }
    trees.require_finite(found, found.values(), path)
    return found


def _require_names(path: str | Path, missing: list[str], extra: list[str]) -> None:
    faults = []
    if missing:
        faults.append(f"missing {', '.join(missing)}")
    if extra:
        faults.append(f"not of this network {', '.join(extra)}")
    if faults:
        raise ValueError(f"{path}: {'; '.join(faults)}")
