"""Trace a function, and tie what it ties."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from swapjax.core import trees
from swapjax.core.static_leaves import are_arrays
from swapjax.core.types import Params
from swapjax.roles.ties.reshape import resolve
from swapjax.roles.ties.state import Axes, Meeting, State
from swapjax.roles.ties.steps import Steps, every_step
from swapjax.roles.ties.ties import Ties
from swapjax.roles.ties.trace import trace
from swapjax.roles.ties.union import Union
from swapjax.roles.ties.walk import walk

_INPUTS = "meets an axis of the inputs"
_RESULT = "is an axis of the result"
_REDUCED = ("is reduced by", "is mixed by", "has its places counted")


def find_ties(function: Callable[..., Any], params: Params, *inputs: Any) -> Ties:
    """Find what lives or dies together in a network.

    From shapes alone: nothing is computed.

    Args:
        function: ``(params, *inputs) -> any pytree``, such as a loss or what makes
            logits.
        params: the network, a pytree of arrays or of their shapes and dtypes.
        *inputs: examples of what else the function takes, or shapes and dtypes.

    Returns:
        Groups of units, and what products cost without some of them.

    Raises:
        ValueError: for a function that asks for the values of arrays.

    Example:
        >>> import jax.numpy as jnp
        >>> from swapjax.roles.ties import find_ties
        >>> params = {"in": jnp.zeros((3, 8)), "out": jnp.zeros((8, 2))}
        >>> apply = lambda p, x: jnp.tanh(x @ p["in"]) @ p["out"]
        >>> print(*find_ties(apply, params, jnp.zeros((1, 3))).groups)
        8 units of in: in[axis 1], out[axis 0]
    """
    if not callable(function):
        raise ValueError(
            f"function must take params and inputs and return arrays, got {function!r}"
        )
    steps, result = trace(function, params, *inputs)
    leaves, treedef = jax.tree.flatten(params)
    traced = are_arrays(leaves)
    state = State(steps)
    count = sum(traced)
    operands = [state.fresh(steps.shapes[number]) for number in steps.inputs]
    names = trees.paths(inputs)
    for name, axes in zip(names, operands[count:], strict=True):
        for labels in axes:
            state.union.pin(labels, f"{_INPUTS} ({name})")
    for axes in walk(steps, operands, state):
        for labels in axes:
            state.union.pin(labels, _RESULT)
    for meeting in state.meetings:
        _meet(meeting, state.union)
    _pin_unused(steps, operands[:count], state)
    _pin_constants(steps, operands[:count], state)
    for reshape in state.reshapes:
        resolve(reshape, state.union)
    _pin_unread(operands[:count], state)
    numbers = iter(steps.inputs)
    return Ties(
        paths=trees.paths(params),
        shapes=tuple(
            tuple(np.shape(x)) if a else () for x, a in zip(leaves, traced, strict=True)
        ),
        program=steps,
        leaves=tuple(next(numbers) if is_array else None for is_array in traced),
        labels=_roots(state),
        sites=tuple(state.sites),
        result=result,
        tree=treedef,
        _state=state,
    )


def _meet(meeting: Meeting, union: Union) -> None:
    """Tie two axes that meet in a product.

    What a softmax has made, as the weights of experts, stays, though experts may go:
    the other side may lose places then, and what stays is taken for the product.
    """
    left, right, made = meeting
    sides = [(left, right), (right, left)]
    for fixed, other in sides:
        if union.is_pinned(fixed) and not union.is_pinned(other):
            why = union.reasons(fixed)
            if all(reason.startswith(_REDUCED) for reason in why):
                if made is not None:
                    union.tie(made, other)
                return
    union.tie(left, right)
    if made is not None:
        union.tie(made, left)


def _pin_unused(program: Steps, leaves: list[Axes], state: State) -> None:
    """Pin leaves that nothing reads."""
    read = {number for step in every_step(program) for number in step.reads}
    read.update(program.outputs)
    for number, axes in zip(program.inputs, leaves, strict=False):
        for labels in axes if number not in read else ():
            state.union.pin(labels, "is not used by the function")


def _pin_unread(leaves: list[Axes], state: State) -> None:
    """Pin places that no sum runs over.

    As those of a table of positions, of which inputs of this length take a part.
    """
    summed = [
        state.labels[site.step.reads[site.which]][axis]
        for site in state.sites
        for axis in site.axes
    ]
    read = np.unique(np.concatenate([*map(state.union.roots, summed), np.zeros(1)]))
    for axes in leaves:
        for labels in axes:
            unread = ~np.isin(state.union.roots(labels), read)
            state.union.pin(labels[unread], "is read by no product and no sum")


def _pin_constants(program: Steps, leaves: list[Axes], state: State) -> None:
    """Pin places of constants that no leaf has."""
    own = [state.union.roots(labels) for axes in leaves for labels in axes]
    known = np.unique(np.concatenate([*own, np.zeros(1, np.int64)]))
    for number in (*program.constants, *_within(program)):
        for labels in state.labels[number]:
            alone = ~np.isin(state.union.roots(labels), known)
            state.union.pin(labels[alone], "belongs to a constant")


def _within(program: Steps) -> list[int]:
    """List the constants of loops and branches."""
    parts = [inner for step in every_step(program) for inner in step.inner]
    return [number for part in parts for number in part.constants]


def _roots(state: State) -> dict[int, Axes]:
    """Give each place the number of its unit."""
    known: dict[int, np.ndarray] = {}

    def root(labels: np.ndarray) -> np.ndarray:
        if id(labels) not in known:
            known[id(labels)] = state.union.roots(labels)
        return known[id(labels)]

    return {number: tuple(map(root, axes)) for number, axes in state.labels.items()}
