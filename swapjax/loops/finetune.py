"""A few optimizer steps on a pruned network; its zeros stay zero."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax

from swapjax.core.given_masks import take_masks
from swapjax.core.objective import Objective, takes_keys
from swapjax.core.trees import trainable
from swapjax.core.types import LossFn, Masks, Params
from swapjax.loops import feed, steps, streams
from swapjax.loops.feed import Fed
from swapjax.loops.streams import Stream, take_data


@dataclasses.dataclass(frozen=True)
class FineTune:
    """Settings of the training between stages.

    Attributes:
        optimizer: any Optax transformation; its state is initialised anew each time.
        steps: the number of updates.
        batch: examples per update; not used where data are batches.

    Raises:
        ValueError: for no steps or an empty batch.
    """

    optimizer: optax.GradientTransformation
    steps: int
    batch: int = 64

    def describe(self) -> str:
        """Return a fingerprint of the settings."""
        optimizer = steps.describe(self.optimizer, jnp.zeros(()))
        return f"steps={self.steps}, batch={self.batch}, optimizer={optimizer}"

    def __post_init__(self) -> None:
        for name in ("steps", "batch"):
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"finetune {name} must be 1 or more, got {value}")


def finetune(
    loss_fn: LossFn | Objective,
    params: Params,
    data: Any,
    settings: FineTune,
    *,
    masks: Masks | None = None,
    key: jax.Array,
    callback: Callable[[int, int], None] | None = None,
) -> Params:
    """Train for the number of steps in `settings`.

    Args:
        loss_fn: ``loss_fn(params, batch)``, the mean loss of a batch; a `swapjax.Loss`;
            or an objective without a state.
        params: where to start.
        data: a pytree of arrays with a leading axis of examples, shuffled anew each
            epoch; or batches, a step each: an iterator, or what can be gone through
            again and again.
        settings: optimizer, steps and batch size.
        masks: entries to keep; the others stay zero. By default all are trained.
        key: seeds the shuffles.
        callback: called as training goes on, with the steps done and the total.

    Returns:
        The trained params. All leaves are trained, also those that are never pruned.

    Raises:
        ValueError: for masks that are not of params, fewer examples than one batch, an
            iterator that ends early, and a loss that is not finite.
    """
    masks = None if masks is None else take_masks(masks, params)
    carry = steps.Carry(params, settings.optimizer.init(trainable(params)))
    done, loss = 0, jnp.zeros(())
    data = take_data(data, streams.taken_by(loss_fn, params), settings.batch)
    for batches, index in _feed(data, settings, key):
        keys = steps.step_keys(key, done, len(index)) if takes_keys(loss_fn) else None
        carry, told = steps.run(
            loss_fn, settings.optimizer, carry, masks, batches, index, keys
        )
        done, loss = done + len(told.loss), told.loss[-1]
        if callback is not None:
            callback(done, settings.steps)
    if not jnp.isfinite(loss):
        raise ValueError(
            f"finetune: the loss became {float(loss)}; take a smaller learning rate"
        )
    return carry.params


def _feed(data: Any, settings: FineTune, key: jax.Array) -> Iterator[Fed]:
    """Yield data and an index into it, as `steps.run` takes them."""
    if isinstance(data, Stream):
        return feed.from_batches(data.take(settings.steps))
    steps.per_epoch(data, settings.batch, "finetune batch")  # raises for too few
    take = feed.from_device
    if feed.stays_on_host(data, None):
        take = feed.from_host
    else:
        data = jax.tree.map(jnp.asarray, data)
    return take(data, key, settings.batch, 0, settings.steps)
