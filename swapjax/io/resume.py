"""The state file that an interrupted run continues from, and what identifies a run.

A state is a safetensors file. Its metadata hold the settings of the run, the versions
that wrote it, notes, and a digest over all of these and every tensor.
"""

import json
import os
import platform
import sys
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
import optax

from swapjax.core import identity, keys, trees
from swapjax.core.checks import take_key
from swapjax.core.text import printable
from swapjax.core.types import Params
from swapjax.io import tensors


class State(NamedTuple):
    """What a file of a run holds.

    Attributes:
        trees: of arrays, by name.
        notes: whatever JSON takes, by name.
    """

    trees: dict[str, Any]
    notes: dict[str, Any]


# 2, of swapjax 0.2, had no digest; 1, of 0.1, told no format and other plans.
_FORMAT = "3"
_OURS = ("run", "made", "kind", "format")  # the rest of metadata are notes
# Settings of JAX with which the same arguments give other numbers.
_FLAGS = (
    "jax_enable_x64",
    "jax_default_matmul_precision",
    "jax_threefry_partitionable",
)
_NO_JIT = "jax_disable_jit"
_NAMED = 5  # names that an error lists
_LONG = 60  # letters of a setting that an error shows


def fingerprint(
    params: Params, key: jax.Array | None, **settings: Any
) -> dict[str, str]:
    """Tell runs apart: by their settings, their key, and every bit of their params.

    Args:
        params: that the run begins with.
        key: of the run.
        settings: texts as they are, all else as `identity.describe` tells it.
    """
    settings |= {"params": identity.digest(params), "key": "none"}
    if key is not None:
        kind, seed = take_key(key)
        settings |= {"key": f"{kind} {seed.tolist()}"}
    settings |= {flag: getattr(jax.config, flag) for flag in _FLAGS}
    return {
        name: identity.without_addresses(
            value if isinstance(value, str) else identity.describe(value)
        )
        for name, value in settings.items()
    }


def require_room(path: str | Path) -> None:
    """Raise where no state can be kept.

    Raises:
        ValueError: for a file in no folder or one that cannot be written to, a name
            that cannot be one, and in a run of several processes.
    """
    if jax.process_count() > 1:
        raise ValueError("checkpoint: runs of several processes keep none yet")
    folder = Path(os.path.realpath(path)).parent
    try:
        os.stat(path)
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as e:
        reason = getattr(e, "strerror", None) or str(e)
        raise ValueError(f"checkpoint: {printable(path)}: {reason}") from None
    if not folder.is_dir():
        raise ValueError(f"checkpoint: {printable(folder)} is not a folder")
    if Path(path).is_dir():
        raise ValueError(f"checkpoint: {printable(path)} is a folder, not a file")
    if not os.access(folder, os.W_OK):
        raise ValueError(f"checkpoint: {printable(folder)} cannot be written to")


def save(path: str | Path, state: State, run: dict[str, str], kind: str) -> None:
    """Write the state, whole or not at all.

    Args:
        path: the file.
        state: what to keep.
        run: from `fingerprint`.
        kind: what the run is one of, as in ``"stages"``.
    """
    metadata = {name: json.dumps(note) for name, note in state.notes.items()}
    metadata |= told(run, kind)
    arrays: dict[str, Any] = {}
    for name, leaf in _named(state.trees):
        if name in arrays:
            raise ValueError(f"checkpoint: two leaves have the path {_shown(name)}")
        arrays[name] = keys.bits(leaf)
    tensors.write(path, arrays, metadata)


def told(run: dict[str, str], kind: str, form: str = _FORMAT) -> dict[str, str]:
    """Tell in metadata which run a file belongs to, and what wrote it.

    Args:
        run: from `fingerprint`.
        kind: what the run is one of.
        form: the format of the file.
    """
    made = json.dumps(_versions())
    return {"run": json.dumps(run), "kind": kind, "format": form, "made": made}


def require_run(
    path: str | Path,
    metadata: Mapping[str, str],
    run: dict[str, str],
    kind: str,
    form: str = _FORMAT,
) -> None:
    """Raise unless the metadata of a file tell of this run; see `told`.

    Raises:
        ValueError: for a file of another kind or format, and that of a run with other
            arguments, naming them.
    """
    if "run" not in metadata or metadata.get("kind", kind) != kind:
        raise ValueError(
            f"checkpoint: {printable(path)} is not the state of a run of {kind}"
        )
    if metadata.get("format", "1") != form:
        raise ValueError(
            f"checkpoint: {printable(path)} was written by another version of swapjax, "
            "whose runs this one cannot continue; remove it to start anew"
        )
    _require_same(path, metadata, run)


def load(
    path: str | Path, like: Mapping[str, Any], run: dict[str, str], kind: str
) -> State | None:
    """Read the state of a run, None where there is no file yet.

    It warns where other versions of Python or JAX, or another kind of device, wrote the
    file: code is not compared then, and the last bits may differ.

    Args:
        path: the file.
        like: by the names of the trees in the file, trees of their structure, shapes
            and dtypes.
        run: from `fingerprint`.
        kind: what the run is one of.

    Raises:
        ValueError: for a file that cannot be read, is damaged or is no such state, the
            state of a run of another version of swapjax, and that of a run with other
            arguments, naming them.
    """
    if not Path(path).exists():
        return None
    if not Path(path).is_file():
        raise ValueError(f"checkpoint: {printable(path)} is no file")
    # Formats of before had no digest; they are told as what they are.
    arrays, metadata = tensors.read(
        path, sealed=lambda metadata: metadata.get("format") == _FORMAT
    )
    require_run(path, metadata, run, kind)
    _require_arrays(path, arrays, like)
    return State(
        {name: _rebuild(name, tree, arrays) for name, tree in like.items()},
        {k: _parse(path, k, v) for k, v in metadata.items() if k not in _OURS},
    )


def refuse(path: str | Path, why: str) -> NoReturn:
    """Raise for a state that no run goes on from.

    Args:
        path: of its file.
        why: as in ``"holds no masks"``.

    Raises:
        ValueError: always.
    """
    raise ValueError(f"checkpoint: {printable(path)} {why}; remove it to start anew")


def _versions() -> dict[str, str]:
    """Tell what the last bits of results depend on, and what code is compared by."""
    return {
        "Python": ".".join(platform.python_version_tuple()[:2]),
        "JAX": jax.__version__,
        "optax": optax.__version__,
        "device": jax.default_backend(),
        "mode": f"{sys.flags.optimize} {getattr(jax.config, _NO_JIT)}",
    }


def _require_same(
    path: str | Path, metadata: Mapping[str, str], run: dict[str, str]
) -> None:
    """Raise for another run, and warn of the same one under other versions."""
    before, made = (_texts(path, metadata, name) for name in ("run", "made"))
    now = _versions()
    told = {k: identity.without_code(v) for k, v in run.items()}
    if made == now:
        compared, there = run, before
    else:
        compared = told
        there = {k: identity.without_code(v) for k, v in before.items()}
    different = [k for k in compared if compared[k] != there.get(k)]
    what = [_difference(k, there.get(k), compared[k]) for k in different]
    what += [f"{_shown(k)} is not known here" for k in there if k not in compared]
    if what:
        refuse(path, f"belongs to another run ({'; '.join(what)})")
    moved = [
        f"{name} {_shown(made.get(name, 'unknown'))}, now {now[name]}"
        for name in now
        if made.get(name) != now[name] and name != "mode"
    ]
    if moved:
        warnings.warn(
            f"checkpoint: {printable(path)} was written with {'; '.join(moved)}: the "
            "run goes on, code is not compared, and the last bits may differ",
            stacklevel=6,
        )


def _require_arrays(
    path: str | Path, arrays: Mapping[str, np.ndarray], like: Mapping[str, Any]
) -> None:
    """Raise for tensors that are missing, too many, or not as those of the run."""
    wanted = dict(_named(like))
    missing = [name for name in wanted if name not in arrays]
    extra = [name for name in arrays if name not in wanted]
    for names, what in ((missing, "lacks"), (extra, "holds besides its own")):
        if names:
            refuse(path, f"{what} {_list(names)}")
    for name, leaf in wanted.items():
        bits = jax.eval_shape(jnp.asarray, keys.bits(leaf))
        got = arrays[name]
        if (got.shape, got.dtype) != (bits.shape, bits.dtype):
            refuse(
                path,
                f"holds {_shown(name)} as {got.dtype} of shape {got.shape}, wanted "
                f"{bits.dtype} of shape {bits.shape}",
            )


def _parse(path: str | Path, name: str, text: str) -> Any:
    """Read what JSON wrote of a note."""
    try:
        return json.loads(text, object_pairs_hook=tensors.distinct)
    except (ValueError, RecursionError):
        refuse(path, f"holds what is no JSON as {_shown(name)}")


def _texts(path: str | Path, metadata: Mapping[str, str], name: str) -> dict[str, str]:
    """Read a note that names texts."""
    found = _parse(path, name, metadata.get(name, ""))
    if not isinstance(found, dict) or not all(
        isinstance(text, str) for text in found.values()
    ):
        refuse(path, f"holds no texts by name as {name!r}")
    return found


def _named(named: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    """Yield the leaves of named trees, each with its name in a file."""
    for name, tree in named.items():
        for path, leaf in zip(trees.paths(tree), jax.tree.leaves(tree), strict=True):
            yield f"{name}/{path}" if path else name, leaf


def _rebuild(name: str, like: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """Rebuild a tree from the arrays of a file."""
    leaves = []
    for path, leaf in _named({name: like}):
        leaves.append(keys.from_bits(jnp.asarray(arrays[path]), leaf))
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _difference(name: str, before: str | None, now: str) -> str:
    if max(len(str(before)), len(now)) > _LONG:
        return f"{name} differs"
    return f"{name} was {_shown(before)}, is {_shown(now)}"


def _list(names: list[str]) -> str:
    """List some names of a file, not all of many."""
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return f"{', '.join(map(_shown, names[:_NAMED]))}{more}"


def _shown(text: str | None) -> str:
    """Show what a file says: one line, not too long."""
    shown = printable(text)
    return shown if len(shown) <= _LONG else f"{shown[:_LONG]}..."
