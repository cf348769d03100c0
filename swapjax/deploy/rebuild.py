"""Evaluate a program for smaller arrays: the sizes that it has written in it change."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from swapjax.core import programs
from swapjax.roles.program.primitives import scan_counts
from swapjax.roles.ties.state import Axes
from swapjax.roles.ties.steps import Step, Steps


@dataclasses.dataclass(frozen=True, eq=False)
class Smaller:
    """A program without some units.

    Attributes:
        program: for all units.
        labels: the unit of each place along each axis of each value.
        removed: bool, by the number of a unit.
    """

    program: Steps
    labels: dict[int, Axes]
    removed: np.ndarray

    def kept(self, number: int) -> tuple[np.ndarray, ...]:
        """List the places along each axis of a value that stay."""
        return tuple(np.flatnonzero(~self.removed[x]) for x in self.labels[number])

    def shape(self, number: int) -> tuple[int, ...]:
        """Tell the shape of a value without what is removed."""
        return tuple(int(np.sum(~self.removed[x])) for x in self.labels[number])

    def cut(self, number: int, array: Any) -> Any:
        """Take what stays out of an array."""
        return cut(array, self.kept(number))

    def evaluate(self, inputs: Sequence[Any]) -> list[Any]:
        """Evaluate the program with arrays of which only what stays is left."""
        return self._run(self.program, inputs)

    def _run(self, program: Steps, inputs: Sequence[Any]) -> list[Any]:
        values: dict[int, Any] = dict(zip(program.inputs, inputs, strict=True))
        for number, array in program.constants.items():
            values[number] = self.cut(number, array)
        for step in program.steps:
            operands = [values[number] for number in step.reads]
            values.update(zip(step.makes, self._do(step, operands), strict=True))
        return [values[number] for number in program.outputs]

    def _do(self, step: Step, operands: list[Any]) -> Sequence[Any]:
        if step.inner:
            return _LOOPS[step.name](self, step, operands)
        if step.name == "slice":
            return [self._slice(step, operands[0])]
        if step.name == "dot_general":
            operands = self._matched(step, operands)
        params = dict(step.equation.params)
        change = _CHANGES.get(step.name)
        if change is not None:
            change(self, step, params)
        return programs.bind(step.equation, operands, params)

    def _matched(self, step: Step, operands: list[Any]) -> list[Any]:
        """Take the places that both factors have where they meet."""
        summed, batch = step.equation.params["dimension_numbers"]
        kept = [self.kept(number) for number in step.reads]
        operands = list(operands)
        for pairs in (summed, batch):
            for axes in zip(*pairs, strict=True):
                both = np.intersect1d(kept[0][axes[0]], kept[1][axes[1]])
                for which, axis in enumerate(axes):
                    own = kept[which][axis]
                    if len(own) > len(both):
                        there = np.searchsorted(own, both)
                        operands[which] = jnp.take(operands[which], there, axis=axis)
        return operands

    def _slice(self, step: Step, x: Any) -> Any:
        """Take the places that stay, which may lie at other distances."""
        params = step.equation.params
        strides = params["strides"] or (1,) * x.ndim
        starts = params["start_indices"]
        before, after = self.kept(step.reads[0]), self.kept(step.makes[0])
        for i in range(x.ndim):
            there = np.searchsorted(before[i], starts[i] + after[i] * strides[i])
            if np.array_equal(there, np.arange(x.shape[i])):
                continue
            gaps = np.diff(there)
            if len(there) and (gaps == 1).all():
                x = jax.lax.slice_in_dim(x, there[0], there[-1] + 1, axis=i)
            elif len(gaps) and (gaps == gaps[0]).all():
                x = jax.lax.slice_in_dim(
                    x, there[0], there[-1] + 1, int(gaps[0]), axis=i
                )
            else:
                x = jnp.take(x, there, axis=i)
        return x

    def _scan(self, step: Step, operands: list[Any]) -> Sequence[Any]:
        (body,) = step.inner
        consts, carries = scan_counts(step.equation)
        fixed, carry = operands[:consts], operands[consts : consts + carries]

        def once(carry: list[Any], slices: list[Any]) -> tuple[list[Any], list[Any]]:
            results = self._run(body, [*fixed, *carry, *slices])
            return results[:carries], results[carries:]

        params = step.equation.params
        carry, stacks = jax.lax.scan(
            once,
            carry,
            operands[consts + carries :],
            length=params["length"],
            reverse=params["reverse"],
            unroll=params["unroll"],
        )
        return [*carry, *stacks]

    def _while(self, step: Step, operands: list[Any]) -> Sequence[Any]:
        condition, body = step.inner
        first = step.equation.params["cond_nconsts"]
        second = first + step.equation.params["body_nconsts"]
        asked, fixed = operands[:first], operands[first:second]
        return jax.lax.while_loop(
            lambda carry: self._run(condition, [*asked, *carry])[0],
            lambda carry: self._run(body, [*fixed, *carry]),
            operands[second:],
        )

    def _cond(self, step: Step, operands: list[Any]) -> Sequence[Any]:
        branches: list[Callable] = [
            lambda *inputs, branch=branch: self._run(branch, inputs)
            for branch in step.inner
        ]
        return jax.lax.switch(operands[0], branches, *operands[1:])


def cut(array: Any, kept: Sequence[np.ndarray]) -> Any:
    """Take places along each axis out of an array."""
    for axis, places in enumerate(kept):
        if len(places) != array.shape[axis]:
            taken = np.take if isinstance(array, np.ndarray) else jnp.take
            array = taken(array, places, axis=axis)
    return array


def taken(array: np.ndarray, kept: Sequence[np.ndarray]) -> np.ndarray:
    """Take places out of an array along each axis, of which layers may have their own.

    Args:
        array: of params, or like them.
        kept: places along each axis; int [layers, places] where the first axis of the
            array counts layers.
    """
    for axis, places in enumerate(kept):
        if places.ndim == 2:
            sides = [1] * array.ndim
            sides[0], sides[axis] = places.shape
            array = np.take_along_axis(array, places.reshape(sides), axis)
    return np.asarray(cut(array, [x[0] if x.ndim == 2 else x for x in kept]))


def _shape(name: str) -> Callable[[Smaller, Step, dict[str, Any]], None]:
    """Make the change of a step that is told the shape of its result."""

    def change(smaller: Smaller, step: Step, params: dict[str, Any]) -> None:
        params[name] = smaller.shape(step.makes[0])

    return change


def _pad(smaller: Smaller, step: Step, params: dict[str, Any]) -> None:
    """Pad by the places that stay of those that were added."""
    config = []
    pairs = zip(params["padding_config"], smaller.labels[step.makes[0]], strict=True)
    for (low, high, inner), labels in pairs:
        if not inner and low >= 0 <= high:
            stay = ~smaller.removed[labels]
            low, high = int(stay[:low].sum()), int(stay[len(stay) - high :].sum())
        config.append((low, high, inner))
    params["padding_config"] = tuple(config)


def _gather(smaller: Smaller, step: Step, params: dict[str, Any]) -> None:
    whole = smaller.program.shapes[step.reads[0]]
    new = smaller.shape(step.reads[0])
    params["slice_sizes"] = tuple(
        new[i] if size == whole[i] else size
        for i, size in enumerate(params["slice_sizes"])
    )


def _convolution(smaller: Smaller, step: Step, params: dict[str, Any]) -> None:
    groups, numbers = params["feature_group_count"], params["dimension_numbers"]
    if groups > 1:
        channel = numbers.lhs_spec[1]
        old = smaller.program.shapes[step.reads[0]][channel]
        new = smaller.shape(step.reads[0])[channel]
        params["feature_group_count"] = groups * new // old


def _split(smaller: Smaller, step: Step, params: dict[str, Any]) -> None:
    axis = params["axis"]
    params["sizes"] = tuple(smaller.shape(n)[axis] for n in step.makes)


_CHANGES: dict[str, Callable[[Smaller, Step, dict[str, Any]], None]] = {
    "broadcast_in_dim": _shape("shape"),
    "conv_general_dilated": _convolution,
    "dynamic_slice": _shape("slice_sizes"),
    "gather": _gather,
    "iota": _shape("shape"),
    "pad": _pad,
    "reshape": _shape("new_sizes"),
    "split": _split,
}
_LOOPS: dict[str, Callable[[Smaller, Step, list[Any]], Sequence[Any]]] = {
    "cond": Smaller._cond,
    "scan": Smaller._scan,
    "while": Smaller._while,
}
