"""A program as one list of steps: what it calls is written out in its place.

Every value has a number, in the programs of loops and branches too. A function that is
called twice is written out twice, so that what is known of a value holds where it is.
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.extend import core

from swapjax.roles.program.walk import called

Shape = tuple[int, ...]


class Step(NamedTuple):
    """One equation.

    Attributes:
        equation: with its primitive and its parameters.
        reads: the numbers of the values that it takes.
        makes: and of those that it gives.
        inner: the body of a loop; for ``while`` the condition and the body; branches.
    """

    equation: core.JaxprEqn
    reads: tuple[int, ...]
    makes: tuple[int, ...]
    inner: tuple["Steps", ...] = ()

    @property
    def name(self) -> str:
        """Of the primitive."""
        return self.equation.primitive.name


@dataclasses.dataclass(frozen=True, eq=False)
class Steps:
    """A program, or one within it.

    Attributes:
        steps: in order.
        inputs: numbers of values.
        outputs: likewise.
        constants: arrays that the program closes over and literals, by number.
        shapes: of all values by number, those of inner programs too.
    """

    steps: tuple[Step, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    constants: dict[int, Any]
    shapes: dict[int, Shape]


def write_out(program: core.ClosedJaxpr) -> Steps:
    """Write a program out, and all that it calls."""
    return _Writer().write(program.jaxpr, program.consts)


def every_step(program: Steps) -> Iterator[Step]:
    """List all steps, those of loops and branches before what holds them."""
    for step in program.steps:
        for inner in step.inner:
            yield from every_step(inner)
        yield step


class _Writer:
    """Gives numbers to values."""

    def __init__(self) -> None:
        self.numbers = itertools.count()
        self.shapes: dict[int, Shape] = {}

    def new(self, atom: Any) -> int:
        number = next(self.numbers)
        self.shapes[number] = tuple(getattr(atom.aval, "shape", ()))
        return number

    def write(self, jaxpr: core.Jaxpr, consts: Sequence[Any]) -> Steps:
        """Write a program out that stands for itself."""
        inputs = tuple(map(self.new, jaxpr.invars))
        steps: list[Step] = []
        constants: dict[int, Any] = {}
        outputs = self.inline(jaxpr, consts, inputs, steps, constants)
        return Steps(tuple(steps), inputs, outputs, constants, self.shapes)

    def inline(
        self,
        jaxpr: core.Jaxpr,
        consts: Sequence[Any],
        inputs: Sequence[int],
        steps: list[Step],
        constants: dict[int, Any],
    ) -> tuple[int, ...]:
        """Add the steps of a program to others; return the numbers of its results."""
        known: dict[Any, int] = dict(zip(jaxpr.invars, inputs, strict=True))
        for variable, value in zip(jaxpr.constvars, consts, strict=True):
            known[variable] = self.new(variable)
            constants[known[variable]] = value

        def number(atom: Any) -> int:
            if not isinstance(atom, core.Literal):
                return known[atom]
            made = self.new(atom)
            constants[made] = np.asarray(atom.val)
            return made

        for equation in jaxpr.eqns:
            reads = tuple(map(number, equation.invars))
            inner = called(equation)
            if inner is not None and equation.primitive.name != "shard_map":
                body, consts = _open(inner)
                makes = self.inline(body, consts, reads, steps, constants)
            else:
                makes = tuple(map(self.new, equation.outvars))
                parts = tuple(self.write(*_open(p)) for p in _parts(equation))
                steps.append(Step(equation, reads, makes, parts))
            known.update(zip(equation.outvars, makes, strict=True))
        return tuple(map(number, jaxpr.outvars))


def _parts(equation: core.JaxprEqn) -> tuple[Any, ...]:
    """List the programs of a loop, or the branches of a choice."""
    name, params = equation.primitive.name, equation.params
    if name == "scan":
        return (params["jaxpr"],)
    if name == "while":
        return params["cond_jaxpr"], params["body_jaxpr"]
    return tuple(params["branches"]) if name == "cond" else ()


def _open(program: Any) -> tuple[core.Jaxpr, Sequence[Any]]:
    if isinstance(program, core.ClosedJaxpr):
        return program.jaxpr, program.consts
    return program, ()
