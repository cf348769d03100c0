"""Moments of inactive weights in the state of any optimizer."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from swapjax.core.types import Masks, Params


def forget(
    optimizer: optax.GradientTransformation, state: Any, masks: Masks, params: Params
) -> Any:
    """Reset the moments of inactive weights to their initial values.

    `optax.tree.map_params` finds the arrays of a state that belong to weights, for any
    optimizer. Those that do not have the shape of their weights, such as the factored
    moments of Adafactor, stay as they are: they belong to rows and columns.

    Args:
        optimizer: the transformation that the state belongs to.
        state: of the optimizer.
        masks: where weights are active.
        params: zero where they are not.

    Returns:
        The state; each of its arrays that has the shape of a leaf is as ``init`` makes
        it where the mask of the leaf is False.

    Raises:
        ValueError: for an optimizer whose state does not follow the tree of params.
    """

    def remember(value: Any, mask: jax.Array) -> Any:
        fits = jnp.ndim(mask) and jnp.shape(value) == jnp.shape(mask)
        return mask if fits else True

    try:
        kept = optax.tree.map_params(
            optimizer,
            # A masked optimizer has a hole for each of the leaves it does not treat.
            lambda v, m: v if isinstance(v, optax.MaskedNode) else remember(v, m),
            state,
            masks,
            transform_non_params=lambda _: True,
            is_leaf=lambda v: isinstance(v, optax.MaskedNode),
        )
    except (ValueError, TypeError) as e:
        raise ValueError(
            "optimizer: its state does not have the tree of params, by which moments "
            f"of inactive weights are found: {e}"
        ) from e
    return jax.tree.map(
        lambda keep, now, new: now if keep is True else jnp.where(keep, now, new),
        kept,
        state,
        optimizer.init(params),
    )
