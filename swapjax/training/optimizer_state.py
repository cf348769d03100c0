"""What an optimizer remembers of weights that are not there."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from swapjax.core.types import Masks, Params


def forget(
    optimizer: optax.GradientTransformation, state: Any, masks: Masks, params: Params
) -> Any:
    """Make moments of inactive weights what they are at first.

    Which arrays of a state belong to weights is found by `optax.tree.map_params`, for
    any optimizer. Those that are not shaped like their weights, as the factored moments
    of Adafactor, are left alone: they belong to rows and columns.

    Args:
        optimizer: that the state is of.
        state: of the optimizer.
        masks: where weights are active.
        params: zero where they are not.

    Raises:
        ValueError: for an optimizer whose state cannot be told by params.

    Returns:
        The state; every array of it that has the shape of a leaf is as ``init`` makes
        it where the leaf's mask is False.
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
            "optimizer: its state does not lie as params do, which is how moments of "
            f"weights that are gone are found: {e}"
        ) from e
    return jax.tree.map(
        lambda keep, now, new: now if keep is True else jnp.where(keep, now, new),
        kept,
        state,
        optimizer.init(params),
    )
