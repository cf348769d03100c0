"""A loss with a state and a key: what training loops take beside plain losses."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from swapjax.core.types import Params

Loss = Callable[
    [Params, Any, Any, jax.Array], tuple[jax.Array, Any, dict[str, jax.Array]]
]
Gradient = Callable[
    [Params, Any, Any, jax.Array], tuple[Params, jax.Array, Any, dict[str, jax.Array]]
]


def _no_state(params: Params, batch: Any) -> tuple:
    del params, batch
    return ()


@dataclasses.dataclass(frozen=True)
class Objective:
    """What to minimise where ``loss_fn(params, batch)`` does not say it all.

    For losses that draw at random, as adversarial training does, that change from step
    to step, or that remember something.

    Attributes:
        loss: ``(params, state, batch, key) -> (loss, state, aux)``, pure: the mean loss
            of a batch, ``float[]``; the state for the next step, of the same shapes;
            and scalars to report by name, of which loops keep the mean of an epoch.
        init: ``(params, batch) -> state``, before the first step; from shapes and
            dtypes of the batch, not from its values. By default there is none.
        gradient: ``(params, state, batch, key) -> (gradients, loss, state, aux)`` where
            a step does not follow the derivative of `loss`; None where it does.
        replays: steps that a batch is taken for in a row.
    """

    loss: Loss
    init: Callable[[Params, Any], Any] = _no_state
    gradient: Gradient | None = None
    replays: int = 1

    def value_and_grad(
        self, params: Params, state: Any, batch: Any, key: jax.Array
    ) -> tuple[Params, jax.Array, Any, dict[str, jax.Array]]:
        """Return gradients, loss, state and what to report, of one step."""
        if self.gradient is not None:
            return self.gradient(params, state, batch, key)

        def loss(params: Params) -> tuple:
            value, new, aux = self.loss(params, state, batch, key)
            return value, (value, new, aux)

        gradients, (value, new, aux) = jax.grad(loss, has_aux=True)(params)
        return gradients, value, new, aux
