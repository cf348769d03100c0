"""Texts that tell traced programs apart; those that JAX prints are for readers.

They would depend on the terminal, on its width, and on addresses of functions.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jax.extend import core

from swapjax.core import identity


def describe(program: core.ClosedJaxpr) -> str:
    """Tell a program by its operations, their settings, and the constants in it."""
    return identity.short_hash("\n".join(_lines(program)))


def _lines(program: Any) -> Iterator[str]:
    """Write a program out, closed or not, one operation a line."""
    jaxpr = getattr(program, "jaxpr", program)
    names: dict[Any, str] = {}

    def name(variable: Any) -> str:
        if isinstance(variable, core.Literal):
            return f"{np.asarray(variable.val).tolist()!r} {variable.aval}"
        return names.setdefault(variable, f"v{len(names)} {variable.aval}")

    yield " ".join(map(name, (*jaxpr.constvars, *jaxpr.invars)))
    for constant in getattr(program, "consts", ()):
        yield identity.digest(constant)
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        yield " ".join(map(name, (*equation.invars, *equation.outvars)))
        for setting, value in sorted(equation.params.items()):
            yield f"{setting}={_setting(value)}"
    yield " ".join(map(name, jaxpr.outvars))


def _setting(value: Any) -> str:
    """Tell a setting of an operation; of what only JAX knows, the type."""
    if isinstance(value, core.ClosedJaxpr | core.Jaxpr):
        return f"[{' '.join(_lines(value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{k}: {_setting(v)}' for k, v in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"({', '.join(map(_setting, value))})"
    plain = (bool, int, float, complex, str, bytes, type(None))
    arrays = (np.ndarray, np.generic, np.dtype)
    if isinstance(value, (*plain, *arrays)):
        return identity.describe(value)
    return getattr(value, "name", type(value).__name__)
