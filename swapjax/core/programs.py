"""Traced programs: texts that tell them apart, and their equations, done anew."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jax.extend import core

from swapjax.core import identity


def describe(program: core.ClosedJaxpr) -> str:
    """Tell a program by its operations, their settings, and the constants in it.

    What JAX prints is for readers: it depends on the terminal, on its width, and on
    addresses of functions.
    """
    return identity.short_hash("\n".join(_lines(program)))


def structure(equation: core.JaxprEqn) -> str:
    """Tell an equation by what it does, whatever it does it with.

    Equations of the same text do the same. Functions that JAX holds beside programs,
    as rules for derivatives, are not looked at; others count as themselves, so that
    the text is for one process, while the equation lives.
    """
    operands = " ".join(str(atom.aval) for atom in equation.invars)
    results = " ".join(str(variable.aval) for variable in equation.outvars)
    settings = _settings(equation, exact=True)
    return "\n".join((equation.primitive.name, operands, results, *settings))


def _lines(program: Any, exact: bool = False) -> Iterator[str]:
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
        yield from _settings(equation, exact)
    yield " ".join(map(name, jaxpr.outvars))


def _settings(equation: core.JaxprEqn, exact: bool) -> Iterator[str]:
    """Write the settings of an equation out, one a line.

    Args:
        equation: of a jaxpr.
        exact: whether to tell apart what only JAX knows, but beside a program, where it
            is made anew at each call.
    """
    kinds = core.ClosedJaxpr | core.Jaxpr
    own = exact and not any(isinstance(v, kinds) for v in equation.params.values())
    for setting, value in sorted(equation.params.items()):
        yield f"{setting}={_setting(value, exact, own)}"


def _setting(value: Any, exact: bool, own: bool) -> str:
    """Tell a setting of an operation; of what only JAX knows, the type.

    Args:
        value: of the setting.
        exact: whether to tell such things apart in programs.
        own: whether to tell them apart here.
    """
    if isinstance(value, core.ClosedJaxpr | core.Jaxpr):
        return f"[{' '.join(_lines(value, exact))}]"
    if isinstance(value, Mapping):
        parts = (f"{k}: {_setting(v, exact, own)}" for k, v in value.items())
        return f"{{{', '.join(parts)}}}"
    if isinstance(value, list | tuple):
        return f"({', '.join(_setting(v, exact, own) for v in value)})"
    plain = (bool, int, float, complex, str, bytes, type(None))
    arrays = (np.ndarray, np.generic, np.dtype)
    if isinstance(value, (*plain, *arrays)):
        return identity.describe(value)
    name: str = getattr(value, "name", type(value).__name__)
    if not own:
        return name
    kind: Any = type(value).__eq__
    told = id(value) if kind is object.__eq__ else repr(value)
    return f"{name} {told}"


def bind(
    equation: core.JaxprEqn,
    operands: Sequence[Any],
    settings: Mapping[str, Any] | None = None,
) -> list[Any]:
    """Do what an equation of a program does, with other operands.

    Args:
        equation: of a jaxpr.
        operands: what it takes.
        settings: in place of its parameters.

    Returns:
        What it returns.
    """
    settings = equation.params if settings is None else settings
    params = equation.primitive.get_bind_params(settings)
    # JAX has told functions beside the parameters, and has them among those.
    functions, params = params if isinstance(params, tuple) else ((), params)
    result = equation.primitive.bind(*functions, *operands, **params)
    return list(result) if equation.primitive.multiple_results else [result]


def evaluate(
    program: core.Jaxpr,
    consts: Sequence[Any],
    arguments: Sequence[Any],
    do: Callable[[int, core.JaxprEqn, list[Any]], Sequence[Any]],
    known: Callable[[Any], Any] = lambda value: value,
) -> list[Any]:
    """Evaluate a program, equation by equation.

    Args:
        program: an open jaxpr.
        consts: its constants.
        arguments: its inputs.
        do: ``(number of the equation, equation, operands) -> results``.
        known: makes of constants and literals what `do` takes.

    Returns:
        Its results.
    """
    values: dict[core.Var, Any] = {}

    def read(atom: core.Var | core.Literal) -> Any:
        return known(atom.val) if isinstance(atom, core.Literal) else values[atom]

    values.update(zip(program.constvars, map(known, consts), strict=True))
    values.update(zip(program.invars, arguments, strict=True))
    for number, equation in enumerate(program.eqns):
        results = do(number, equation, [read(atom) for atom in equation.invars])
        values.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in program.outvars]


def multiplications(equation: Any) -> int:
    """Count the multiplications of a product, of one of its steps in a loop.

    Args:
        equation: a ``dot_general`` or a ``conv_general_dilated``.
    """
    left, right = (v.aval.shape for v in equation.invars)
    size = math.prod(equation.outvars[0].aval.shape)
    numbers = equation.params["dimension_numbers"]
    if equation.primitive.name == "dot_general":
        return size * math.prod(left[i] for i in numbers[0][0])
    _, *inputs = numbers.rhs_spec  # input channels of a group, and pixels
    return size * math.prod(right[i] for i in inputs)
