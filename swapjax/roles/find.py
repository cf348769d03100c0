"""The roles of all leaves of params: from a program, from names, and by hand."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from swapjax.core import trees
from swapjax.core.static_leaves import are_arrays
from swapjax.core.types import LossFn, Params
from swapjax.roles.names import name_roles
from swapjax.roles.program import NO_ARRAY, trace_roles
from swapjax.roles.role import Axis, Role, matrix

Axes = Mapping[str, Sequence[Axis]]
BY_HAND = "axes="  # the reason of roles that are given


def find_roles(
    params: Params,
    loss_fn: LossFn | None = None,
    batch: Any = None,
    axes: Axes | None = None,
) -> tuple[Role, ...]:
    """Find what each leaf of params does.

    Args:
        params: a pytree of arrays, or of their shapes and dtypes.
        loss_fn: ``loss_fn(params, batch)``, whose program tells; without it the names
            of the leaves do.
        batch: that loss_fn takes, or its shapes and dtypes.
        axes: what each axis of a leaf counts, by regular expression: of the leaves that
            are not followed rightly.

    Returns:
        One role a leaf, in flattening order.

    Raises:
        ValueError: for a loss without a batch or a batch without a loss, a loss that
            cannot be traced, a batch of other things than arrays; for axes that match
            no leaf, or two for one leaf, of another rank than the leaf, of other words
            than those of `Role`, and those that the program contradicts.
    """
    paths, leaves = trees.paths(params), jax.tree.leaves(params)
    if (loss_fn is None) != (batch is None):
        given, missing = ("loss_fn", "batch") if batch is None else ("batch", "loss_fn")
        raise ValueError(f"{missing}: {given} needs it to tell roles, got None")
    found = [] if loss_fn is None else list(trace_roles(loss_fn, params, batch))
    if not any(role.kind == "matrix" or role.is_ambiguous for role in found):
        # Also of a loss in which no leaf meets data, which tells nothing.
        named = name_roles(paths, [np.shape(leaf) for leaf in leaves])
        pairs = zip(named, are_arrays(leaves), strict=True)
        found = [role if is_array else NO_ARRAY for role, is_array in pairs]
        loss_fn = None
    for i, given_axes in _matched(axes or {}, paths).items():
        role = _by_hand(paths[i], np.shape(leaves[i]), given_axes)
        if loss_fn is not None:
            _require_no_contradiction(paths[i], role, found[i])
        found[i] = role
    return tuple(found)


def _matched(axes: Axes, paths: Sequence[str]) -> dict[int, Sequence[Axis]]:
    """Find the leaves that axes are given for, by number."""
    found: dict[int, Sequence[Axis]] = {}
    if not isinstance(axes, Mapping):
        raise ValueError(
            f"axes: must give words by regular expression, as {{'moe/w': ('expert', "
            f"'input', 'output')}}, got {axes!r}"
        )
    for pattern, words in axes.items():
        try:
            numbers = [i for i, path in enumerate(paths) if re.search(pattern, path)]
        except (re.error, TypeError) as e:
            raise ValueError(
                f"axes: {pattern!r} is not a regular expression: {e}"
            ) from None
        if not numbers:
            raise ValueError(f"axes: {pattern!r} matches no leaf of params")
        for i in numbers:
            if i in found:
                raise ValueError(f"axes: two of the rules match {paths[i]}")
            found[i] = words
    return found


def _by_hand(path: str, shape: tuple[int, ...], words: Sequence[Axis]) -> Role:
    """Take axes that were given for a leaf."""
    are_words = isinstance(words, Sequence) and not isinstance(words, str)
    if not are_words or len(words) != len(shape):
        rank = f"{len(shape)} {'axis' if len(shape) == 1 else 'axes'}"
        raise ValueError(
            f"axes: {path} has {rank}, shape {shape}; give a word for each, got "
            f"{words!r}"
        )
    try:
        return matrix(*words, reason=BY_HAND)
    except ValueError as e:
        raise ValueError(f"axes of {path}: {e}") from None


def _require_no_contradiction(path: str, given: Role, traced: Role) -> None:
    """Raise for axes that the program of the loss tells otherwise."""
    if traced.kind == "unknown" or (traced.kind, traced.axes) == ("matrix", given.axes):
        return
    told = f"has the axes {traced.axes}" if traced.axes else traced.reason
    raise ValueError(
        f"axes: {path} {told} in the program of loss_fn, got {given.axes}; drop them"
    )
