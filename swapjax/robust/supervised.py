"""Training by a loss of outputs and labels, without more."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from swapjax.core.objective import Objective
from swapjax.core.types import Params
from swapjax.robust.inputs import Apply, require_data, values_of
from swapjax.robust.label_losses import LabelLoss
from swapjax.robust.memorized import largest_class


def supervised(apply: Apply, loss: LabelLoss) -> Objective:
    """Train a network with a loss of its outputs.

    Args:
        apply: ``(params, images) -> outputs [n, K]``, as in training.
        loss: ``(outputs, labels) -> float [n]``, of `LABEL_LOSSES` or another.

    Returns:
        An objective of batches ``(images, labels)``, the mean of the loss. It tells
        ``largest_class``, the share of the class predicted most.
    """

    def of_batch(params: Params, state: Any, batch: Any, key: jax.Array) -> tuple:
        del key
        images, labels = batch
        outputs = apply(params, images)
        found = jnp.mean(values_of(loss, outputs, labels, "loss"))
        return found, state, {"largest_class": largest_class(outputs)}

    return Objective(loss=of_batch, check=functools.partial(require_data, apply))
