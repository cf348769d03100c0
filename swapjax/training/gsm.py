"""Global sparse momentum: only the most salient weights get their gradients."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from swapjax.core.types import Params
from swapjax.sparsity.budget import select
from swapjax.sparsity.plan import Plan
from swapjax.sparsity.planned import planned, require_one
from swapjax.sparsity.scores import saliency
from swapjax.training.inputs import check_gradients, take_arrays


def gsm(
    sparsity: float | None = None, *, plan: Plan | None = None
) -> optax.GradientTransformation:
    """Pass gradients only to the weights that matter most for the loss.

    Global Sparse Momentum SGD (Ding et al., NeurIPS 2019, arXiv:1909.12778). At every
    step the entries with the largest ``|w g|`` keep their gradient and all other
    prunable ones get zero, so that weight decay, chained after this as in the example,
    shrinks them to zero. A weight that is never chosen shrinks by ``exp(-rate decay t /
    (1 - momentum))`` in t steps: without a high momentum, and enough steps, it is still
    there at the end. Weights that are chosen now and then do not vanish; the smaller
    the batches, the more of them there are. Prune what is left by magnitude.

    Args:
        sparsity: the fraction of prunable entries that get no gradient.
        plan: instead of a sparsity, by `swapjax.plan`.

    Returns:
        A transformation without state; ``update`` needs params.

    Raises:
        ValueError: for both or neither of sparsity and plan, a sparsity that is not a
            number in [0, 1); from its functions, as
            `swapjax.plan` does, for a plan of other params, gradients that are not of
            params, and params that are missing.

    Example:
        >>> import optax, swapjax
        >>> kernels = lambda params: jax.tree.map(lambda x: x.ndim > 1, params)
        >>> tx = optax.chain(
        ...     swapjax.gsm(0.98),
        ...     optax.add_decayed_weights(5e-4, mask=kernels),
        ...     optax.sgd(0.01, momentum=0.99, nesterov=True),
        ... )
    """
    require_one(sparsity, plan)

    def init(params: Params) -> optax.EmptyState:
        params = take_arrays(params)
        if jax.tree.leaves(params):
            target = planned(params, sparsity, plan)
            target.layout.split(params)
            target.require_countable()
        return optax.EmptyState()

    def update(gradients: Params, state: Any, params: Params | None = None) -> tuple:
        if params is None:
            raise ValueError("params: gsm needs them; call tx.update with params")
        params = take_arrays(params)
        check_gradients(gradients, params)
        chosen = planned(params, sparsity, plan)
        slopes = chosen.layout.split(gradients)
        active = select(saliency(chosen.layout.split(params), slopes), chosen.budget)
        kept = tuple(
            jnp.where(m, g, jnp.zeros((), g.dtype))
            for m, g in zip(active, slopes, strict=True)
        )
        return chosen.layout.merge(kept, gradients), state

    return optax.GradientTransformation(init, update)
