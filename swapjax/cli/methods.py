"""The methods that the command line offers, and the options that concern them."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from swapjax.pruning import Method
from swapjax.pruning.methods import METHODS

NAMES = tuple(name for name, row in METHODS.items() if row.kind == "trained")
# All options that some method takes.
OPTIONS = frozenset(option for name in NAMES for option in METHODS[name].options)


def make(name: str, options: Any) -> Method:
    """Make a method with the options that concern it.

    Args:
        name: one of `NAMES`.
        options: with an attribute for every option that the method takes; None leaves
            the method's own default.

    Raises:
        ValueError: for a value that the method cannot take.
    """
    row = METHODS[name]
    given = {option: getattr(options, option) for option in row.options}
    return row.factory(**{k: v for k, v in given.items() if v is not None})


def users(option: str) -> str:
    """Name the methods that take an option."""
    return ", ".join(name for name in NAMES if option in METHODS[name].options)


def require_use(names: Sequence[str], options: Any) -> None:
    """Raise for an option that was given, and that no method would look at.

    Options that have a default of their own are left alone: whether they were given
    cannot be told.

    Args:
        names: of the methods that will run.
        options: an instance of `swapjax.cli.options.Options`.

    Raises:
        ValueError: naming the option.
    """
    taken = {option for name in names for option in METHODS[name].options}
    for field in dataclasses.fields(options):
        unused = field.name in OPTIONS - taken and field.default is None
        if unused and getattr(options, field.name) is not None:
            many = len(names) > 1
            raise ValueError(
                f"--{field.name.replace('_', '-')}: {', '.join(names)} "
                f"{'have' if many else 'has'} no use for it; leave it out (it is for "
                f"{users(field.name)})"
            )


def takes_patterns(name: str) -> bool:
    """Tell whether a method can prune to a pattern."""
    return "patterns" not in METHODS[name].unsupported


def require_patterns(names: Sequence[str], pattern: str | None, option: str) -> None:
    """Raise for a pattern that some method cannot prune to.

    Args:
        names: of the methods that were asked for.
        pattern: that was asked for, or None.
        option: by which methods are asked for.

    Raises:
        ValueError: naming the first such method.
    """
    for name in names:
        if pattern is not None and not takes_patterns(name):
            raise ValueError(f"{option}: {name} does not take --pattern; leave it out")
