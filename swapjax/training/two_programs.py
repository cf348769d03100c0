"""Steps in two programs, one of them without mask steps, which is faster."""

import functools
from typing import Any

import jax
import numpy as np
import optax

from swapjax.core.objective import Objective
from swapjax.core.types import LossFn, Params
from swapjax.loops import steps
from swapjax.loops.steps import Carry, Told
from swapjax.training.state import has_masks, mask_steps_every, until_mask_step

# Steps from a mask step to the next: with fewer the host would be asked too often.
_LEAST = 10


class Steps:
    """The steps of an optimizer, in the programs that its masks call for.

    Args:
        loss: ``loss_fn(params, batch)``, the mean loss of a batch, or an objective.
        optimizer: any Optax transformation.
        params: any that it can be initialised with, what it cannot train left out.
        state: of the optimizer.
    """

    def __init__(
        self,
        loss: LossFn | Objective,
        optimizer: optax.GradientTransformation,
        params: Params,
        state: Any,
    ) -> None:
        self._loss, self._optimizer = loss, optimizer
        self._every = mask_steps_every(state) if has_masks(state) else 0
        if self._every >= _LEAST and not _takes(optimizer, params, state):
            self._every = 0

    def __call__(
        self, carry: Carry, data: Any, index: jax.Array, keys: jax.Array | None
    ) -> tuple[Carry, Told]:
        """Take a step on each ``data[index[i]]``.

        Returns:
            What the last step passes on, and what each tells, on the host.
        """
        if self._every < _LEAST:
            carry, told = steps.run(
                self._loss, self._optimizer, carry, None, data, index, keys
            )
            return carry, jax.device_get(told)
        done, parts = 0, []
        while done < len(index):
            left = until_mask_step(carry.state)
            high = int(min(done + max(left, 1), len(index)))
            carry, told = steps.run_some(
                self._loss, self._optimizer, carry, data, index, keys, (done, high),
                left == 0,
            )  # fmt: skip
            now = slice(done, high)
            parts.append(jax.tree.map(lambda x, now=now: np.asarray(x)[now], told))
            done = high
        return carry, jax.tree.map(lambda *x: np.concatenate(x), *parts)


def _takes(optimizer: optax.GradientTransformation, params: Params, state: Any) -> bool:
    """Whether an optimizer takes the argument that tells which program it is."""
    update = functools.partial(optimizer.update, mask_step=False)
    try:
        jax.eval_shape(update, params, state, params)
    except TypeError:
        return False
    return True
