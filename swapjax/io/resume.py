"""The state file that an interrupted run continues from, and what identifies a run."""

import hashlib
import json
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from swapjax.core import trees
from swapjax.core.types import Params
from swapjax.io import checkpoint


class State(NamedTuple):
    """What a file of a run holds.

    Attributes:
        trees: of arrays, by name.
        notes: whatever JSON takes, by name.
    """

    trees: dict[str, Any]
    notes: dict[str, Any]


_FORMAT = "2"  # 1, of swapjax 0.1, told no format and other plans


def fingerprint(
    params: Params, key: jax.Array | None, **settings: Any
) -> dict[str, str]:
    """Tell runs apart: by their settings, their key, and every bit of their params."""
    seed = None if key is None else np.asarray(jax.random.key_data(key)).tolist()
    settings |= {"params": digest(params), "key": seed}
    return {name: str(value) for name, value in settings.items()}


def digest(tree: Any) -> str:
    """Tell trees of arrays apart, by paths, dtypes, shapes and every bit."""
    result = hashlib.sha256()
    for path, leaf in zip(trees.paths(tree), jax.tree.leaves(tree), strict=True):
        array = np.ascontiguousarray(_bits(leaf))
        result.update(f"{path} {array.dtype} {array.shape}".encode())
        result.update(array.tobytes())
    return result.hexdigest()[:16]


def describe_code(identity: Any) -> str:
    """Tell functions of a user's apart by their code, as far as it goes.

    Args:
        identity: a function, its code, or anything else.

    Returns:
        A short text: the same for the same code, constants and values of simple kinds
        that it closes over; empty for functions of swapjax, which settings tell apart.
    """
    code = getattr(identity, "__code__", identity)
    file = getattr(code, "co_filename", "")
    if Path(file).is_relative_to(Path(__file__).parents[1]):
        return ""
    cells = getattr(identity, "__closure__", None) or ()
    simple = (bool, int, float, str, bytes, tuple, type(None))
    values = [c.cell_contents for c in cells]
    told = [v if isinstance(v, simple) else type(v).__name__ for v in values]
    text = f"{_code(code)} {told} {getattr(identity, '__defaults__', None)}"
    return f", code {hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _code(code: Any) -> str:
    """Write out compiled code, that of functions inside it included."""
    if not isinstance(code, types.CodeType):
        return type(code).__name__
    constants = [
        _code(c) if isinstance(c, types.CodeType) else repr(c) for c in code.co_consts
    ]
    return f"{code.co_code.hex()} {code.co_names} {constants}"


def require_room(path: str | Path) -> None:
    """Raise where no state can be kept.

    Raises:
        ValueError: for a file in no folder, and in a run of several processes.
    """
    if jax.process_count() > 1:
        raise ValueError("checkpoint: runs of several processes keep none yet")
    if not Path(path).parent.is_dir():
        raise ValueError(f"checkpoint: {Path(path).parent} is not a folder")


def save(path: str | Path, state: State, run: dict[str, str], kind: str) -> None:
    """Write the state, whole or not at all.

    Args:
        path: the file.
        state: what to keep.
        run: from `fingerprint`.
        kind: what the run is one of, as in ``"stages"``.
    """
    metadata = {name: json.dumps(note) for name, note in state.notes.items()}
    metadata |= {"run": json.dumps(run), "kind": kind, "format": _FORMAT}
    checkpoint.save_params(path, jax.tree.map(_bits, state.trees), metadata)


def load(
    path: str | Path, like: Mapping[str, Any], run: dict[str, str], kind: str
) -> State | None:
    """Read the state of a run, None where there is no file yet.

    Args:
        path: the file.
        like: by the names of the trees in the file, trees of their structure.
        run: from `fingerprint`.
        kind: what the run is one of.

    Raises:
        ValueError: for a file that cannot be read or is no such state, the state of a
            run of another version of swapjax, and that of a run with other arguments,
            naming them.
    """
    if not Path(path).exists():
        return None
    arrays, metadata = checkpoint.read(path)
    if "run" not in metadata or metadata.pop("kind", kind) != kind:
        raise ValueError(f"checkpoint: {path} is not the state of a run of {kind}")
    if metadata.pop("format", "1") != _FORMAT:
        raise ValueError(
            f"checkpoint: {path} was written by another version of swapjax, whose runs "
            "this one cannot continue; remove it to start anew"
        )
    other = json.loads(metadata.pop("run"))
    different = [k for k in run if run[k] != other.get(k)]
    if different:
        what = "; ".join(_difference(k, other.get(k), run[k]) for k in different)
        raise ValueError(
            f"checkpoint: {path} belongs to another run ({what}); remove it to start "
            "anew"
        )
    notes = {name: json.loads(note) for name, note in metadata.items()}
    return State({k: _rebuild(k, tree, arrays) for k, tree in like.items()}, notes)


def _rebuild(name: str, like: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """Rebuild a tree from the arrays of a file."""
    leaves = []
    for path, leaf in zip(trees.paths(like), jax.tree.leaves(like), strict=True):
        bits = jnp.asarray(arrays[f"{name}/{path}" if path else name])
        if _is_key(leaf):
            bits = jax.random.wrap_key_data(bits, impl=jax.random.key_impl(leaf))
        leaves.append(bits)
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _bits(leaf: Any) -> Any:
    """Return what a file can hold of an array: the data of a key, or itself."""
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(
        leaf.dtype, jax.dtypes.prng_key
    )


def _difference(name: str, before: str | None, now: str) -> str:
    if max(len(str(before)), len(now)) > 60:
        return f"{name} differs"
    return f"{name} was {before}, is {now}"
