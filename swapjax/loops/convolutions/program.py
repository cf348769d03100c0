"""Evaluate a program with its convolutions rewritten, in the programs it calls too."""

from collections.abc import Sequence
from typing import Any

import jax
from jax.extend import core
from jax.extend.core import primitives

from swapjax.core import programs
from swapjax.loops.convolutions import forms

# The programs that an equation calls, by the parameter that has them. Derivatives of
# custom rules stay their authors'; what is not named here is left as it is.
_CALLED = {
    "jit": ("jaxpr",),
    "pjit": ("jaxpr",),
    "closed_call": ("call_jaxpr",),
    "core_call": ("call_jaxpr",),
    "custom_jvp_call": ("call_jaxpr",),
    "custom_vjp_call": ("call_jaxpr",),
    "checkpoint": ("jaxpr",),
    "remat2": ("jaxpr",),
    "scan": ("jaxpr",),
    "while": ("cond_jaxpr", "body_jaxpr"),
    "cond": ("branches",),
}


class Rewriter:
    """Rewrites programs; one that is called twice is rewritten once."""

    def __init__(self) -> None:
        self._changes: dict[int, bool] = {}
        self._made: dict[tuple[int, ...], core.ClosedJaxpr] = {}
        self._alive: list[core.Jaxpr] = []  # what is known by its id

    def changes(self, program: core.Jaxpr) -> bool:
        """Whether there is anything to rewrite in a program or in what it calls."""
        if id(program) not in self._changes:
            self._alive.append(program)
            self._changes[id(program)] = any(map(self._concerns, program.eqns))
        return self._changes[id(program)]

    def evaluate(
        self, program: core.Jaxpr, consts: Sequence[Any], arguments: Sequence[Any]
    ) -> list[Any]:
        """Evaluate a program.

        Args:
            program: a jaxpr.
            consts: values of its constants.
            arguments: values of its inputs.

        Returns:
            Its results, of the types that it has.
        """
        results = programs.evaluate(
            program, consts, arguments, lambda _, eqn, operands: self._do(eqn, operands)
        )
        return [
            _typed_as(result, atom.aval)
            for result, atom in zip(results, program.outvars, strict=True)
        ]

    def _concerns(self, eqn: core.JaxprEqn) -> bool:
        if eqn.primitive is primitives.conv_general_dilated_p:
            return forms.form_of(eqn) is not None
        return any(self.changes(_open(program)) for program in _called(eqn))

    def _do(self, eqn: core.JaxprEqn, operands: list[Any]) -> list[Any]:
        """Do what an equation does."""
        if not self._concerns(eqn):
            return programs.bind(eqn, operands)
        if eqn.primitive is primitives.conv_general_dilated_p:
            form = forms.form_of(eqn)
            assert form is not None
            return [form(*operands)]
        changed = dict(eqn.params)
        for name in _CALLED[eqn.primitive.name]:
            value = changed[name]
            several = isinstance(value, tuple | list)
            made = [
                self._rewrite(program) for program in (value if several else [value])
            ]
            changed[name] = type(value)(made) if several else made[0]
        return programs.bind(eqn, operands, changed)

    def _rewrite(self, program: Any) -> Any:
        """Rewrite a program, closed or not, and keep its types."""
        inner, consts = _open(program), getattr(program, "consts", ())
        if not self.changes(inner):
            return program
        key = tuple(map(id, (inner, *consts)))
        if key not in self._made:
            self._made[key] = jax.make_jaxpr(
                lambda *arguments: self.evaluate(inner, consts, arguments)
            )(*(variable.aval for variable in inner.invars))
        made = self._made[key]
        if isinstance(program, core.ClosedJaxpr):
            return made
        # An open program has no place for constants; none come of rewriting.
        assert not made.consts
        return made.jaxpr


def _called(eqn: core.JaxprEqn) -> list[Any]:
    """List the programs that an equation calls, if they are functions of arrays."""
    found: list[Any] = []
    for name in _CALLED.get(eqn.primitive.name, ()):
        value = eqn.params[name]
        found.extend(value if isinstance(value, tuple | list) else [value])
    arrays = (
        isinstance(variable.aval, jax.core.ShapedArray)
        for program in found
        for variable in _open(program).invars
    )
    return found if all(arrays) else []


def _open(program: Any) -> core.Jaxpr:
    return program.jaxpr if isinstance(program, core.ClosedJaxpr) else program


def _typed_as(value: Any, aval: Any) -> Any:
    """Make a value weakly typed where the program has it so, and the other way."""
    weak = getattr(aval, "weak_type", False)
    if getattr(jax.typeof(value), "weak_type", False) == weak:
        return value
    return primitives.convert_element_type_p.bind(
        value, new_dtype=aval.dtype, weak_type=weak, sharding=None
    )
