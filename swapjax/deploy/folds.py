"""Constants that removed units would have added: into the bias that follows.

A unit that is the same for all data, as ``relu(bias)`` of a channel without weights,
adds the same to each output of the next layer. Where a leaf of params is added to, or
subtracted from, this output right away, it can take that over.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from swapjax.deploy import products
from swapjax.deploy.known import Known, constant
from swapjax.deploy.moves import MOVES
from swapjax.roles.ties import Ties
from swapjax.roles.ties.steps import Step, every_step

_CARRIED = frozenset(
    {
        "broadcast_in_dim",
        "convert_element_type",
        "copy",
        "expand_dims",
        "reshape",
        "squeeze",
        "stop_gradient",
    }
)
PADDED = "adds a constant that is another at the rim, where images are padded"
NOWHERE = "adds a constant, and no bias follows that could take it over"


class Fold(NamedTuple):
    """Where a constant may go.

    Attributes:
        step: a product, of data and weights.
        leaf: the number of the leaf that takes what the product loses.
        axis: of the result, which the leaf lies along.
        sign: 1 or -1.
    """

    step: Step
    leaf: int
    axis: int
    sign: int


def find_folds(ties: Ties) -> dict[int, Fold]:
    """Find a leaf for the constants of each product, by the number of its result."""
    readers: dict[int, list[Step]] = {}
    for step in every_step(ties.program):
        for number in step.reads:
            readers.setdefault(number, []).append(step)
    makers = {n: step for step in ties.program.steps for n in step.makes}
    leaves = {number: leaf for leaf, number in enumerate(ties.leaves)}
    found = {}
    for step in ties.program.steps:
        if step.name not in ("dot_general", "conv_general_dilated"):
            continue
        (made,) = step.makes
        after = readers.get(made, [])
        if len(after) != 1 or made in ties.program.outputs or not _is_tied(step, ties):
            continue
        (adding,) = after
        if adding.name not in ("add", "sub") or made not in adding.reads:
            continue
        second = adding.reads.index(made)
        chain, number = _carried(adding.reads[1 - second], makers, readers)
        if number in leaves and len(readers[number]) == 1:
            axis = _axis(chain, ties.program.shapes[number])
            if axis is not None:
                sign = 1 if adding.name == "add" else -1
                found[made] = Fold(step, leaves[number], axis, sign)
    return found


def _is_tied(step: Step, ties: Ties) -> bool:
    """Tell whether both factors lose the same places."""
    sides = [
        [ties.labels[number][axis] for axis in _summed(step, which)]
        for which, number in enumerate(step.reads)
    ]
    return all(np.array_equal(a, b) for a, b in zip(*sides, strict=True))


def _carried(
    number: int, makers: dict[int, Step], readers: dict[int, list[Step]]
) -> tuple[list[Step], int]:
    """Follow a value back to what it shows, through steps that nothing else reads."""
    chain: list[Step] = []
    while number in makers and makers[number].name in _CARRIED:
        if len(readers[number]) != 1:
            break
        chain.insert(0, makers[number])
        number = chain[0].reads[0]
    return chain, number


def _axis(chain: list[Step], shape: tuple[int, ...]) -> int | None:
    """Find the axis of what is shown at the end that a vector lies along."""
    if len(shape) != 1 or shape[0] < 2:
        return None
    shown = constant(np.arange(shape[0]))
    for step in chain:
        if step.name in MOVES:
            wanted = tuple(step.equation.outvars[0].aval.shape)  # type: ignore[attr-defined]
            shown = MOVES[step.name](step, [shown], wanted)
    sides = [i for i, n in enumerate(shown.value.shape) if n > 1]
    return sides[0] if len(sides) == 1 else None


def constant_terms(step: Step, which: int, operand: Known) -> np.ndarray:
    """Mark what of an operand is the same for all data and wherever it is read."""
    if is_padded(step):
        return operand.zero
    own = _summed(step, which)
    others = tuple(i for i in range(len(operand.shape)) if i not in own)
    flat = all(x.shape[i] == 1 for i in others for x in (operand.value, operand.known))
    return operand.known if flat else operand.zero


def is_padded(step: Step) -> bool:
    """Tell whether a convolution has less to sum at the rim."""
    padding = step.equation.params.get("padding", ())
    spread = step.equation.params.get("lhs_dilation", ())
    return any(low or high for low, high in padding) or any(n != 1 for n in spread)


def lost(
    fold: Fold, ties: Ties, operands: Sequence[Known], removed: np.ndarray
) -> np.ndarray:
    """Sum what removed units added to each output.

    Args:
        fold: where.
        ties: of the function.
        operands: of the product.
        removed: bool, by the number of a unit.

    Returns:
        float [outputs].
    """
    gone = []
    for which, operand in enumerate(operands):
        number = fold.step.reads[which]
        own = _summed(fold.step, which)
        value = operand.along(own).value
        stay = np.ones((1,) * value.ndim, bool)
        for axis in own:
            sides = [1] * value.ndim
            sides[axis] = -1
            stay = stay & ~removed[ties.labels[number][axis]].reshape(sides)
        value = np.where(stay, 0, value)
        gone.append(Known(value, np.ones((1,) * value.ndim, bool), operand.shape))
    params = fold.step.equation.params
    shape = ties.program.shapes[fold.step.makes[0]]
    if fold.step.name == "dot_general":
        made = products.dot(gone[0], gone[1], params["dimension_numbers"], shape)
    else:
        made = products.convolution(gone[0], gone[1], params, shape)
    return np.broadcast_to(
        np.moveaxis(made.value, fold.axis, -1).reshape(-1), (shape[fold.axis],)
    )


def _summed(step: Step, which: int) -> tuple[int, ...]:
    numbers = step.equation.params["dimension_numbers"]
    if step.name == "dot_general":
        return tuple(numbers[0][which])
    return (numbers.lhs_spec[1] if which == 0 else numbers.rhs_spec[1],)
