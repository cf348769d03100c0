"""VCAS: rates of sampling that follow the variance they add, as an objective."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from swapjax.backward.sampling import own_key
from swapjax.backward.shared import (
    keys_after,
    loss_alone,
    reported,
    require_new_key,
    require_state,
    take_loss,
)
from swapjax.backward.vcas_adapt import adapt
from swapjax.backward.vcas_control import (
    Budget,
    VcasState,
    first_state,
    require_same_network,
)
from swapjax.backward.vcas_run import OWN, Settings, layout_for, run
from swapjax.core import trees
from swapjax.core.checks import require_count, require_fraction, take_amount
from swapjax.core.members import device_axes
from swapjax.core.objective import Objective
from swapjax.core.types import LossFn, Params


def vcas(
    loss_fn: LossFn | Objective,
    *,
    activations: float = 0.025,
    weights: float = 0.025,
    every: int = 100,
    repeats: int = 2,
    step: float = 0.01,
    factor: float = 0.95,
    smoothing: float = 0.6,
    per_site: bool = False,
) -> Objective:
    """Sample the gradients that a loss sends back, within a budget of variance.

    VCAS (Wang et al., ICLR 2024, arXiv:2402.17227). Examples are dropped from the
    gradients of activations, by their norms and more of them the further back, and rows
    from the gradients of weights, by the norms of gradient times input; what is kept is
    scaled up, so that the expectation is the exact gradient. Every so many steps the
    variance that either adds is measured beside that of SGD, and the rates follow.

    Nothing is saved on a machine whose kernels multiply zeros: the report says which
    share of the multiplications is left. For time see `drop_blocks`.

    The variance of SGD is measured between equal parts of the batch, so that no other
    data are needed; an adaptation takes as much as ``1 + repeats`` steps.

    Sharded batches are for ``jax.jit``, not for ``jax.shard_map``; members of a
    ``vmap`` draw apart. Batch norm in training mode mixes the gradients of examples:
    what is dropped behind it is not zero before, and little is saved there.

    Args:
        loss_fn: ``loss_fn(params, batch)``, the mean loss of a batch, a pytree of
            arrays with a leading axis of examples; or an
            `swapjax.training.Objective` that follows the derivative of its loss.
        activations: the variance that sampling activations may add to the gradient, as
            a share of that of SGD.
        weights: that which sampling rows may add to the gradient of a weight, as a
            share of that of SGD there.
        every: steps between adaptations. The paper advises at most a 50th of a found.
        repeats: parts of the batch, and draws of each, in an adaptation; 2 or more.
        step: by how much an adaptation changes the share of gradient norms that is
            kept.
        factor: by how much it changes the rate of the rows of a weight.
        smoothing: how much of the rate of an activation it keeps.
        per_site: whether the shares that are kept are reported by layer, too.

    Returns:
        An objective for `swapjax.training.fit`, whose state is a `VcasState`. It
        reports ``"backward"``, the share of the multiplications of the backward pass
        that is left, without those of adaptations; ``"norm share"``; and
        ``"added variance"``, that of the last adaptation. By layer,
        ``"examples kept after NAME"`` of a batch and ``"rows kept NAME"`` of what is
        left of it.

    Raises:
        ValueError: for arguments out of range. From the first state: for a loss without
            a product of weights and data, and for a batch with less than two examples
            a part; from a step, for the state of another network, and in a
            ``shard_map``.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from swapjax import backward
        >>> from swapjax.training import fit
        >>> def loss_fn(params, x):
        ...     hidden = jnp.tanh(x @ params["in"])
        ...     return jnp.mean((hidden @ params["out"] - x) ** 2)
        >>> params = {"in": jnp.full((4, 8), 0.1), "out": jnp.full((8, 4), 0.1)}
        >>> x = jax.random.normal(jax.random.key(0), (64, 4))
        >>> fitted = fit(backward.vcas(loss_fn, every=2), params, optax.sgd(0.1), x,
        ...              epochs=4, batch=16, key=jax.random.key(1))
        >>> fitted.history[-1].told["backward"] < 1
        True
    """
    take_amount("activations", activations)
    take_amount("weights", weights)
    require_count("every", every)
    require_count("repeats", repeats, 2)
    require_fraction("step", step, zero=False, one=True)
    require_fraction("factor", factor, zero=False)
    require_fraction("smoothing", smoothing)
    inner = take_loss(loss_fn)
    settings = Settings(
        inner,
        Budget(activations, weights, step, factor, smoothing),
        every,
        repeats,
        per_site,
    )
    return Objective(
        loss=functools.partial(loss_alone, inner, VcasState),
        init=functools.partial(_init, settings),
        gradient=functools.partial(_gradient, settings),
        replays=inner.replays,
        check=inner.check,
    )


def _init(settings: Settings, params: Params, batch: Any) -> VcasState:
    """Make the first state: all is kept."""
    examples = trees.count_examples(batch, "batch")
    if examples < 2 * settings.repeats:
        raise ValueError(
            f"batch: {settings.repeats} parts of two examples or more are needed, got "
            f"{examples} examples"
        )
    inner = settings.inner.init(params, batch)
    layout = layout_for(settings, params, inner, batch, jax.random.key(0))
    return first_state(layout.cuts, layout.products, inner)


def _gradient(
    settings: Settings, params: Params, state: VcasState, batch: Any, key: Any
) -> tuple[Params, jax.Array, VcasState, dict[str, jax.Array]]:
    """Compute the gradients of a step, after an adaptation where it is time for one."""
    require_state(state, VcasState)
    require_new_key(state, key)
    layout = layout_for(settings, params, state.inner, batch, key)
    require_same_network(state, layout.cuts, layout.products)
    if device_axes((params, batch)):
        raise ValueError(
            "batch: each device of a shard_map would set rates of its own; shard the "
            "batch under jax.jit instead"
        )
    own = own_key(key, OWN, (params, state, batch))
    new = jax.lax.cond(
        (state.step + 1) % settings.every == 0,
        functools.partial(adapt, settings),
        lambda params, state, batch, key, own: state,
        *(params, state, batch, key, own),
    )
    found = run(
        settings,
        layout,
        params,
        (state.inner, batch, key),
        new,
        key=jax.random.fold_in(own, 0),
    )
    told = {
        "backward": layout.left(found.told),
        "norm share": new.norm_share,
        "added variance": new.added,
    }
    if settings.per_site:
        for what, rates in (("examples", new.activations), ("rows", new.weights)):
            told |= {f"{what} kept {name}": jnp.mean(x) for name, x in rates.items()}
    new = new._replace(inner=found.inner, **keys_after(state, key))
    return found.gradients, found.loss, new, reported(found.aux, told)
