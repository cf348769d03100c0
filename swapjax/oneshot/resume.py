"""The state of a run of stages, kept in one file so that it can go on later."""

import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from swapjax import checkpoint, trees
from swapjax.oneshot.history import Saved, Stage
from swapjax.types import Params


def fingerprint(params: Params, key: jax.Array, **settings: Any) -> dict[str, str]:
    """Tell runs apart: by their settings, their key, and every bit of their params."""
    seed = np.asarray(jax.random.key_data(key)).tolist()
    settings |= {"params": digest(params), "key": seed}
    return {name: str(value) for name, value in settings.items()}


def digest(tree: Any) -> str:
    """Tell trees of arrays apart, by paths, dtypes, shapes and every bit."""
    result = hashlib.sha256()
    for path, leaf in zip(trees.paths(tree), jax.tree.leaves(tree), strict=True):
        array = np.ascontiguousarray(leaf)
        result.update(f"{path} {array.dtype} {array.shape}".encode())
        result.update(array.tobytes())
    return result.hexdigest()[:16]


def save(path: str | Path, state: Saved, run: dict[str, str]) -> None:
    """Write the state, whole or not at all."""
    metadata = {
        "run": json.dumps(run),
        "history": json.dumps([stage.to_dict() for stage in state.history]),
        "batches": str(state.batches),
    }
    tree = {"params": state.params, "masks": state.masks}
    checkpoint.save_params(path, tree, metadata)


def load(path: str | Path, params: Params, run: dict[str, str]) -> Saved | None:
    """Read the state of a run, None where there is no file yet.

    Raises:
        ValueError: for the state of a run with other arguments, naming them.
    """
    if not Path(path).exists():
        return None
    arrays, metadata = checkpoint.read(path)
    if "run" not in metadata:
        raise ValueError(f"checkpoint: {path} is not the state of a run of stages")
    other = json.loads(metadata["run"])
    different = [k for k in run if run[k] != other.get(k)]
    if different:
        what = "; ".join(_difference(k, other.get(k), run[k]) for k in different)
        raise ValueError(
            f"checkpoint: {path} belongs to another run ({what}); remove it to start "
            "anew"
        )
    names = trees.paths(params)
    structure = jax.tree.structure(params)

    def as_tree(kind: str) -> Params:
        leaves = [jnp.asarray(arrays[f"{kind}/{name}"]) for name in names]
        return jax.tree.unflatten(structure, leaves)

    history = tuple(Stage.from_dict(s) for s in json.loads(metadata["history"]))
    return Saved(as_tree("params"), as_tree("masks"), history, int(metadata["batches"]))


def _difference(name: str, before: str | None, now: str) -> str:
    if max(len(str(before)), len(now)) > 60:
        return f"{name} differs"
    return f"{name} was {before}, is {now}"
