"""The state of ADMM: what it draws weights to, and what a cut would leave."""

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


def _kept(mask: jax.Array, values: jax.Array) -> jax.Array:
    return jnp.where(mask, values, jnp.zeros((), values.dtype))
