"""Optimizer steps, many per compiled call, and the examples that each of them takes."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax

from swapjax.core import identity, losses, programs
from swapjax.core.compiled import Compiled
from swapjax.core.trees import count_examples, is_trained
from swapjax.core.types import LossFn, Masks, Params
from swapjax.loops.convolutions.canonical import canonical_convolutions

_STEPS_PER_CALL = 100


def per_epoch(data: Any, batch: int, name: str) -> int:
    """Count the whole batches in data.

    Args:
        data: a pytree of arrays with a leading axis of examples.
        batch: examples per batch.
        name: the argument to name in the error.

    Raises:
        ValueError: for fewer examples than one batch.
    """
    examples = count_examples(data)
    if examples < batch:
        raise ValueError(f"{name}: {batch} examples wanted, data has {examples}")
    return examples // batch


def indices(
    key: jax.Array, data: Any, batch: int, first: int, last: int
) -> Iterator[jax.Array]:
    """Yield the examples of each step, ``int32[steps, batch]``, some steps at a time.

    Steps are counted from 0 through all epochs. Each epoch has an order of its own and
    drops the examples that do not fill a batch.

    Args:
        key: seeds the shuffles.
        data: a pytree of arrays, at least a batch of examples.
        batch: examples per step.
        first: the first step.
        last: the step after the last one.
    """
    examples = count_examples(data)
    whole = examples // batch
    for start in range(first, last, _STEPS_PER_CALL):
        stop, rows = min(start + _STEPS_PER_CALL, last), []
        for epoch in range(start // whole, (stop - 1) // whole + 1):
            order = jax.random.permutation(jax.random.fold_in(key, epoch), examples)
            low = max(start - epoch * whole, 0)
            high = min(stop - epoch * whole, whole)
            rows.append(order[low * batch : high * batch].reshape(-1, batch))
        yield jnp.concatenate(rows)


def trainable(params: Params) -> Params:
    """Show an optimizer the real tree, a zero in place of what it cannot train.

    Counters, flags and PRNG keys among params have no gradient, and no moments; masks
    and labels that a user has made of params still fit.
    """
    zero = jnp.zeros(())
    return jax.tree.map(lambda x: x if is_trained(x) else zero, params)


def run(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    params: Params,
    state: Any,
    masks: Masks | None,
    data: Any,
    index: jax.Array | None,
) -> tuple[Params, Any, jax.Array]:
    """Take a step on each ``data[index[i]]``, or ``data[i]`` without an index.

    Args:
        loss_fn: ``loss_fn(params, batch)``, the mean loss of a batch.
        optimizer: any Optax transformation.
        params: where to start; what is no float stays as it is.
        state: of the optimizer, initialised with `trainable` params.
        masks: entries to keep; the others become zero. None to keep all, or if the
            optimizer itself keeps the others zero.
        data: a pytree of arrays.
        index: as from `indices`, or None.

    Returns:
        Params, state, and the loss of each step before it was taken.

    Raises:
        ValueError: for a loss that is no scalar, or has no gradient.
    """
    return _run((loss_fn, optimizer.update), params, state, masks, data, index)


@Compiled
def _run(
    loss_fn: LossFn,
    update: Callable,
    params: Params,
    state: Any,
    masks: Masks | None,
    data: Any,
    index: jax.Array | None,
) -> tuple[Params, Any, jax.Array]:
    """Take the steps; see `run`."""
    step = _make_step(loss_fn, update, masks)

    def take(carry: tuple, i: Any) -> tuple[tuple, jax.Array]:
        return step(carry, i if index is None else _pick(data, i))

    # Around the loop, which is one equation to do anew, not around each gradient.
    loop = canonical_convolutions(functools.partial(jax.lax.scan, take))
    (params, state), values = loop((params, state), data if index is None else index)
    return params, state, values


def run_some(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    params: Params,
    state: Any,
    data: Any,
    index: jax.Array,
    span: tuple[int, int],
    mask_step: bool,
) -> tuple[Params, Any, jax.Array]:
    """Take some of the steps of an index; one program serves for any number of them.

    Args:
        loss_fn: as `run` takes it, like the arguments that follow.
        optimizer: whose update takes `mask_step`, see `swapjax.sparse`.
        params: where to start.
        state: of the optimizer.
        data: a pytree of arrays.
        index: as from `indices`.
        span: the first of these steps, and the one after the last.
        mask_step: which of the two programs of the optimizer to take.

    Returns:
        Params, state, and the losses, [steps of the index], zero where none was taken.
    """
    return _run_some(
        (loss_fn, optimizer.update, mask_step), params, state, data, index, *span
    )


@Compiled
def _run_some(
    loss_fn: LossFn,
    update: Callable,
    mask_step: bool,
    params: Params,
    state: Any,
    data: Any,
    index: jax.Array,
    first: jax.Array,
    last: jax.Array,
) -> tuple[Params, Any, jax.Array]:
    """Take the steps; see `run_some`."""
    update = functools.partial(update, mask_step=mask_step)
    step = _make_step(loss_fn, update, None)

    def take(i: jax.Array, carry: tuple) -> tuple:
        now, values = carry
        now, value = step(now, _pick(data, index[i]))
        return now, values.at[i].set(value.astype(values.dtype))

    def loop(start: tuple) -> tuple:
        return jax.lax.fori_loop(first, last, take, start)

    values = jnp.zeros(len(index), jnp.result_type(float))
    (params, state), values = canonical_convolutions(loop)(((params, state), values))
    return params, state, values


def _pick(data: Any, i: jax.Array) -> Any:
    return jax.tree.map(lambda x: x[i], data)


def _make_step(loss_fn: LossFn, update: Callable, masks: Masks | None) -> Callable:
    """Make ``((params, state), batch) -> ((params, state), loss)``."""

    def step(carry: tuple, batch: Any) -> tuple[tuple, jax.Array]:
        params, state = carry
        seen = trainable(params)

        def loss(seen: Params) -> jax.Array:
            found = loss_fn(_fill(seen, params), batch)
            losses.require_scalar(found)
            return found

        value, grads = jax.value_and_grad(loss)(seen)
        updates, state = update(grads, state, seen)
        if masks is not None:
            # p + (-p) is exactly zero in every dtype.
            updates = jax.tree.map(
                lambda m, u, p: jnp.where(m, u, -p), masks, updates, seen
            )
        new = optax.apply_updates(seen, updates)
        return (_fill(new, params), state), value

    return step


def _fill(seen: Params, params: Params) -> Params:
    """Put what is no float back where `trainable` has taken it out."""
    return jax.tree.map(lambda new, p: new if is_trained(p) else p, seen, params)


def describe(optimizer: optax.GradientTransformation, params: Params) -> str:
    """Tell an optimizer apart from others, since it has no name.

    By the settings that its functions close over and, for the same version of JAX, by
    the program and the first state that these make.

    Args:
        optimizer: any Optax transformation.
        params: any params that it can be initialised with.
    """
    told = identity.describe(optimizer)
    try:
        params = trainable(params)
        state = optimizer.init(params)
        program = jax.make_jaxpr(optimizer.update)(params, state, params)
    except Exception:  # it takes other params, or more arguments: what it holds must do
        code = told
    else:
        code = f"{programs.describe(program)} {identity.digest(state)}"
    return identity.with_code(identity.short_hash(identity.without_code(told)), code)
