"""Checks of arguments that many functions share."""

import math
import numbers
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def require_count(name: str, value: Any, least: int = 1) -> None:
    """Raise unless a value is a whole number that is not too small.

    Args:
        name: of the argument.
        value: what was given.
        least: the smallest that will do.

    Raises:
        ValueError: for other than whole numbers, and for those below the least.
    """
    try:
        operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be a whole number, got {value!r}") from None
    if value < least:
        raise ValueError(f"{name} must be {least} or more, got {value}")


def require_fraction(
    name: str, value: Any, *, zero: bool = True, one: bool = False
) -> None:
    """Raise unless a value is a number from 0 to 1.

    Args:
        name: of the argument.
        value: what was given.
        zero: whether 0 will do.
        one: whether 1 will do.

    Raises:
        ValueError: naming the argument.
    """
    fits = isinstance(value, numbers.Real) and 0 <= float(value) <= 1
    if not fits or (value == 0 and not zero) or (value == 1 and not one):
        low, high = "[" if zero else "(", "]" if one else ")"
        raise ValueError(f"{name} must be in {low}0, 1{high}, got {value!r}")


def take_amount(
    name: str, value: Any, otherwise: str = "", *, zero: bool = True
) -> Any:
    """Take a finite number that is not negative.

    Args:
        name: of the argument.
        value: what was given; a traced number is taken as it is.
        otherwise: what else the argument takes, for the error.
        zero: whether 0 will do.

    Returns:
        A float, or the traced number.

    Raises:
        ValueError: for anything else.
    """
    if isinstance(value, jax.core.Tracer):
        return value
    if hasattr(value, "dtype"):
        kinds = jnp.integer, jnp.floating
        real = jnp.ndim(value) == 0 and any(
            jnp.issubdtype(value.dtype, kind) for kind in kinds
        )
    else:
        real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not (real and 0 <= float(value) < math.inf and (zero or value)):
        least = ", 0 or more" if zero else " above 0"
        more = f", {otherwise}" if otherwise else ""
        raise ValueError(f"{name} must be a number{least}{more}, got {value!r}")
    return float(value)


def take_key(key: Any, *, traced: bool = False) -> tuple[str, Any]:
    """Take a PRNG key apart into its kind and its numbers, on the host.

    Args:
        key: one PRNG key; a function that is being compiled may hold it as a constant.
        traced: whether its numbers may be known to a compiled function only. They are
            traced then, too.

    Raises:
        ValueError: for other than one key.
    """
    try:
        kind = str(jax.random.key_impl(key))
        with jax.ensure_compile_time_eval():
            data: Any = jax.random.key_data(key)
        if not (traced and isinstance(data, jax.core.Tracer)):
            data = np.asarray(data)
    except (TypeError, ValueError, AttributeError):
        raise ValueError(f"key must be a JAX PRNG key, got {key!r}") from None
    if data.ndim != 1:
        raise ValueError(f"key must be one PRNG key, got {data.shape[:-1]} of them")
    return kind, data


def require_float(name: str, dtype: Any) -> np.dtype:
    """Raise unless a dtype is one of floats.

    Args:
        name: of the argument.
        dtype: or what stands for one.

    Raises:
        ValueError: naming the argument.
    """
    try:
        found = jnp.dtype(dtype)
    except TypeError:
        raise ValueError(f"{name} must be one of floats, got {dtype!r}") from None
    if not jnp.issubdtype(found, jnp.floating):
        raise ValueError(f"{name} must be one of floats, got {found}")
    return found
