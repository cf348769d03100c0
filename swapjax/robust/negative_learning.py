"""Negative learning: examples teach which class they are not."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from swapjax.core.objective import Objective
from swapjax.core.types import Params
from swapjax.robust.inputs import Apply, require_data
from swapjax.robust.label_losses import log_softmax
from swapjax.robust.memorized import largest_class

_FLOOR = 1e-5  # of a probability, as in the code of sparse regularisation


def negative_learning(apply: Apply, counts: Any) -> Objective:
    """Train on what labels are not: a class drawn among the others, at each step anew.

    The mean of ``-w_y log max(1 - u_c, 1e-5)`` with c uniform among the classes other
    than y, and ``w_y`` the largest class count over that of y: the negative phase alone
    of NLNL (Kim et al., ICCV 2019, arXiv:1908.07387), which has two more.

    Args:
        apply: ``(params, images) -> logits [n, K]``, as in training.
        counts: how many examples have each label in training, [K], above 0.

    Returns:
        An objective of batches ``(images, labels)``, which draws by the key of a step.
        It tells ``largest_class``, the share of the class predicted most.

    Raises:
        ValueError: for fewer than two classes, and counts that are not above 0.
    """
    known = np.asarray(counts, np.float64)
    if known.ndim != 1 or len(known) < 2:
        raise ValueError(f"counts must be of 2 classes or more, got {known.shape}")
    if not (np.isfinite(known) & (known > 0)).all():
        raise ValueError(f"counts must be above 0, got {known.min():g} for a class")
    weights = (known.max() / known).astype(np.float32)

    def of_batch(params: Params, state: Any, batch: Any, key: jax.Array) -> tuple:
        images, labels = batch
        logits = apply(params, images)
        if logits.shape[1:] != known.shape:
            raise ValueError(
                f"counts must be of {logits.shape[1:]} classes, as logits have, got "
                f"{known.shape}"
            )
        steps = jax.random.randint(key, labels.shape, 1, len(known))
        others = (labels.astype(jnp.int32) + steps) % len(known)
        # The label itself is looked at too, for its range.
        valid = jnp.isfinite(log_softmax(jax.lax.stop_gradient(logits), labels)[1])
        rest = -jnp.expm1(log_softmax(logits, others)[1])
        found = -jnp.log(jnp.maximum(rest, _FLOOR)) * jnp.asarray(weights)[labels]
        found = jnp.where(valid, found, jnp.nan)
        return jnp.mean(found), state, {"largest_class": largest_class(logits)}

    return Objective(loss=of_batch, check=functools.partial(require_data, apply))
