"""Operations written down by what they take, so that equal ones are one function."""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from jax.extend import core

from swapjax.activations.segments_unroll import Constant, Operand, Operation, Ref
from swapjax.core import programs

Run = Callable[[Sequence[Any], Sequence[Any], Sequence[Any]], tuple[Any, ...]]
"""A part as a pure function: ``(leaves, constants, values) -> values``."""
_Held = TypeVar("_Held")


class Coder:
    """Writes operations down by the places of what they take, in order of first use.

    Args:
        own: operations that depend on data.
        free: those that do not, by the values that they give.
        text: tells what an equation does, as `programs.structure` does.

    Attributes:
        refs: the leaves that they read.
        constants: the arrays of the program that they use.
        takes: the values of operations before.
    """

    def __init__(
        self,
        own: Sequence[Operation],
        free: Mapping[int, Operation],
        text: Callable[[core.JaxprEqn], str],
    ) -> None:
        self._free, self._text = free, text
        self.refs: list[Ref] = []
        self.constants: list[Constant] = []
        self.takes: list[int] = []
        self._made: dict[int, int] = {}  # values, by place among all that are made
        self._lines: list[tuple[core.JaxprEqn, tuple[Any, ...]]] = []
        for operation in own:
            self._write(operation)

    def _write(self, operation: Operation) -> None:
        for operand in operation.operands:
            made = isinstance(operand, int) and operand in self._made
            if isinstance(operand, int) and operand in self._free and not made:
                self._write(self._free[operand])
        codes = tuple(map(self._code, operation.operands))
        self._lines.append((operation.equation, codes))
        for value in operation.results:
            self._made[value] = len(self._made)

    def _code(self, operand: Operand) -> Any:
        if isinstance(operand, core.Literal):
            return operand
        if isinstance(operand, int) and operand in self._made:
            return "made", self._made[operand]
        if isinstance(operand, Ref):
            return "leaf", _place(self.refs, operand)
        if isinstance(operand, Constant):
            return "constant", _place(self.constants, operand)
        return "value", _place(self.takes, operand)

    def key(self, gives: Iterable[int]) -> Hashable:
        """Tell the structure of the operations: what has the same does the same."""
        lines = tuple(
            (self._text(equation), tuple(map(_literal, codes)))
            for equation, codes in self._lines
        )
        return lines, tuple(self._made[i] for i in gives)

    def function(self, gives: Iterable[int]) -> Run:
        """Make the function of what they take."""
        lines = tuple(self._lines)
        places = tuple(self._made[i] for i in gives)

        def run(
            leaves: Sequence[Any], constants: Sequence[Any], values: Sequence[Any]
        ) -> tuple[Any, ...]:
            held = {"leaf": leaves, "constant": constants, "value": values}
            made: list[Any] = []
            held["made"] = made
            for equation, codes in lines:
                operands = [
                    code.val
                    if isinstance(code, core.Literal)
                    else held[code[0]][code[1]]
                    for code in codes
                ]
                made.extend(programs.bind(equation, operands))
            return tuple(made[i] for i in places)

        return run


def _place(held: list[_Held], operand: _Held) -> int:
    """Find the place of something among others, the next if it is new."""
    if operand not in held:
        held.append(operand)
    return held.index(operand)


def _literal(code: Any) -> Any:
    """Write a literal by its value, which has no hash in some versions of JAX."""
    if isinstance(code, core.Literal):
        return f"{code.val!r} {code.aval}"
    return code
