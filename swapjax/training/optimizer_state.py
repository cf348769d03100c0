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
    moments of Adafactor, stay as they are: they belong to rows and columns. A history
    of some such arrays along an axis in front, as that of L-BFGS, is reset whole.

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
    kept = _marks(optimizer, state, masks)
    return jax.tree.map(
        lambda keep, now, new: now if keep is True else jnp.where(keep, now, new),
        kept,
        state,
        optimizer.init(params),
    )


def _marks(optimizer: optax.GradientTransformation, state: Any, masks: Masks) -> Any:
    """Find the mask of each array of a state; True for one that has none."""
    # A masked optimizer has a hole for each of the leaves it does not treat.
    is_hole = lambda v: isinstance(v, optax.MaskedNode)  # noqa: E731
    mark = lambda v, m: v if is_hole(v) else _mark(v, m)  # noqa: E731
    try:
        return optax.tree.map_params(
            optimizer,
            mark,
            state,
            masks,
            transform_non_params=lambda _: True,
            is_leaf=is_hole,
        )
    except (ValueError, TypeError) as e:
        raise ValueError(
            "optimizer: its state does not have the tree of params, by which moments "
            f"of inactive weights are found: {e}"
        ) from e
    except IndexError:
        # A line search makes no state of params without leaves, by which Optax looks.
        tree: object = jax.tree.structure(masks)
        is_like = lambda v: jax.tree.structure(v) == tree  # noqa: E731
        return jax.tree.map(
            lambda v: jax.tree.map(_mark, v, masks) if is_like(v) else True,
            state,
            is_leaf=is_like,
        )


def _mark(value: Any, mask: jax.Array) -> Any:
    """Tell which entries of an array are those of active weights."""
    shape, wanted = jnp.shape(value), jnp.shape(mask)
    # A few past ones, one after the other, as those of L-BFGS.
    fits = wanted and (shape == wanted or shape[1:] == wanted)
    return mask if fits else True
