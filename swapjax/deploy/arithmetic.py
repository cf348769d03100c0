"""What is known of steps that work entry by entry."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from swapjax.core import programs
from swapjax.deploy.known import Known, masked, nothing
from swapjax.roles.ties.steps import Shape, Step

_NUMPY: dict[str, Callable[..., Any]] = {
    "abs": np.abs,
    "add": np.add,
    "add_any": np.add,
    "copy": lambda x: x,
    "div": np.divide,
    "exp": np.exp,
    "log": np.log,
    "max": np.maximum,
    "min": np.minimum,
    "mul": np.multiply,
    "neg": np.negative,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "sqrt": np.sqrt,
    "square": np.square,
    "stop_gradient": lambda x: x,
    "sub": np.subtract,
    "tanh": np.tanh,
}


def entry_by_entry(step: Step, operands: Sequence[Known], shape: Shape) -> Known:
    """Do a step where its operands are known; a zero makes a product zero.

    Args:
        step: of those that keep every entry in its place.
        operands: what it takes.
        shape: of its result.
    """
    if step.name == "select_n":
        return _selected(operands, shape)
    zero = _zero(step.name, operands)
    known = operands[0].known
    for other in operands[1:]:
        known = known & other.known
    if not known.any() and not np.any(zero):
        return nothing(shape)
    value = _done(step, [x.value for x in operands])
    if value is None:
        return nothing(shape)
    value = np.reshape(value, (1,) * (len(shape) - np.ndim(value)) + np.shape(value))
    known = np.reshape(known, (1,) * (len(shape) - np.ndim(known)) + np.shape(known))
    found = masked(value, known | zero, shape)
    if not np.any(zero):
        return found
    return masked(np.where(zero, 0, found.value), found.known, shape)


def _zero(name: str, operands: Sequence[Known]) -> Any:
    """Mark where a factor is zero, which makes a product zero."""
    if name == "mul" and len(operands) == 2:
        return operands[0].zero | operands[1].zero
    if name == "div":
        return operands[0].zero & ~operands[1].known
    return False


def _done(step: Step, values: list[np.ndarray]) -> Any:
    """Do a step with NumPy, or with JAX."""
    dtype = step.equation.outvars[0].aval.dtype  # type: ignore[attr-defined]
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        if step.name in _NUMPY and dtype.kind == "f":
            return _NUMPY[step.name](*values)
        if jnp.issubdtype(dtype, jax.dtypes.extended):
            return None
        if step.name == "convert_element_type" and dtype.kind in "biu":
            return values[0].astype(dtype)
        if step.name == "convert_element_type":
            return values[0].astype(np.float32) if dtype.kind != "c" else values[0]
        wanted = [v.aval.dtype for v in step.equation.invars]  # type: ignore[attr-defined]
        same = [
            x.astype(d)
            for x, d in zip(np.broadcast_arrays(*values), wanted, strict=True)
        ]
        (made,) = programs.bind(step.equation, same)
        made = np.asarray(made)
        return made if made.dtype.kind in "biufc" else made.astype(np.float32)


def _selected(operands: Sequence[Known], shape: Shape) -> Known:
    """Choose by a condition, as far as it is known or does not matter."""
    which, *cases = operands
    sides = np.broadcast_shapes(
        which.value.shape, which.known.shape, *(c.value.shape for c in cases)
    )
    sides = np.broadcast_shapes(sides, *(c.known.shape for c in cases))
    chosen = np.broadcast_to(which.value, sides).astype(int)
    values = [np.broadcast_to(c.value, sides) for c in cases]
    told = [np.broadcast_to(c.known, sides) for c in cases]
    known = np.choose(chosen, told) & which.known
    same = np.logical_and.reduce(
        [k & (v == values[0]) for v, k in zip(values, told, strict=True)]
    )
    return masked(np.choose(chosen, values), known | same, shape)
