"""Rules that name leaves, by regular expressions or predicates of path and leaf."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import jax
import numpy as np

from swapjax.roles.role import Role
from swapjax.sparsity.allocation import some

Rule = str | Sequence[str] | Callable[[str, jax.Array], bool]


def exact_sparsity(value: float | Fraction, name: str) -> Fraction:
    """Take a float for the decimal that it prints as: 0.9 is nine tenths.

    Raises:
        ValueError: for what is not a number in [0, 1).
    """
    exact = value if isinstance(value, Fraction) else _decimal(value, name)
    if exact is None or not 0 <= exact < 1:
        raise ValueError(f"{name} must be in [0, 1), got {value}")
    return exact


def _decimal(value: Any, name: str) -> Fraction | None:
    """Return a number as the decimal that it prints as; None if it is not finite."""
    try:
        odd = isinstance(value, bool | str) or getattr(value, "dtype", None) == np.bool_
        number = None if odd else float(value)
    except (TypeError, ValueError, OverflowError):
        number = None
    if number is None or np.ndim(value):
        raise ValueError(f"{name} must be a number in [0, 1), got {value!r}")
    return Fraction(repr(number)) if math.isfinite(number) else None


def match(
    paths: tuple[str, ...],
    leaves: list,
    roles: Sequence[Role],
    include: Rule | None,
    exclude: Rule,
) -> list[int]:
    """Find the positions of leaves that are included and not excluded.

    A leaf of shape () is passed over: its mask would be that of a leaf never pruned.
    """
    if include is None:
        taken = {
            i
            for i, (role, leaf) in enumerate(zip(roles, leaves, strict=True))
            if role.kind == "matrix" and np.ndim(leaf) > 0
        }
        if not taken:
            pairs = zip(paths, roles, strict=True)
            listed = some(
                [f"{path or 'the array'}, which {role.reason}" for path, role in pairs]
            )
            raise ValueError(
                "params: no leaf is known as a matrix that data is multiplied with; "
                f"say with include what to prune of {listed or 'nothing'}"
            )
    else:
        found = _matching(paths, leaves, include, "include")
        taken = {i for i in found if np.ndim(leaves[i]) > 0}
        for i in sorted(taken):
            if roles[i].is_ambiguous:
                raise ValueError(
                    f"include: {paths[i]} {roles[i].reason}; say what its axes count "
                    "with axes=, or exclude it"
                )
    left_out = _matching(paths, leaves, exclude, "exclude")
    if not taken - left_out:
        raise ValueError(
            f"include and exclude: leave nothing to prune of {some(paths)}"
        )
    return sorted(taken - left_out)


def _matching(paths: tuple[str, ...], leaves: list, rule: Rule, name: str) -> set[int]:
    if callable(rule):
        found = {i for i, path in enumerate(paths) if rule(path, leaves[i])}
        if not found:
            raise ValueError(f"{name}: the rule matches none of {some(paths)}")
        return found
    patterns = (rule,) if isinstance(rule, str) else tuple(rule)
    result: set[int] = set()
    for pattern in patterns:
        found = _search(pattern, paths, name)
        if name == "include" and not any(np.ndim(leaves[i]) for i in found):
            raise ValueError(
                f"include: {pattern!r} matches only "
                f"{some([paths[i] for i in sorted(found)])} of shape (), never pruned"
            )
        result |= found
    return result


def _search(pattern: str, paths: Sequence[str], name: str) -> set[int]:
    try:
        compiled = re.compile(pattern)
    except re.error as e:
        raise ValueError(
            f"{name}: {pattern!r} is not a regular expression: {e}"
        ) from None
    found = {i for i, path in enumerate(paths) if compiled.search(path)}
    if not found:
        raise ValueError(f"{name}: {pattern!r} matches none of {some(paths)}")
    return found


def match_overrides(
    names: tuple[str, ...],
    paths: tuple[str, ...],
    overrides: Mapping[str, float],
) -> tuple[Fraction | None, ...]:
    """Find the sparsity that each layer was given by name, or None.

    Args:
        names: of the layers, as ``blocks/kernel[3]``.
        paths: of the leaf that each lies in; a rule that matches it is for all of them.
        overrides: sparsities by regular expression.

    Raises:
        ValueError: for a rule that matches nothing, two that match one layer, and a
            sparsity outside [0, 1).
    """
    result: list[Fraction | None] = [None] * len(names)
    listed = (*names, *(path for path in dict.fromkeys(paths) if path not in names))
    for pattern, value in overrides.items():
        exact = exact_sparsity(value, f"overrides[{pattern!r}]")
        matched = {listed[i] for i in _search(pattern, listed, "overrides")}
        for i, both in enumerate(zip(names, paths, strict=True)):
            if matched.isdisjoint(both):
                continue
            if result[i] is not None:
                raise ValueError(f"overrides: two of the rules match {names[i]}")
            result[i] = exact
    return tuple(result)
