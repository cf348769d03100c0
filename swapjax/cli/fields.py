"""How --help shows the fields of options, and what finds bad numbers in them."""

from typing import Any

from swapjax.core import extras

try:
    import tyro
    from tyro.conf import Positional as Positional
    from tyro.extras import literal_type_from_choices
except ImportError:
    extras.require("cli", __name__)
    raise


def shown(metavar: str, default: str | None = None, help: str | None = None) -> Any:
    """Say how --help names a value, tells of its default and explains it."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=default, help=help)


def explained(help: str) -> Any:
    """Explain a value by a text that is put together."""
    return tyro.conf.arg(help=help)


def inlined() -> Any:
    """Name the options of a group without a prefix of the group."""
    return tyro.conf.arg(name="")


def one_of(names: tuple[str, ...], default: str) -> Any:
    """Accept one of some names, which --help lists."""
    return tyro.conf.arg(
        constructor=literal_type_from_choices(names),
        help_behavior_hint=f"(default: {default})",
    )


def require_counts(options: object, *names: str) -> None:
    """Raise for options that count something, and are not 1 or more.

    Raises:
        ValueError: naming the option.
    """
    for name in names:
        if getattr(options, name) < 1:
            option = name.replace("_", "-")
            raise ValueError(
                f"--{option} must be 1 or more, got {getattr(options, name)}"
            )


def check_seed(seed: int, name: str) -> None:
    """Find seeds that JAX would not tell apart.

    Raises:
        ValueError: naming the option.
    """
    if not 0 <= seed < 2**32:
        raise ValueError(f"{name} must be from 0 to {2**32 - 1}, got {seed}")
