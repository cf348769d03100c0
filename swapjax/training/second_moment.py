"""The running mean of squared gradients that Adam and its like keep."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from swapjax.core.holes import is_masked
from swapjax.core.types import Params


def second_moment(state: Any, params: Params) -> Params:
    """Find the second moment in the state of an optimizer.

    Args:
        state: of an optimizer, wrapped or chained.
        params: that it is of.

    Returns:
        With the tree of params; zero for leaves that the optimizer passes over.

    Raises:
        ValueError: for a state without such a mean, with several, or with one that does
            not have the shapes of params.
    """
    try:
        found = optax.tree.get(state, "nu")
    except KeyError:  # there are several
        told = "several"
    else:
        told = "none" if found is None else ""
    if told:
        raise ValueError(
            "optimizer: elsa weighs by the mean of squared gradients that Adam keeps, "
            f"and its state holds {told} of the name nu; take optax.adam or "
            "optax.adamw for all of params"
        )

    def of(param: Any, moment: Any) -> Any:
        passed_over = is_masked(moment) and not is_masked(param)
        return jnp.zeros_like(param) if passed_over else moment

    try:
        moments = jax.tree.map(of, params, found, is_leaf=is_masked)
        fits = jax.tree.map(jnp.shape, moments) == jax.tree.map(jnp.shape, params)
    except ValueError:  # it has another tree
        fits = False
    if not fits:
        raise ValueError(
            "optimizer: the nu of its state does not have the tree and the shapes of "
            "params; elsa takes optax.adam or optax.adamw, of all of params"
        )
    return moments
