"""The state of ADMM: what it draws weights to, and how far they are from it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from swapjax.core.types import Masks, Params


class AdmmState(NamedTuple):
    """The state of `swapjax.admm`: arrays only, to be saved like that of any optimizer.

    The split variable z keeps of ``x + u`` what masks keep, and the dual variable u is
    what they leave: one array holds both.

    Attributes:
        count: ``int32[]``, the updates so far.
        masks: of what would stay if the network were cut now, with the tree of params.
        sums: ``x + u`` when masks were chosen, in float32 or wider, with the tree of
            params; scalars for leaves that are not prunable.
        inner: the state of the wrapped optimizer.
        extras: ``status``, ``last``, ``first``, ``every`` and ``waits`` as those of
            `swapjax.training.SparseState`, of the updates at which z and u change.
    """

    count: jax.Array  # type: ignore[assignment]  # as Optax names it
    masks: Masks
    sums: Params
    inner: Any
    extras: dict[str, Any]

    @property
    def split(self) -> Params:
        """The variable z, which is sparse."""
        return jax.tree.map(_kept, self.masks, self.sums)

    @property
    def dual(self) -> Params:
        """The variable u, the sum of the residuals x - z so far."""
        return jax.tree.map(lambda m, v: v - _kept(m, v), self.masks, self.sums)


class Residuals(NamedTuple):
    """How far weights are from being sparse, relative to their norm.

    Attributes:
        primal: ``|x - z| / |x|``, the residual of the constraint that ADMM sums up.
        cut: ``|x - m x| / |x|`` with the masks m: what a cut takes away.
    """

    primal: float
    cut: float


def residuals(state: AdmmState, params: Params) -> Residuals:
    """Measure how far the prunable weights are from what ADMM draws them to.

    Args:
        state: of `swapjax.admm`, not that of a transformation around it.
        params: the weights after the update that gave it.

    Returns:
        Numbers from 0, not for use under jit; `cut` is at most 1.
    """
    primal, cut = jax.device_get(_measure(state.masks, state.sums, params))
    return Residuals(float(primal), float(cut))


@jax.jit
def _measure(masks: Masks, sums: Params, params: Params) -> tuple[jax.Array, jax.Array]:
    leaves = map(jax.tree.leaves, (masks, sums, params))
    total = far = lost = jnp.zeros(())
    for m, v, x in zip(*leaves, strict=True):
        if not jnp.ndim(m):
            continue
        wide = x.astype(v.dtype)
        total += jnp.sum(jnp.square(wide))
        far += jnp.sum(jnp.square(wide - _kept(m, v)))
        lost += jnp.sum(jnp.square(jnp.where(m, 0, wide)))
    scale = jnp.where(total > 0, total, 1)
    return jnp.sqrt(far / scale), jnp.sqrt(lost / scale)


def _kept(mask: jax.Array, values: jax.Array) -> jax.Array:
    return jnp.where(mask, values, jnp.zeros((), values.dtype))
