"""Walk through a program with its weights, and tell what does not depend on data."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from swapjax.core import programs
from swapjax.deploy import products
from swapjax.deploy.arithmetic import entry_by_entry
from swapjax.deploy.known import Known, alike, constant, joined, nothing
from swapjax.deploy.moves import MOVES, parts
from swapjax.roles.program.primitives import scan_counts
from swapjax.roles.ties.rules import ELEMENTWISE
from swapjax.roles.ties.steps import Step, Steps

_LONGEST = 256  # loops that are gone through step by step
Live = dict[tuple[int, int], np.ndarray]


class Constants:
    """What is known of values, and which terms of sums may not be zero.

    Attributes:
        live: of each operand of a sum, by the number of what the step makes and the
            position of the operand, where it may not be zero, in any step of a loop;
            bool, and size one along axes where it is the same.
        each: the same for every step of a loop, in the order of its slices; nothing of
            loops within loops.
        operands: what is known of those, the last time.
    """

    def __init__(self) -> None:
        self.live: Live = {}
        self.each: dict[tuple[int, int], dict[int, np.ndarray]] = {}
        self._slice: list[int] = []
        self.operands: dict[int, list[Known]] = {}

    def walk(self, program: Steps, inputs: Sequence[Known]) -> list[Known]:
        """Tell what is known of the results of a program."""
        values: dict[int, Known] = dict(zip(program.inputs, inputs, strict=True))
        for number, array in program.constants.items():
            values[number] = _of_array(array, program.shapes[number])
        for step in program.steps:
            operands = [values[number] for number in step.reads]
            values.update(
                zip(step.makes, self._do(step, operands, program), strict=True)
            )
        return [values[number] for number in program.outputs]

    def _do(self, step: Step, operands: list[Known], program: Steps) -> Sequence[Known]:
        shapes = [program.shapes[number] for number in step.makes]
        if step.name in ("dot_general", "conv_general_dilated", "reduce_sum"):
            self._note(step, operands)
        if step.name == "scan":
            return self._scan(step, operands)
        if step.inner:
            return self._loop(step, operands, shapes)
        if step.name == "dot_general":
            numbers = step.equation.params["dimension_numbers"]
            return [products.dot(operands[0], operands[1], numbers, shapes[0])]
        if step.name == "conv_general_dilated":
            params = step.equation.params
            return [products.convolution(operands[0], operands[1], params, shapes[0])]
        if step.name == "split":
            return parts(step, operands[0], shapes)
        if step.name in MOVES:
            return [MOVES[step.name](step, operands, shapes[0])]
        if step.name in ELEMENTWISE and len(shapes) == 1:
            return [entry_by_entry(step, operands, shapes[0])]
        return _other(step, operands, shapes)

    def _note(self, step: Step, operands: list[Known]) -> None:
        """Note which terms of a sum may not be zero."""
        self.operands[step.makes[0]] = operands
        for which, operand in enumerate(operands):
            live = ~operand.zero
            key = step.makes[0], which
            self.live[key] = self.live[key] | live if key in self.live else live
            if len(self._slice) == 1:
                self.each.setdefault(key, {})[self._slice[0]] = live

    def _scan(self, step: Step, operands: list[Known]) -> Sequence[Known]:
        """Go through all steps of a loop."""
        (body,) = step.inner
        consts, carries = scan_counts(step.equation)
        fixed, carry = operands[:consts], operands[consts : consts + carries]
        stacked = operands[consts + carries :]
        length = step.equation.params["length"]
        if not 0 < length <= _LONGEST:
            return self._any_step(body, fixed, carry, stacked, length)
        order = range(length)
        made: list[list[Known]] = []
        for i in reversed(order) if step.equation.params["reverse"] else order:
            slices = [_taken(x, i) for x in stacked]
            self._slice.append(i)
            results = self.walk(body, [*fixed, *carry, *slices])
            self._slice.pop()
            carry = results[:carries]
            made.append(results[carries:])
        stacks = []
        for number, values in enumerate(zip(*made, strict=True)):
            found = values[0]
            for other in values[1:]:
                found = joined(found, other)
            shape = (length, *body.shapes[body.outputs[carries + number]])
            stacks.append(found.on(lambda x: x[None], shape))
        return [*carry, *stacks]

    def _any_step(
        self,
        body: Steps,
        fixed: list[Known],
        carry: list[Known],
        stacked: list[Known],
        length: int,
    ) -> Sequence[Known]:
        """Know of a loop what holds for every step of it, whatever it carries."""
        unknown = [nothing(x.shape) for x in carry]
        slices = [nothing(x.shape[1:]) for x in stacked]
        if length:
            slices = [_taken(alike(x, (0,)), 0) for x in stacked]
        results = self.walk(body, [*fixed, *unknown, *slices])[len(carry) :]
        stacks = [x.on(lambda y: y[None], (length, *x.shape)) for x in results]
        return [*unknown, *stacks]

    def _loop(
        self, step: Step, operands: list[Known], shapes: Sequence[tuple[int, ...]]
    ) -> Sequence[Known]:
        """Know nothing of what a loop changes; of branches, what all agree on."""
        if step.name == "cond":
            found = [self.walk(branch, operands[1:]) for branch in step.inner]
            results = found[0]
            for other in found[1:]:
                results = [joined(a, b) for a, b in zip(results, other, strict=True)]
            return results
        first = step.equation.params["cond_nconsts"]
        second = first + step.equation.params["body_nconsts"]
        carry = [nothing(x.shape) for x in operands[second:]]
        for inner, fixed in zip(
            step.inner, (operands[:first], operands[first:second]), strict=True
        ):
            self.walk(inner, [*fixed, *carry])
        return [nothing(shape) for shape in shapes]


def find_constants(program: Steps, known: Mapping[int, Any]) -> Constants:
    """Tell what does not depend on data.

    Args:
        program: of the function.
        known: arrays by the number of an input; all other inputs are data.
    """
    constants = Constants()
    constants.walk(
        program,
        [
            _of_array(known[number], program.shapes[number])
            if number in known
            else nothing(program.shapes[number])
            for number in program.inputs
        ],
    )
    return constants


def _of_array(array: Any, shape: tuple[int, ...]) -> Known:
    dtype = getattr(array, "dtype", None)
    if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.extended):
        return nothing(shape)
    return constant(array)


def _taken(x: Known, i: int) -> Known:
    """Take a slice of a stack."""
    return x.on(lambda y: y[min(i, len(y) - 1)], x.shape[1:])


def _other(
    step: Step, operands: list[Known], shapes: Sequence[tuple[int, ...]]
) -> Sequence[Known]:
    """Do a step all of whose operands are known; of others, know nothing."""
    avals = [v.aval for v in (*step.equation.invars, *step.equation.outvars)]
    plain = all(
        not jnp.issubdtype(getattr(a, "dtype", np.float32), jax.dtypes.extended)
        for a in avals
    )
    if not plain or not all(x.is_whole for x in operands):
        return [nothing(shape) for shape in shapes]
    arrays = [
        x.full().astype(a.dtype)  # type: ignore[attr-defined]
        for x, a in zip(operands, avals[: len(operands)], strict=True)
    ]
    return [constant(made) for made in programs.bind(step.equation, arrays)]
