"""Leaves of params that no optimizer moves: integers, bools, PRNG keys."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from swapjax.core import keys
from swapjax.core.holes import is_masked
from swapjax.core.trees import is_trained
from swapjax.core.types import Params


def pass_over_constants(
    optimizer: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Show an optimizer only the leaves of params that have gradients.

    It finds holes in place of the others, as under `optax.masked`, and these get zero
    for an update. Params that hold nothing else reach it as they are.
    """
    inner = optax.with_extra_args_support(optimizer)

    def init(params: Params) -> Any:
        return inner.init(_with_holes(params, params))

    def update(
        gradients: Params, state: Any, params: Params | None = None, **extra: Any
    ) -> tuple[Params, Any]:
        if _all_are_trained(params):
            return inner.update(gradients, state, params, **extra)
        seen, weights = _with_holes(gradients, params), _with_holes(params, params)
        updates, state = inner.update(seen, state, weights, **extra)
        filled = jax.tree.map(
            lambda u, p: _nothing(p) if is_masked(u) else u,
            updates,
            params,
            is_leaf=is_masked,
        )
        return filled, state

    return optax.GradientTransformationExtraArgs(init, update)


def _with_holes(tree: Any, params: Params) -> Any:
    """Put holes where params have no gradients."""
    if _all_are_trained(params):
        return tree
    return jax.tree.map(
        lambda p, x: x if not hasattr(p, "dtype") or is_trained(p) else _HOLE,
        params,
        tree,
    )


_HOLE = optax.MaskedNode()


def _all_are_trained(params: Params) -> bool:
    return all(is_trained(x) for x in jax.tree.leaves(params) if hasattr(x, "dtype"))


def _nothing(param: jax.Array) -> Any:
    """Make an update that changes nothing; a key, which adds to nothing, has none."""
    if keys.is_key(param):
        return np.zeros(param.shape, jax.dtypes.float0)
    return jnp.zeros_like(param)
