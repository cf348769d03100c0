"""Sharpness-aware minimisation: the gradient where the loss is worse nearby."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from swapjax.core import trees
from swapjax.core.checks import take_amount
from swapjax.core.objective import Objective, as_objective
from swapjax.core.types import LossFn, Params

_TINY = 1e-12  # so that a gradient of zero has a direction, of length zero


def sharpness_aware(
    loss: LossFn | Objective, radius: float, *, masked: bool = False
) -> Objective:
    """Take each gradient at the params that a step up the loss leads to.

    SAM (Foret et al., ICLR 2021, arXiv:2010.01412, equation 3): with the gradient g of
    a batch at params w, a step follows the gradient of the same batch, with the same
    key, at ``w + radius g / |g|``, the norm being that of all of params together. With
    `swapjax.admm` around the optimizer this is SAFE (Lee et al., ICML 2025,
    arXiv:2506.06866). A step costs two gradients.

    `optax.contrib.sam` does the same as an optimizer. It is not used here since it
    calls the loss itself, or takes every other step on perturbed params: a loss with a
    state and a key, as adversarial training has, would see neither, and masks and
    penalties around it would act on the perturbed params.

    By default the step up fills zeros, too. That is right for dense params, as under
    `swapjax.admm`; under `swapjax.sparse` the gradient is then that of a dense network
    near the sparse one. With `masked` the step keeps to the entries that are not zero.

    Args:
        loss: ``loss(params, batch)``, the mean loss of a batch, or an
            `swapjax.training.Objective`. Its own gradient, if it has one, is
            taken at both points.
        radius: of the perturbation, the authors' rho; SAFE's is 0.1.
        masked: whether entries of params that are exactly 0, as pruned ones are, stay
            so at the perturbed params; the norm is that of the others. Biases that
            begin at 0 do not move there either until an update has moved them.

    Returns:
        An objective whose loss, state and reports are those at params. With a radius of
        0 its gradient is that of the loss.

    Raises:
        ValueError: for a loss that cannot be called, and a radius that is not a number,
            0 or more, or `masked` that is no bool.

    Example:
        >>> import jax, jax.numpy as jnp, swapjax
        >>> objective = swapjax.sharpness_aware(lambda w, x: jnp.sum((x * w) ** 2), 0.1)
        >>> w, x = jnp.asarray([3.0, 4.0]), jnp.ones(2)
        >>> gradient, *_ = objective.value_and_grad(w, (), x, jax.random.key(0))
        >>> [round(float(g), 2) for g in gradient]
        [6.12, 8.16]
    """
    if not (callable(loss) or isinstance(loss, Objective)):
        raise ValueError(
            f"loss must be loss_fn(params, batch) or an Objective, got {loss!r}"
        )
    rho = take_amount("radius", radius)
    if not isinstance(masked, bool):
        raise ValueError(f"masked must be True or False, got {masked!r}")
    of = as_objective(loss)

    def gradient(params: Params, state: Any, batch: Any, key: jax.Array) -> tuple:
        up, value, new, aux = of.value_and_grad(params, state, batch, key)
        at = trees.trainable(params)
        if masked:
            up = jax.tree.map(lambda w, g: jnp.where(w == 0, 0, g), at, up)
        scale = rho / (optax.tree.norm(up) + _TINY)
        near = jax.tree.map(lambda w, g: (w + scale * g).astype(w.dtype), at, up)
        near = trees.filled(near, params)
        found, *_ = of.value_and_grad(near, state, batch, key)
        return found, value, new, aux

    return Objective(of.loss, of.init, gradient, of.replays, of.check)
