"""Trace a function, and write its program out."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from swapjax.core.static_leaves import of_arrays
from swapjax.core.types import Params
from swapjax.roles.ties.steps import Steps, write_out

_VALUES = (
    jax.errors.ConcretizationTypeError,
    jax.errors.NonConcreteBooleanIndexError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)


def trace(
    function: Callable[..., Any], params: Params, *inputs: Any
) -> tuple[Steps, Any]:
    """Write out the program of a function, from shapes alone.

    Args:
        function: ``(params, *inputs) -> any pytree``.
        params: any pytree of arrays or of their shapes and dtypes.
        *inputs: likewise.

    Returns:
        The program, whose inputs are the arrays of params, then those of inputs; and
        the tree of what it returns.

    Raises:
        ValueError: for a function that asks for the values of arrays.
    """
    arrays, of_list = of_arrays(function, params)
    try:
        with jax.disable_jit(False):
            program, result = jax.make_jaxpr(of_list, return_shape=True)(
                arrays, *inputs
            )
    except _VALUES as error:
        first = str(error).strip().splitlines()[0]
        raise ValueError(
            "function: must be traceable by jax.jit for what depends on each other to "
            f"be found, but asks for the values of arrays ({first})"
        ) from error
    except Exception as error:
        shapes = ", ".join(str(list(np.shape(x))) for x in jax.tree.leaves(inputs))
        error.add_note(
            f"function was traced with params and {len(inputs)} inputs"
            + (f", of shapes {shapes}" if shapes else "")
        )
        raise
    return write_out(program), jax.tree.structure(result)
