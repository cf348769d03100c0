"""A program as one list of operations: calls entered, scans over layers unrolled.

What depends on leaves and constants alone is no operation of the list. It is made where
it is used, again and again, so that no weight outlives the part that reads it.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from swapjax.activations.dependence import called
from swapjax.core import programs
from swapjax.roles.program.primitives import CALLS, SAME, scan_counts


class Ref(NamedTuple):
    """A leaf of params, or one slice along its first axis.

    Attributes:
        leaf: its number among the leaves.
        row: which slice; None for the whole leaf.
    """

    leaf: int
    row: int | None = None

    def of(self, leaf: Any) -> Any:
        """Take what it stands for of the leaf."""
        return leaf if self.row is None else leaf[self.row]


@dataclasses.dataclass(frozen=True, eq=False)
class Constant:
    """An array that the program closes over."""

    array: Any


# What does the same with a slice as with the whole, beside numbers.
_ENTRYWISE = (SAME - {"sharding_constraint"}) | {"add", "div", "mul", "neg", "sub"}

Operand = Ref | Constant | core.Literal | int
"""What an operation takes; a number is that of a value."""


@dataclasses.dataclass(frozen=True, eq=False)
class Operation:
    """An equation with what it takes and gives.

    Attributes:
        equation: of a jaxpr.
        operands: in place of its variables.
        results: the numbers of the values that it gives.
    """

    equation: core.JaxprEqn
    operands: tuple[Operand, ...]
    results: tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Unrolled:
    """A program as a list of operations.

    Attributes:
        operations: what depends on data, in order.
        free: what depends on no data, by the values that it gives.
        made: the leaves that such values are made of.
        data: the values that are the inputs besides the leaves.
        results: what the program returns.
        kinds: shape and dtype of each value.
        leaves: those of the leaves.
    """

    operations: tuple[Operation, ...]
    free: Mapping[int, Operation]
    made: Mapping[int, frozenset[Ref]]
    data: tuple[int, ...]
    results: tuple[Operand, ...]
    kinds: Mapping[int, Any]
    leaves: tuple[Any, ...]

    def reads(self, operation: Operation) -> frozenset[Ref]:
        """Find the leaves that an operation reads, by what is made of them alone."""
        return frozenset().union(*(refs(x, self.made) for x in operation.operands))


def refs(operand: Operand, made: Mapping[int, frozenset[Ref]]) -> frozenset[Ref]:
    """Find the leaves that something is made of, which depends on no data."""
    if isinstance(operand, Ref):
        return frozenset({operand})
    return made.get(operand, frozenset()) if isinstance(operand, int) else frozenset()


def unroll(program: core.ClosedJaxpr, leaves: int, stacked: Sequence[int]) -> Unrolled:
    """Turn a program into a list of operations.

    Programs that are called are entered where leaves of `stacked` go in; so are those
    with derivatives of their own, if several do. Scans over slices of such leaves are
    unrolled.

    Args:
        program: its inputs are the leaves of params, then data.
        leaves: how many there are of params.
        stacked: the numbers of those that may be cut apart: what is prunable.
    """
    return _Unroller(program, leaves, frozenset(stacked)).run()


class _Unroller:
    """Walks a program, and collects operations."""

    def __init__(
        self, program: core.ClosedJaxpr, leaves: int, wanted: frozenset[int]
    ) -> None:
        self._program, self._wanted = program, wanted
        variables = program.jaxpr.invars
        self._leaves = tuple(v.aval for v in variables[:leaves])
        self._kinds: dict[int, Any] = {
            i: v.aval for i, v in enumerate(variables[leaves:])
        }
        self._data = set(self._kinds)
        self._operations: list[Operation] = []
        self._free: dict[int, Operation] = {}
        self._made: dict[int, frozenset[Ref]] = {}
        self._widened: dict[int, Ref] = {}  # values that are a slice with an axis of 1
        self._sliced: dict[tuple[int, int], Operand] = {}

    def run(self) -> Unrolled:
        data = tuple(self._kinds)
        inputs: list[Operand] = [*map(Ref, range(len(self._leaves))), *data]
        results = self._walk(self._program.jaxpr, self._program.consts, inputs)
        return Unrolled(
            tuple(self._operations),
            self._free,
            self._made,
            data,
            tuple(results),
            self._kinds,
            self._leaves,
        )

    def _walk(
        self, program: core.Jaxpr, consts: Sequence[Any], inputs: Sequence[Operand]
    ) -> list[Operand]:
        values: dict[core.Var, Operand] = {}
        values.update(zip(program.constvars, map(Constant, consts), strict=True))
        values.update(zip(program.invars, inputs, strict=True))

        def read(atom: core.Var | core.Literal) -> Operand:
            return atom if isinstance(atom, core.Literal) else values[atom]

        for equation in program.eqns:
            results = self._do(equation, [read(atom) for atom in equation.invars])
            values.update(zip(equation.outvars, results, strict=True))
        return [read(atom) for atom in program.outvars]

    def _do(self, equation: core.JaxprEqn, operands: list[Operand]) -> list[Operand]:
        name = equation.primitive.name
        if name in CALLS and self._enters(name, equation, operands):
            return self._walk(*called(equation), operands)
        if name == "scan":
            consts, carries = scan_counts(equation)
            if any(self._wants(x) for x in operands[consts + carries :]):
                return self._scan(equation, operands, consts, carries)
        if name == "slice" and isinstance(operands[0], Ref):
            index = _row(equation)
            if operands[0].row is None and index is not None:
                return [self._widen(operands[0]._replace(row=index))]
        first = operands[0] if operands else None
        if isinstance(first, int) and first in self._widened and _drops_first(equation):
            return [self._widened[first]]
        return self._emit(equation, operands)

    def _wants(self, operand: Operand) -> bool:
        """Tell whether something is made of prunable leaves alone."""
        return any(ref.leaf in self._wanted for ref in refs(operand, self._made))

    def _enters(
        self, name: str, equation: core.JaxprEqn, operands: Sequence[Operand]
    ) -> bool:
        inside = [operand for operand in operands if self._wants(operand)]
        if not name.startswith("custom_"):
            return bool(inside)
        program, _ = called(equation)
        loops = any(e.primitive.name == "scan" for e in program.eqns)
        return len(inside) > 1 or (bool(inside) and loops)

    def _emit(
        self, equation: core.JaxprEqn, operands: Sequence[Operand]
    ) -> list[Operand]:
        numbers = tuple(len(self._kinds) + i for i in range(len(equation.outvars)))
        pairs = zip(numbers, equation.outvars, strict=True)
        self._kinds.update((number, v.aval) for number, v in pairs)
        operation = Operation(equation, tuple(operands), numbers)
        has_data = any(isinstance(x, int) and x in self._data for x in operands)
        if has_data or equation.effects:
            self._operations.append(operation)
            self._data.update(numbers)
        else:
            of = frozenset().union(*(refs(x, self._made) for x in operands))
            self._free.update(dict.fromkeys(numbers, operation))
            self._made.update(dict.fromkeys(numbers, of))
        return list(numbers)

    def _scan(
        self,
        equation: core.JaxprEqn,
        operands: list[Operand],
        consts: int,
        carries: int,
    ) -> list[Operand]:
        body, length = equation.params["jaxpr"], equation.params["length"]
        given, carry = operands[:consts], operands[consts : consts + carries]
        stacks = operands[consts + carries :]
        rows: list[list[Operand]] = []
        steps = range(length)
        for i in reversed(steps) if equation.params["reverse"] else steps:
            slices = [self._slice(x, i) for x in stacks]
            found = self._walk(body.jaxpr, body.consts, [*given, *carry, *slices])
            carry = found[:carries]
            rows.append(found[carries:])
        if equation.params["reverse"]:
            rows.reverse()
        columns = zip(*rows, strict=True)
        return [*carry, *(self._stack(column) for column in columns)]

    def _slice(self, operand: Operand, index: int) -> Operand:
        """Take a slice of the first axis, of leaves if that comes to the same."""
        if isinstance(operand, Ref):
            return (
                self._index(operand, index)
                if operand.row is not None
                else Ref(operand.leaf, index)
            )
        if isinstance(operand, Constant):
            return Constant(operand.array[index])
        assert isinstance(operand, int)
        key = operand, index
        if key not in self._sliced:
            self._sliced[key] = self._slice_of(operand, index)
        return self._sliced[key]

    def _slice_of(self, value: int, index: int) -> Operand:
        made = self._free.get(value)
        if made is not None and made.equation.primitive.name in _ENTRYWISE:
            inside = [x for x in made.operands if isinstance(x, Ref | int)]
            others = len(made.operands) - len(inside)
            scalars = sum(isinstance(x, core.Literal) for x in made.operands)
            if len(inside) == 1 and scalars == others:

                def again(x: jax.Array) -> jax.Array:
                    operands = [
                        o.val if isinstance(o, core.Literal) else x
                        for o in made.operands
                    ]
                    return programs.bind(made.equation, operands)[0]

                return self._apply(again, [self._slice(inside[0], index)])
        return self._index(value, index)

    def _index(self, operand: Operand, index: int) -> Operand:
        return self._apply(_take, [operand, Constant(np.int32(index))])

    def _stack(self, operands: Sequence[Operand]) -> Operand:
        return self._apply(lambda *x: jnp.stack(x), operands)

    def _widen(self, ref: Ref) -> Operand:
        value = self._apply(lambda x: x[None], [ref])
        assert isinstance(value, int)
        self._widened[value] = ref
        return value

    def _apply(self, function: Callable, operands: Sequence[Operand]) -> Operand:
        """Emit an operation that is not in the program."""
        kinds = [self._kind(operand) for operand in operands]
        (equation,) = jax.make_jaxpr(jax.jit(function))(*kinds).eqns
        return self._emit(equation, operands)[0]

    def _kind(self, operand: Operand) -> jax.ShapeDtypeStruct:
        if isinstance(operand, int):
            kind = self._kinds[operand]
        elif isinstance(operand, Ref):
            kind = self._leaves[operand.leaf]
            if operand.row is not None:
                return jax.ShapeDtypeStruct(kind.shape[1:], kind.dtype)
        elif isinstance(operand, Constant):
            kind = jax.typeof(operand.array)
        else:
            kind = operand.aval
        return jax.ShapeDtypeStruct(kind.shape, kind.dtype, weak_type=kind.weak_type)


def _take(x: jax.Array, index: jax.Array) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(x, index, keepdims=False)


def _drops_first(equation: core.JaxprEqn) -> bool:
    is_squeeze = equation.primitive.name == "squeeze"
    return is_squeeze and equation.params["dimensions"] == (0,)


def _row(equation: core.JaxprEqn) -> int | None:
    """Tell which row of the first axis a ``slice`` takes; None if it takes another."""
    operand: Any = equation.invars[0]
    params, shape = equation.params, operand.aval.shape
    starts, limits = params["start_indices"], params["limit_indices"]
    rest = all(s == 0 for s in starts[1:]) and tuple(limits[1:]) == tuple(shape[1:])
    one = len(shape) > 1 and limits[0] - starts[0] == 1 < shape[0]
    # Of one row along the first axis: steps there leave out nothing.
    steps = any(stride != 1 for stride in (params["strides"] or ())[1:])
    return starts[0] if rest and one and not steps else None
