"""The methods that the command line offers, and the options that concern them."""

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


def takes_patterns(name: str) -> bool:
    """Tell whether a method can prune to a pattern."""
    return "patterns" not in METHODS[name].unsupported
