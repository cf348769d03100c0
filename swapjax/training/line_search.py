"""Line searches inside of sparse training: the loss along active weights only."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from swapjax.core.members import any_member
from swapjax.core.types import Masks, Params
from swapjax.loops.convolutions.canonical import canonical_convolutions
from swapjax.sparsity.masks import apply_masks


def at_active(
    extra: dict[str, Any],
    gradients: Params,
    params: Params,
    masks: Masks,
    moved: jax.Array,
) -> tuple[Params, dict[str, Any]]:
    """Hold what a line search compares to the active weights.

    Args:
        extra: arguments of the optimizer; ``value``, ``grad`` and ``value_fn`` are
            those that Optax's line searches take.
        gradients: those of the update, dense.
        params: zero where masks are False.
        masks: from now on.
        moved: whether params are not those of the value and the gradients any more,
            ``bool[]``. Then both are taken again, if ``value_fn`` is there.

    Returns:
        Gradients, zero where masks are False, and the arguments that go with them.
    """
    extra = dict(extra)
    value_fn = extra.get("value_fn")
    if value_fn is not None and "value" in extra:
        both = canonical_convolutions(jax.value_and_grad(value_fn))
        taken = {k: extra[k] for k in extra.keys() & _names(value_fn)}
        old = jnp.asarray(extra["value"]), gradients

        def again() -> tuple[jax.Array, Params]:
            new = both(params, **taken)
            return jax.tree.map(
                lambda n, o: jnp.where(moved, n, o).astype(o.dtype), new, old
            )

        extra["value"], gradients = jax.lax.cond(any_member(moved), again, lambda: old)
    seen = apply_masks(gradients, masks)
    if "grad" in extra:
        extra["grad"] = seen
    return seen, extra


def _names(function: Callable) -> set[str]:
    """List the arguments that a function takes beside its first."""
    return set(list(inspect.signature(function).parameters)[1:])
