"""Steps in two programs, one of them without mask steps, which is faster."""

import functools
from typing import Any

import jax
import numpy as np
import optax

from swapjax.core.types import LossFn, Params
from swapjax.loops import steps
from swapjax.training.state import has_masks, mask_steps_every, until_mask_step

# Steps from a mask step to the next: with fewer the host would be asked too often.
_LEAST = 10


class Steps:
    """The steps of an optimizer, in the programs that its masks call for.

    Args:
        loss_fn: ``loss_fn(params, batch)``, the mean loss of a batch.
        optimizer: any Optax transformation.
        params: any that it can be initialised with, what it cannot train left out.
        state: of the optimizer.
    """

    def __init__(
        self,
        loss_fn: LossFn,
        optimizer: optax.GradientTransformation,
        params: Params,
        state: Any,
    ) -> None:
        self._loss_fn, self._optimizer = loss_fn, optimizer
        self._every = mask_steps_every(state) if has_masks(state) else 0
        if self._every >= _LEAST and not _takes(optimizer, params, state):
            self._every = 0

    def __call__(
        self, params: Params, state: Any, data: Any, index: jax.Array
    ) -> tuple[Params, Any, np.ndarray]:
        """Take a step on each ``data[index[i]]``.

        Returns:
            Params, state, and the loss of each step before it was taken.
        """
        if self._every < _LEAST:
            params, state, values = steps.run(
                self._loss_fn, self._optimizer, params, state, None, data, index
            )
            return params, state, np.asarray(values)
        done, losses = 0, []
        while done < len(index):
            left = until_mask_step(state)
            high = int(min(done + max(left, 1), len(index)))
            params, state, values = steps.run_some(
                self._loss_fn, self._optimizer, params, state, data, index,
                (done, high), left == 0,
            )  # fmt: skip
            losses.append(np.asarray(values)[done:high])
            done = high
        return params, state, np.concatenate(losses)


def _takes(optimizer: optax.GradientTransformation, params: Params, state: Any) -> bool:
    """Whether an optimizer takes the argument that tells which program it is."""
    update = functools.partial(optimizer.update, mask_step=False)
    try:
        jax.eval_shape(update, params, state, params)
    except TypeError:
        return False
    return True
