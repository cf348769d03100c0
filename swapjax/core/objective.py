"""A loss with a state and a key: what training loops take beside plain losses."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from swapjax.core import losses, trees
from swapjax.core.loss import Loss, draws
from swapjax.core.types import LossFn, Params

Evaluation = Callable[
    [Params, Any, Any, jax.Array], tuple[jax.Array, Any, dict[str, jax.Array]]
]
Gradient = Callable[
    [Params, Any, Any, jax.Array], tuple[Params, jax.Array, Any, dict[str, jax.Array]]
]


def _no_state(params: Params, batch: Any) -> tuple:
    del params, batch
    return ()


def _anything(params: Params, data: Any) -> None:
    del params, data


@dataclasses.dataclass(frozen=True, eq=False)
class Objective:
    """What to minimise where ``loss_fn(params, batch)`` does not say it all.

    For losses that draw at random, as adversarial training does, that change from step
    to step, or that remember something. Two of them are the same if they are one
    object, as functions are: what is compiled for one is gone with it.

    Attributes:
        loss: ``(params, state, batch, key) -> (loss, state, aux)``, pure: the mean loss
            of a batch, ``float[]``; the state for the next step, of the same shapes
            and dtypes; and scalars to report by name, of which loops keep the mean of
            an epoch.
        init: ``(params, batch) -> state``, before the first step; from shapes and
            dtypes of the batch, not from its values. By default there is none.
        gradient: ``(params, state, batch, key) -> (gradients, loss, state, aux)`` where
            a step does not follow the derivative of `loss`; None where it does. Take
            `value_and_grad` of this module for it: params may hold what has no
            gradient.
        replays: steps that a batch is taken for in a row.
        check: ``(params, data) -> None``, called once with all data, a pytree of arrays
            like a batch, before the first step, or with each batch of the first epoch
            where data come in batches; it raises a ValueError for what the loss cannot
            take. Quick: it sees every example. By default all passes.
    """

    loss: Evaluation
    init: Callable[[Params, Any], Any] = _no_state
    gradient: Gradient | None = None
    replays: int = 1
    check: Callable[[Params, Any], Any] = _anything

    def value_and_grad(
        self, params: Params, state: Any, batch: Any, key: jax.Array
    ) -> tuple[Params, jax.Array, Any, dict[str, jax.Array]]:
        """Return gradients, loss, state and what to report, of one step."""
        if self.gradient is not None:
            return self.gradient(params, state, batch, key)

        def loss(params: Params) -> tuple:
            value, new, aux = self.loss(params, state, batch, key)
            return value, (new, aux)

        (value, (new, aux)), gradients = value_and_grad(loss, params)
        return gradients, value, new, aux


def as_objective(loss: LossFn | Objective) -> Objective:
    """Make an objective of a loss; one that is an objective stays as it is."""
    if isinstance(loss, Objective):
        return loss
    if isinstance(loss, Loss):

        def telling(params: Params, state: Any, batch: Any, key: Any) -> tuple:
            value, aux = loss.with_aux(params, batch, key)
            losses.require_scalar(value)
            return value, state, _scalars(aux)

        return Objective(telling)

    def plain(params: Params, state: Any, batch: Any, key: Any) -> tuple:
        del key
        value = loss(params, batch)
        losses.require_scalar(value)
        return value, state, {}

    return Objective(plain)


def takes_keys(loss: LossFn | Objective) -> bool:
    """Whether steps on a loss need keys."""
    return isinstance(loss, Objective) or draws(loss)


def _scalars(aux: Any) -> dict[str, jax.Array]:
    """Take what an epoch may keep the mean of: real numbers of a dict, by name."""
    if not isinstance(aux, Mapping):
        return {}
    found = {name: x for name, x in aux.items() if isinstance(name, str)}
    numbers = {n: jnp.asarray(x) for n, x in found.items() if _is_number(x)}
    return {name: x for name, x in numbers.items() if not x.shape}


def _is_number(x: Any) -> bool:
    if isinstance(x, bool | int | float):
        return True
    kind = getattr(x, "dtype", None)
    real = jnp.floating, jnp.integer, jnp.bool_
    return kind is not None and any(jnp.issubdtype(kind, of) for of in real)


def value_and_grad(
    loss: Callable[[Any], tuple[jax.Array, Any]], params: Any
) -> tuple[tuple[jax.Array, Any], Any]:
    """Differentiate a loss by the floats of its params.

    Args:
        loss: ``params -> (loss, anything)``.
        params: where; counters, flags and keys among them are constants.

    Returns:
        What the loss returns, and gradients in the tree of params, with ``float[]``
        zeros in place of what has none.

    Raises:
        ValueError: for a loss that is no scalar.
    """

    def of_floats(seen: Any) -> tuple[jax.Array, Any]:
        value, other = loss(trees.filled(seen, params))
        losses.require_scalar(value, name="loss of the objective")
        return value, other

    return jax.value_and_grad(of_floats, has_aux=True)(trees.trainable(params))
