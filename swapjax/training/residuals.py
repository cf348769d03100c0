"""How far weights are from the sparse copy that ADMM draws them to."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from swapjax.core import trees
from swapjax.core.types import Params
from swapjax.training.admm_state import AdmmState
from swapjax.training.state import find_states, masks_of


class Residuals(NamedTuple):
    """How far weights are from being sparse, relative to their norm.

    Attributes:
        primal: ``|x - z| / |x|``, the residual of the constraint that ADMM sums up.
        cut: ``|x - m x| / |x|`` with the masks m: what a cut takes away.
    """

    primal: float
    cut: float


def residuals(state: Any, params: Params) -> Residuals:
    """Measure how far the prunable weights are from what ADMM draws them to.

    Args:
        state: of an optimizer with `swapjax.admm` in it, alone or for parts of params.
        params: the weights after the update that gave it.

    Returns:
        Numbers from 0, not for use under jit; `cut` is at most 1. Members of an
        ensemble are measured together.

    Raises:
        ValueError: for a state without masks, and params of another tree.
    """
    masks = trees.by_path(masks_of(state, params))
    weights = trees.by_path(params)
    sums = {
        path: leaf
        for found in find_states(state) if isinstance(found, AdmmState)
        for path, leaf in trees.by_path(found.sums).items()
    }  # fmt: skip
    chosen = {
        path: (masks[path], total, weights[path])
        for path, total in sums.items()
        if jnp.ndim(masks[path])
    }
    primal, cut = jax.device_get(_measure(chosen))
    return Residuals(float(primal), float(cut))


@jax.jit
def _measure(leaves: dict[str, tuple]) -> tuple[jax.Array, jax.Array]:
    total = far = lost = jnp.zeros(())
    for mask, held, weight in leaves.values():
        wide = weight.astype(held.dtype)
        total += jnp.sum(jnp.square(wide))
        far += jnp.sum(jnp.square(wide - jnp.where(mask, held, 0)))
        lost += jnp.sum(jnp.square(jnp.where(mask, 0, wide)))
    scale = jnp.where(total > 0, total, 1)
    return jnp.sqrt(far / scale), jnp.sqrt(lost / scale)
