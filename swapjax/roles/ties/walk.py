"""Walk through a program, and tie the places along all axes of all its values."""

from collections.abc import Sequence

from swapjax.roles.program.primitives import scan_counts
from swapjax.roles.ties.rules import RULES
from swapjax.roles.ties.state import Axes, State
from swapjax.roles.ties.steps import Step, Steps

_STACK = "counts the layers of a stack, or the steps of a loop"


def walk(program: Steps, operands: Sequence[Axes], state: State) -> list[Axes]:
    """Read all steps of a program, and tell the labels of its results."""
    state.labels.update(zip(program.inputs, operands, strict=True))
    for number in program.constants:
        state.labels[number] = state.fresh(state.shapes[number])
    for step in program.steps:
        rule = _LOOPS.get(step.name) or RULES.get(step.name, State.unknown)
        made = rule(state, step, [state.labels[number] for number in step.reads])
        state.labels.update(zip(step.makes, made, strict=True))
    return [state.labels[number] for number in program.outputs]


def _scan(state: State, step: Step, operands: Sequence[Axes]) -> list[Axes]:
    """Tie what a loop carries to itself; slices share their units."""
    (body,) = step.inner
    consts, carries = scan_counts(step.equation)
    inside = list(operands[: consts + carries])
    for axes in operands[consts + carries :]:
        state.union.pin(axes[0], _STACK)
        inside.append(axes[1:])
    results = walk(body, inside, state)
    for before, after in zip(inside[consts:], results[:carries], strict=False):
        state.tie(before, after)
    stacked = []
    for number, axes in zip(step.makes[carries:], results[carries:], strict=True):
        length = state.shapes[number][0]
        stacked.append((*state.fresh((length,), _STACK), *axes))
    return [*results[:carries], *stacked]


def _while(state: State, step: Step, operands: Sequence[Axes]) -> list[Axes]:
    """Tie what a loop carries to itself."""
    condition, body = step.inner
    first = step.equation.params["cond_nconsts"]
    second = step.equation.params["body_nconsts"]
    carry = operands[first + second :]
    walk(condition, [*operands[:first], *carry], state)
    results = walk(body, operands[first:], state)
    for before, after in zip(carry, results, strict=True):
        state.tie(before, after)
    return results


def _cond(state: State, step: Step, operands: Sequence[Axes]) -> list[Axes]:
    """Tie the results of all branches."""
    found = [walk(branch, operands[1:], state) for branch in step.inner]
    for other in found[1:]:
        for before, after in zip(found[0], other, strict=True):
            state.tie(before, after)
    return found[0]


_LOOPS = {"scan": _scan, "while": _while, "cond": _cond}
