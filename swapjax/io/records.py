"""Records of what a run did, from its file: fields, types and order are checked."""

import dataclasses
import enum
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import jax
import jax.numpy as jnp

from swapjax.core import keys, trees
from swapjax.core.types import Masks, Params
from swapjax.io import resume
from swapjax.sparsity import masks as masking

_Record = TypeVar("_Record")


def read(
    path: str | Path,
    notes: dict[str, Any],
    kind: type[_Record],
    make: Callable[[dict[str, Any]], _Record],
    numbers: Sequence[int],
) -> tuple[_Record, ...]:
    """Read the history of a run.

    Args:
        path: of the file, for errors.
        notes: from `resume.load`.
        kind: a dataclass, whose first field counts the records.
        make: makes one of its fields as JSON has them.
        numbers: of all records of a whole run; a history may end before the last.

    Raises:
        ValueError: for a history that is missing or longer than the run, and records
            of other fields or types, or out of order.
    """
    history = notes.get("history")
    if not isinstance(history, list) or not 0 < len(history) <= len(numbers):
        resume.refuse(path, f"holds no history of 1 to {len(numbers)} records")
    fields = {f.name: f.type for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    hints, first = get_type_hints(kind), next(iter(fields))
    for number, record in zip(numbers, history, strict=False):
        what = f"record {number} of its history"
        if not isinstance(record, dict) or set(record) != set(fields):
            resume.refuse(path, f"has other fields in {what} than {', '.join(fields)}")
        for name, value in record.items():
            if not _fits(value, hints[name]):
                resume.refuse(path, f"has a {name} of the wrong type in {what}")
        if record[first] != number:
            resume.refuse(path, f"has another {first} in {what}")
    return tuple(make(record) for record in history)


def _fits(value: Any, wanted: Any) -> bool:
    """Tell whether what JSON holds is of a type of a dataclass."""
    origin, inside = get_origin(wanted), get_args(wanted)
    if origin in (Union, types.UnionType):
        return any(_fits(value, one) for one in inside)
    if origin is dict:
        return isinstance(value, dict) and all(
            _fits(v, inside[1]) for v in value.values()
        )
    if origin is tuple:
        return (
            isinstance(value, list)
            and len(value) == len(inside)
            and all(map(_fits, value, inside))
        )
    if isinstance(wanted, type) and issubclass(wanted, enum.Enum):
        return value in wanted.__members__ if isinstance(value, str) else False
    return type(value) is wanted


def require_finite(path: str | Path, params: Params) -> None:
    """Raise for params in a file that no run can go on from.

    Raises:
        ValueError: naming the file, for NaN and infinite entries.
    """
    try:
        trees.require_finite(trees.paths(params), jax.tree.leaves(params), "params")
    except ValueError as e:
        resume.refuse(path, f"holds {str(e).removeprefix('params: ')}")


def require_masked(path: str | Path, params: Params, masks: Masks, kept: int) -> None:
    """Raise for masks in a file that are not those of its params and its history.

    Args:
        path: of the file, for errors.
        params: finite, and zero where masks are False.
        masks: with the tree of params.
        kept: the entries that the history tells.

    Raises:
        ValueError: naming the file.
    """
    require_finite(path, params)
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(masks), strict=True)
    loose = sum(
        int(jnp.sum(~m & (p != 0), dtype=jnp.int32))
        for p, m in pairs
        if not keys.is_key(p)
    )
    if loose or masking.count(masks)[0] != kept:
        resume.refuse(path, "holds params, masks and a history that do not agree")
