"""A few optimizer steps on a pruned network; its zeros stay zero."""

import dataclasses
import functools
import hashlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax

from swapjax.sources import count_examples, take
from swapjax.types import LossFn, Masks, Params

_STEPS_PER_CALL = 100


@dataclasses.dataclass(frozen=True)
class FineTune:
    """What to do between stages.

    Attributes:
        optimizer: any Optax transformation; its state starts afresh each time.
        steps: how many updates.
        batch: examples an update. An iterator of batches brings its own size.

    Raises:
        ValueError: for no steps or an empty batch.
    """

    optimizer: optax.GradientTransformation
    steps: int
    batch: int = 64

    def describe(self) -> str:
        """What tells it from others: an optimizer has no name, but it has a program."""
        weight = jnp.zeros(())
        state = self.optimizer.init(weight)
        program = jax.make_jaxpr(self.optimizer.update)(weight, state, weight)
        # Functions in it print with their addresses.
        text = re.sub(r"0x[0-9a-f]+", "", f"{program} {program.consts} {state}")
        optimizer = hashlib.sha256(text.encode()).hexdigest()[:16]
        return f"steps={self.steps}, batch={self.batch}, optimizer={optimizer}"

    def __post_init__(self) -> None:
        for name in ("steps", "batch"):
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"finetune {name} must be 1 or more, got {value}")


def finetune(
    loss_fn: LossFn,
    params: Params,
    data: Any,
    settings: FineTune,
    *,
    masks: Masks | None = None,
    key: jax.Array,
    callback: Callable[[int, int], None] | None = None,
) -> Params:
    """Train for some steps.

    Args:
        loss_fn: ``loss_fn(params, batch)``, the mean loss of a batch.
        params: where to start.
        data: a pytree of arrays with a leading axis of examples, shuffled anew each
            time it is used up; or an iterator of batches.
        settings: what to do.
        masks: entries that are zero and stay so; none by default.
        key: seeds the shuffles.
        callback: called now and then with the steps done and the steps in all.

    Returns:
        The trained params. All leaves are trained, those never pruned too.

    Raises:
        ValueError: for fewer examples than one batch, an iterator that ends early, and
            a loss that is not finite.
    """
    if masks is None:
        masks = jax.tree.map(lambda _: jnp.asarray(True), params)
    state = settings.optimizer.init(params)
    run = functools.partial(_run, loss_fn, settings.optimizer)
    done, loss = 0, jnp.zeros(())
    if isinstance(data, Iterator):
        for batch in take(data, settings.steps):
            one = jax.tree.map(lambda x: jnp.asarray(x)[None], batch)
            params, state, loss = run(params, state, masks, one, None)
            done += 1
            if callback is not None:
                callback(done, settings.steps)
    else:
        data = jax.tree.map(jnp.asarray, data)
        while done < settings.steps:
            count = min(_STEPS_PER_CALL, settings.steps - done)
            index = _schedule(key, count_examples(data), settings.batch, done, count)
            params, state, loss = run(params, state, masks, data, index)
            done += count
            if callback is not None:
                callback(done, settings.steps)
    if not jnp.isfinite(loss):
        raise ValueError(
            f"finetune: the loss became {float(loss)}; take a smaller learning rate"
        )
    return params


def _schedule(
    key: jax.Array, examples: int, batch: int, first: int, count: int
) -> jax.Array:
    """The examples each of some steps sees, [count, batch]: epochs of whole batches."""
    per_epoch = examples // batch
    if per_epoch < 1:
        raise ValueError(
            f"finetune batch: {batch} examples wanted, data has {examples}"
        )
    rows = []
    for epoch in range(first // per_epoch, (first + count - 1) // per_epoch + 1):
        order = jax.random.permutation(jax.random.fold_in(key, epoch), examples)
        low = max(first - epoch * per_epoch, 0)
        high = min(first + count - epoch * per_epoch, per_epoch)
        rows.append(order[low * batch : high * batch].reshape(-1, batch))
    return jnp.concatenate(rows)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _run(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    params: Params,
    state: Any,
    masks: Masks,
    data: Any,
    index: jax.Array | None,
) -> tuple[Params, Any, jax.Array]:
    """Steps over ``data[index[i]]``, or over ``data[i]`` without an index."""

    def step(carry: tuple, i: Any) -> tuple[tuple, jax.Array]:
        params, state = carry
        batch = i if index is None else jax.tree.map(lambda x: x[i], data)
        loss, grads = jax.value_and_grad(loss_fn)(params, batch)
        updates, state = optimizer.update(grads, state, params)
        # p + (-p) is exactly zero in every dtype.
        updates = jax.tree.map(
            lambda m, u, p: jnp.where(m, u, -p), masks, updates, params
        )
        return (optax.apply_updates(params, updates), state), loss

    (params, state), losses = jax.lax.scan(
        step, (params, state), data if index is None else index
    )
    return params, state, losses[-1]
