"""One function of many batches."""

from collections.abc import Callable
from typing import Any

import jax


def over_batches(
    work: Callable[[Any], Any], batches: Any, *, one_by_one: bool = False
) -> Any:
    """Apply a function to each of some batches, all at once where JAX can.

    One after the other where it has no rule for that, as for ``jax.lax.ragged_dot`` of
    rows of several batches with the same experts.

    Args:
        work: of one batch.
        batches: a pytree of arrays with a leading axis of batches.
        one_by_one: whether to apply it to one after the other in any case.

    Returns:
        What it returned, stacked.
    """
    if one_by_one:
        return jax.lax.map(work, batches)
    try:
        return jax.vmap(work)(batches)
    except NotImplementedError:
        return jax.lax.map(work, batches)
