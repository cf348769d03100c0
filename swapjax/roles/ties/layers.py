"""Units of stacked layers that each layer may choose for itself.

The hidden units of a layer are in no order that another layer knows. Where a loop goes
over a stack of layers, each may lose other ones of them, as long as it loses as many.
"""

from collections import Counter
from collections.abc import Iterable

import numpy as np

from swapjax.roles.program.primitives import SAME, scan_counts
from swapjax.roles.ties.state import Axes
from swapjax.roles.ties.steps import Step, Steps, every_step


def free_units(program: Steps, labels: dict[int, Axes]) -> dict[int, int]:
    """Find units that only one loop over stacked arrays knows.

    Args:
        program: of the function.
        labels: the unit of each place along each axis of each value.

    Returns:
        The number of layers, by unit.
    """
    makers = {n: step for step in program.steps for n in step.makes}
    everywhere = _count(labels, labels)
    found: dict[int, int] = {}
    for step in program.steps:
        if step.name != "scan":
            continue
        (body,) = step.inner
        consts, carries = scan_counts(step.equation)
        stacks = {
            number
            for start in step.reads[consts + carries :]
            for number in _shown(start, makers)
        }
        inside = _values(body)
        shared = {
            *body.inputs[: consts + carries],
            *body.outputs,
            *body.constants,
            *_nested(body),
            *(stacks & program.constants.keys()),  # of which nothing else is kept
        }
        own = _count(labels, stacks | inside)
        known = _count(labels, shared)
        for unit, count in own.items():
            if unit and count == everywhere[unit] and unit not in known:
                found[unit] = step.equation.params["length"]
    return found


def _shown(number: int, makers: dict[int, Step]) -> list[int]:
    """List what a stacked value was before it was cast."""
    found = [number]
    while number in makers and makers[number].name in SAME:
        number = makers[number].reads[0]
        found.append(number)
    return found


def _values(program: Steps) -> set[int]:
    """List the values of a program, and of those within it."""
    found = {*program.inputs, *program.constants}
    for step in every_step(program):
        found.update(step.makes)
        for inner in step.inner:
            found.update(inner.inputs, inner.constants)
    return found


def _nested(program: Steps) -> set[int]:
    """List the values of programs within a program."""
    return {n for s in program.steps for inner in s.inner for n in _values(inner)}


def _count(labels: dict[int, Axes], numbers: Iterable[int]) -> Counter[int]:
    """Count the values that each unit is in."""
    found: Counter[int] = Counter()
    for number in set(numbers):
        units: set[int] = set()
        for axis in labels.get(number, ()):
            units.update(np.unique(axis).tolist())
        found.update(units)
    return found
