"""Whether the masks of an optimizer come to rest before training ends."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from swapjax.core.types import Params
from swapjax.training.state import (
    State,
    check_state,
    find_states,
    has_masks,
    last_mask_step,
)


def require_settling(
    optimizer: optax.GradientTransformation, state: Any, params: Params, steps: int
) -> None:
    """Raise for masks that would still change after the last update.

    Args:
        optimizer: any.
        state: of it, before the first step.
        params: that it is of.
        steps: calls of ``optimizer.update`` that will be made.

    Raises:
        ValueError: with the updates that there will be, where a wrapper such as
            `optax.MultiSteps` makes one of several steps.
    """
    if not has_masks(state) or last_mask_step(state) < 0:
        return
    states = find_states(state)
    found = _count_updates(optimizer, state, params, steps)
    for one, updates in zip(states, found or [steps] * len(states), strict=True):
        last = last_mask_step(one)
        if last > updates:
            ends = f"training ends after {updates:,}"
            if updates != steps:
                ends = f"the {steps:,} steps of training make only {updates:,}"
            raise ValueError(
                f"optimizer: its masks change until update {last:,}, {ends}"
            )


def require_settling_of(
    optimizer: optax.GradientTransformation, params: Params, steps: int
) -> None:
    """Do as `require_settling` from params; optimizers without masks are not run."""
    try:
        state = jax.eval_shape(optimizer.init, params)
    except Exception:  # training itself will say what it cannot take
        return
    if has_masks(state):
        require_settling(optimizer, optimizer.init(params), params, steps)


def tell(state: Any) -> str:
    """Say what is wrong with the masks in the state of an optimizer; else nothing."""
    if not has_masks(state):
        return ""
    try:
        check_state(state)
    except ValueError as e:
        return str(e)
    return ""


def tell_unsettled(state: Any) -> str:
    """Say after the last step whether mask steps are missing; else nothing."""
    if not has_masks(state):
        return ""
    for found in find_states(state):
        # Of members of an ensemble the one that is behind.
        last, count = last_mask_step(found), int(jnp.min(found.count))
        if count < last:
            return (
                f"masks change until update {last:,}, but training made only {count:,} "
                "updates of them: they are not as sparse as they should be"
            )
        if jnp.any(found.extras["waits"]):
            return (
                "the last mask step still waits for gradients that are finite: masks "
                "are not as sparse as they should be"
            )
    return ""


def _count_updates(
    optimizer: optax.GradientTransformation, state: Any, params: Params, steps: int
) -> list[int] | None:
    """Count the updates that each `sparse` sees of some steps, None if data decide.

    Run with the nodes of params without leaves, where nothing but wrappers is left to
    do; labels and masks of `optax.partition` and its like fit these nodes.
    """
    if isinstance(state, State) and len(find_states(state)) == 1:
        return [steps]
    nodes = jax.tree.map(lambda _: None, params)

    def step(_: Any, state: Any) -> Any:
        return optimizer.update(nodes, state, nodes)[1]

    try:
        start = optimizer.init(nodes)
        end = jax.jit(lambda s: jax.lax.fori_loop(0, steps, step, s))(start)
        counts = [int(jnp.min(found.count)) for found in find_states(end)]
    except Exception:  # whatever a wrapper makes of a tree without leaves
        return None
    return counts if len(counts) == len(find_states(state)) else None
