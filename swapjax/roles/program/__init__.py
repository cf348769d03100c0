"""Find what each leaf of params does from the program of the loss.

The loss is traced for shapes alone, and its program walked with two things known of
each variable: whether it depends on data, and which leaves it shows (`views`). What is
made of weights alone (casts, masks, scales, transposes, slices, concatenations) is
followed; where it is multiplied with data, the product tells what each axis does. A
leaf that is looked up by data is a table, one that meets data entry by entry a vector.
What happens to a leaf without data, as in a penalty, tells nothing.
"""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from swapjax.core import sharding, trees
from swapjax.core.static_leaves import are_arrays, of_arrays
from swapjax.core.types import LossFn, Params
from swapjax.roles.program.heads import find_heads
from swapjax.roles.program.uses import Uses
from swapjax.roles.program.values import Scope, Value
from swapjax.roles.program.views import whole
from swapjax.roles.program.walk import walk
from swapjax.roles.role import Role

NO_ARRAY = Role("unknown", reason="is no array")
_VALUES = (
    jax.errors.ConcretizationTypeError,
    jax.errors.NonConcreteBooleanIndexError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)


def trace_roles(loss_fn: LossFn, params: Params, batch: Any) -> tuple[Role, ...]:
    """Tell what each leaf of params does in the program of a loss.

    From shapes alone: nothing is computed, and no array is made. What is not in params
    and not in the batch is no data, unless no leaf meets the batch: then the arrays
    that the loss closes over are.

    Args:
        loss_fn: ``loss_fn(params, batch)``, the mean loss of a batch.
        params: the network, any pytree of arrays or of their shapes and dtypes, as
            `jax.ShapeDtypeStruct` has them. Functions and switches of a whole Equinox
            module stay as they are.
        batch: what ``loss_fn`` takes, arrays or shapes and dtypes.

    Returns:
        One role a leaf, in the order of ``jax.tree.leaves``. A leaf that two products
        use in different ways, as a head tied to an embedding, is ``"unknown"``, and
        the reason names both; so is one that meets no data.

    Raises:
        ValueError: for a loss that is none or asks for the values of arrays while it is
            traced, and a batch that does not hold arrays. What a loss raises by itself
            says for which shapes it was traced.

    Example:
        >>> import jax.numpy as jnp
        >>> from swapjax.roles.program import trace_roles
        >>> params = {"bias": jnp.zeros(4), "kernel": jnp.zeros((8, 4))}
        >>> loss = lambda p, x: jnp.mean((x @ p["kernel"] + p["bias"]) ** 2)
        >>> bias, kernel = trace_roles(loss, params, jnp.zeros((2, 8)))
        >>> bias.kind, kernel.kind, kernel.axes
        ('vector', 'matrix', ('input', 'output'))
    """
    if not callable(loss_fn):
        raise ValueError(
            f"loss_fn must be a function of params and a batch, got {loss_fn!r}"
        )
    _require_arrays(batch)
    arrays, loss_of = of_arrays(loss_fn, params)
    program = _trace(loss_of, arrays, batch)
    shapes = tuple(map(np.shape, arrays))
    inputs = [Value(views=(whole(i, shape),)) for i, shape in enumerate(shapes)]
    inputs += [Value(data=True)] * len(jax.tree.leaves(batch))
    uses = Uses()
    walk(program, inputs, Scope(shapes, uses))
    if not uses:
        # The loss has its data from elsewhere than the batch.
        walk(program, inputs, Scope(shapes, uses), constant=Value(data=True))
    heads = find_heads(program, len(shapes), len(inputs) - len(shapes))
    roles = (_with_head(uses.role(i), i in heads) for i in itertools.count())
    traced = are_arrays(jax.tree.leaves(params))
    return tuple(next(roles) if is_array else NO_ARRAY for is_array in traced)


def _with_head(role: Role, is_head: bool) -> Role:
    if is_head and role.kind == "matrix":
        return dataclasses.replace(role, is_output_head=True)
    return role


def _trace(loss_fn: Callable[..., Any], arrays: list[Any], batch: Any) -> Any:
    """Make the program of a loss, or tell why there is none."""
    try:
        # Loops are to be seen as such, whoever looks into theirs step by step.
        with jax.disable_jit(False):
            try:
                return jax.make_jaxpr(loss_fn)(arrays, batch)
            except Exception:
                if not sharding.is_explicit((arrays, batch)):
                    raise
            # Most losses leave it to the compiler where arrays lie.
            return jax.make_jaxpr(loss_fn)(*sharding.anywhere((arrays, batch)))
    except _VALUES as error:
        first = str(error).strip().splitlines()[0]
        raise ValueError(
            "loss_fn: must be traceable by jax.jit for roles to be found, but asks for "
            f"the values of arrays ({first}); without loss_fn, names and axes= tell"
        ) from error
    except Exception as error:
        shapes = ", ".join(
            f"{getattr(x, 'dtype', type(x).__name__)}{list(np.shape(x))}"
            for x in jax.tree.leaves(batch)
        )
        error.add_note(
            f"loss_fn was traced for a batch of {shapes or 'nothing'}, to see what "
            "each leaf of params does"
        )
        raise


def _require_arrays(batch: Any) -> None:
    """Raise for what is neither an array nor a number."""
    for path, leaf in zip(trees.paths(batch), jax.tree.leaves(batch), strict=True):
        try:
            jax.eval_shape(lambda x: x, leaf)
        except TypeError:
            kind = f" of {leaf.dtype}" if hasattr(leaf, "dtype") else ""
            raise ValueError(
                f"batch: {path or 'it'} must be an array of numbers, got a "
                f"{type(leaf).__name__}{kind}"
            ) from None
