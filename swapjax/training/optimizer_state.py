"""Moments of inactive weights in the state of any optimizer."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from swapjax.core.holes import is_masked
from swapjax.core.types import Masks, Params


def forget(
    optimizer: optax.GradientTransformation,
    state: Any,
    masks: Masks,
    params: Params,
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
    found, treedef = jax.tree.flatten(state)
    fresh, marks = jax.tree.leaves(optimizer.init(params)), jax.tree.leaves(masks)
    result = []
    for i, owner in enumerate(_owners(optimizer, state, params)):
        mask = None if owner is None else marks[owner]
        if mask is None or not mask.ndim:
            result.append(found[i])
            continue
        result.append(jnp.where(mask, found[i], fresh[i]))
    return jax.tree.unflatten(treedef, result)


def _owners(
    optimizer: optax.GradientTransformation, state: Any, params: Params
) -> list[int | None]:
    """Find the leaf of params, by number, that each array of a state follows.

    Raises:
        ValueError: for an optimizer whose state does not follow the tree of params.
    """
    leaves, treedef = jax.tree.flatten(params)
    numbers = jax.tree.unflatten(treedef, range(len(leaves)))
    tree: object = treedef
    # A masked optimizer has a hole for each of the leaves it does not treat.

    def own(value: Any, number: int) -> Any:
        if is_masked(value):
            return value
        shape, wanted = jnp.shape(value), leaves[number].shape
        # A few past ones, one after the other, as those of L-BFGS.
        fits = shape == wanted or shape[1:] == wanted
        return number if wanted and fits else -1

    try:
        found = optax.tree.map_params(
            optimizer,
            own,
            state,
            numbers,
            transform_non_params=lambda _: -1,
            is_leaf=is_masked,
        )
    except (ValueError, TypeError) as e:
        raise ValueError(
            "optimizer: its state does not have the tree of params, by which moments "
            f"of inactive weights are found: {e}"
        ) from e
    except IndexError:
        # A line search makes no state of params without leaves, by which Optax looks.
        is_like = lambda v: jax.tree.structure(v) == tree  # noqa: E731
        found = jax.tree.map(
            lambda v: jax.tree.map(own, v, numbers) if is_like(v) else -1,
            state,
            is_leaf=is_like,
        )
    return [None if number < 0 else number for number in jax.tree.leaves(found)]
