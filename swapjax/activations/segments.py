"""A loss cut into consecutive parts that run alone, one after the other.

What goes from one part to the next are the values that depend on data and are needed
later. Parts of one structure, as the blocks of a transformer, share one function, and
so one compiled program: leaves, constants and values are its arguments.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import jax
from jax.extend import core

from swapjax.activations.segments_code import Coder, Run
from swapjax.activations.segments_unroll import (
    Ref,
    unroll,
)
from swapjax.core import programs, trees
from swapjax.core.types import LossFn, Params


@dataclasses.dataclass(frozen=True, eq=False)
class Segment:
    """A part of a program, from one cut to another.

    Attributes:
        start: the number of its first operation in the program.
        stop: that of the first one after it.
        reads: the leaves that it reads, whole or a slice of each.
        constants: arrays that the program closes over.
        takes: the values of parts before that it uses, by number.
        gives: those of its own that are used later.
        run: the part as a pure function of leaves, constants and values, in the order
            of these attributes; the same object for parts of the same structure.
        compiled: ``jax.jit`` of it, likewise.
        program: what it is a part of.
    """

    start: int
    stop: int
    reads: tuple[Ref, ...]
    constants: tuple[Any, ...]
    takes: tuple[int, ...]
    gives: tuple[int, ...]
    run: Run
    compiled: Run
    program: "Program"

    def __call__(
        self, leaves: Sequence[Any], values: Mapping[int, Any]
    ) -> dict[int, Any]:
        """Run the part, compiled.

        Args:
            leaves: one array for each of reads.
            values: by number, those that it takes among them.

        Returns:
            What it gives, by number.
        """
        found = self.compiled(leaves, self.constants, [values[i] for i in self.takes])
        return dict(zip(self.gives, found, strict=True))

    def take(self, leaves: Sequence[Any]) -> tuple[Any, ...]:
        """Take what it reads out of all leaves of params."""
        return tuple(ref.of(leaves[ref.leaf]) for ref in self.reads)

    def after(self, values: Mapping[int, Any], given: Mapping[int, Any]) -> dict:
        """Tell what is needed after it, of values before and what it gives."""
        live = self.program.live(self.stop)
        return {i: x for i, x in {**values, **given}.items() if i in live}

    def of_leaf(
        self, ref: Ref, leaves: Sequence[Any], values: Mapping[int, Any]
    ) -> Callable[[Any], tuple[Any, ...]]:
        """Make the function of one leaf: what the part gives, the rest as it is.

        Args:
            ref: which of reads.
            leaves: one array for each of reads.
            values: by number, those that it takes among them.

        Returns:
            A pure function, which may be differentiated.
        """
        place = self.reads.index(ref)
        taken = [values[i] for i in self.takes]

        def run(leaf: Any) -> tuple[Any, ...]:
            given = [*leaves[:place], leaf, *leaves[place + 1 :]]
            return self.run(given, self.constants, taken)

        return run


class Program:
    """The program of a loss, to be cut.

    Args:
        loss_fn: ``loss_fn(params, batch)``.
        params: the network, or shapes and dtypes.
        batch: that loss_fn takes, or its shapes and dtypes.
        stacked: the paths of leaves that may be cut apart, what is prunable: calls that
            they go into are entered, and scans over their slices unrolled.

    Attributes:
        unrolled: its operations.
        paths: of the leaves of params.
        shapes: shape and dtype of what the loss returns.
    """

    def __init__(
        self, loss_fn: LossFn, params: Params, batch: Any, stacked: Sequence[str]
    ) -> None:
        self.paths = trees.paths(params)
        params, batch = jax.tree.map(_shape, (params, batch))
        wanted = [i for i, path in enumerate(self.paths) if path in set(stacked)]
        with jax.disable_jit(False):  # loops are to be seen as such
            program, shapes = jax.make_jaxpr(loss_fn, return_shape=True)(params, batch)
        self.shapes = shapes
        self.unrolled = unroll(program, len(self.paths), wanted)
        self._runs: dict[Hashable, tuple[Run, Run]] = {}
        self._texts: dict[int, str] = {}
        self._last = self._last_uses()

    def __len__(self) -> int:
        """Count the operations; cuts lie at 0 and after each."""
        return len(self.unrolled.operations)

    def inputs(self, batch: Any) -> dict[int, Any]:
        """Give the leaves of a batch the numbers that they have as values."""
        return dict(zip(self.unrolled.data, jax.tree.leaves(batch), strict=True))

    def live(self, cut: int) -> frozenset[int]:
        """Tell the values that are there before an operation, and used by it or later.

        Args:
            cut: its number; that of all operations for the end.
        """
        found = {i for i in self.unrolled.data if self._last.get(i, -1) >= cut}
        for operation in self.unrolled.operations[:cut]:
            found.update(i for i in operation.results if self._last.get(i, -1) >= cut)
        return frozenset(found)

    def bytes_at(self) -> list[int]:
        """Count the bytes of the values that go over each cut."""
        change = [0] * (len(self) + 2)
        born = dict.fromkeys(self.unrolled.data, 0)
        for number, operation in enumerate(self.unrolled.operations):
            born.update(dict.fromkeys(operation.results, number + 1))
        for value, first in born.items():
            last = self._last.get(value, -1)
            if last >= first:
                kind = self.unrolled.kinds[value]
                size = math.prod(kind.shape) * kind.dtype.itemsize
                change[first] += size
                change[min(last, len(self)) + 1] -= size
        totals, total = [], 0
        for step in change[:-1]:
            total += step
            totals.append(total)
        return totals

    def segment(self, start: int, stop: int) -> Segment:
        """Take the operations from one cut to another as a part.

        Raises:
            ValueError: for cuts out of order or out of range.
        """
        if not 0 <= start <= stop <= len(self):
            raise ValueError(
                f"start and stop must be cuts in order, of 0 to {len(self)}, got "
                f"{start} and {stop}"
            )
        operations = self.unrolled.operations[start:stop]
        coder = Coder(operations, self.unrolled.free, self._text)
        own = {i for operation in operations for i in operation.results}
        gives = tuple(sorted(i for i in own if self._last.get(i, -1) >= stop))
        key = coder.key(gives)
        if key not in self._runs:
            run = coder.function(gives)
            self._runs[key] = run, jax.jit(run)
        run, compiled = self._runs[key]
        return Segment(
            start, stop, tuple(coder.refs), tuple(c.array for c in coder.constants),
            tuple(coder.takes), gives, run, compiled, self,
        )  # fmt: skip

    def returned(self, values: Mapping[int, Any]) -> Any:
        """Take what the loss returns out of the values after the last part."""
        results = self.unrolled.results
        found = [values.get(x) if isinstance(x, int) else None for x in results]
        return jax.tree.unflatten(jax.tree.structure(self.shapes), found)

    def _text(self, equation: core.JaxprEqn) -> str:
        """Tell what an equation does, see `programs.structure`."""
        if id(equation) not in self._texts:
            self._texts[id(equation)] = programs.structure(equation)
        return self._texts[id(equation)]

    def _last_uses(self) -> dict[int, int]:
        found: dict[int, int] = {}
        for number, operation in enumerate(self.unrolled.operations):
            found.update((x, number) for x in operation.operands if isinstance(x, int))
        results = (x for x in self.unrolled.results if isinstance(x, int))
        found.update(dict.fromkeys(results, len(self)))
        return found


def _shape(x: Any) -> Any:
    """Tell shape and dtype of an array, as JAX takes it."""
    if isinstance(x, jax.ShapeDtypeStruct):
        return x
    return jax.eval_shape(lambda: x) if isinstance(x, jax.Array) else _canonical(x)


def _canonical(x: Any) -> jax.ShapeDtypeStruct:
    dtype = jax.dtypes.canonicalize_dtype(x.dtype)
    return jax.ShapeDtypeStruct(x.shape, dtype)


def cut(program: Program, cuts: Sequence[int]) -> tuple[Segment, ...]:
    """Cut a program into consecutive parts.

    Args:
        program: of a loss.
        cuts: the numbers of the operations that parts after the first begin with, in
            order.

    Returns:
        The parts; all operations are in one of them.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> params = [jnp.eye(2), 2 * jnp.eye(2)]
        >>> loss_fn = lambda params, x: jnp.sum(x @ params[0] @ params[1])
        >>> program = Program(loss_fn, params, jnp.ones((3, 2)), ["0", "1"])
        >>> first, second = cut(program, [1])
        >>> values = first(first.take(params), program.inputs(jnp.ones((3, 2))))
        >>> values = second(second.take(params), values)
        >>> float(program.returned(values))
        12.0
    """
    ends = (0, *cuts, len(program))
    return tuple(
        program.segment(start, stop) for start, stop in itertools.pairwise(ends)
    )


def join(first: Segment, last: Segment) -> Segment:
    """Make one part of those from the first to the last."""
    return first.program.segment(first.start, last.stop)
