"""Sites by hand: names in the program of a loss, which change nothing else."""

from collections.abc import Iterator
from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name
from jax.extend import core

from swapjax.backward.address import Site, entered, equations, opened, require_apart
from swapjax.backward.operator import require_floats

_PREFIX = "swapjax.backward.site:"


def site(x: jax.Array, name: str) -> jax.Array:
    """Mark an array of a network as one whose gradient may be pruned.

    The array stays what it is, and so do all its derivatives: only what is told to look
    for marks, as `prune_backward` with ``sites="marked"``, sees them. Where batch norm
    follows, mark what the convolution returns; where ReLU follows directly, what the
    next convolution takes.

    Args:
        x: floats of any shape, at a place that is passed once in the loss; steps of a
            scan are one place.
        name: of the site, one of its own.

    Returns:
        The array.

    Raises:
        ValueError: for a name that is no text, and other than one array of floats.

    Example:
        >>> import jax.numpy as jnp
        >>> from swapjax import backward
        >>> def hidden(params, x):
        ...     return jnp.tanh(backward.site(x @ params["kernel"], "hidden"))
    """
    if not isinstance(name, str) or not name:
        raise ValueError(f"name must be a text that is not empty, got {name!r}")
    require_floats(x, f" at site {name!r}")
    return checkpoint_name(x, _PREFIX + name)


def find_marks(program: core.Jaxpr) -> tuple[Site, ...]:
    """List the sites that are marked in a program, in its order.

    Args:
        program: of a loss, as `swapjax.backward.address.trace` makes it.

    Raises:
        ValueError: for a name used twice, and for a mark in what cannot be entered: a
            while loop, a function with a derivative of its own, a ``shard_map``.
    """
    found = []
    for address, equation, levels in equations(program):
        name = _name(equation)
        if name is not None:
            kind: Any = equation.outvars[0].aval
            site = Site(name, "output", address, kind.shape, kind.dtype, levels)
            found.append(site)
        if not entered(equation):
            _require_none(equation)
    require_apart(tuple(found))
    return tuple(found)


def _name(equation: core.JaxprEqn) -> str | None:
    """Tell the name of a mark, None for other equations."""
    if equation.primitive.name != "name":
        return None
    name = equation.params["name"]
    return name.removeprefix(_PREFIX) if name.startswith(_PREFIX) else None


def _require_none(equation: core.JaxprEqn) -> None:
    """Raise for a mark within an equation that is not entered."""
    for inner in _all_within(equation):
        name = _name(inner)
        if name is not None:
            raise ValueError(
                f"sites: {name!r} lies within {equation.primitive.name}, where no "
                "gradient can be pruned; mark what enters or leaves it"
            )


def _all_within(equation: core.JaxprEqn) -> Iterator[core.JaxprEqn]:
    for value in equation.params.values():
        for program in value if isinstance(value, tuple | list) else (value,):
            if isinstance(program, core.ClosedJaxpr | core.Jaxpr):
                for inner in opened(program).eqns:
                    yield inner
                    yield from _all_within(inner)
