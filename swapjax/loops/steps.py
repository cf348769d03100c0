"""Optimizer steps, many per compiled call, and the examples that each of them takes."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from swapjax.core import identity, programs, trees
from swapjax.core.compiled import Compiled
from swapjax.core.objective import Objective, as_objective
from swapjax.core.trees import count_examples
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
    key: jax.Array,
    data: Any,
    batch: int,
    first: int,
    last: int,
    *,
    replays: int = 1,
    most: int = _STEPS_PER_CALL,
) -> Iterator[jax.Array]:
    """Yield the examples of each step, ``int32[steps, batch]``, some steps at a time.

    Batches are counted from 0 through all epochs. Each epoch has an order of its own
    and drops the examples that do not fill a batch.

    Args:
        key: seeds the shuffles.
        data: a pytree of arrays, at least a batch of examples.
        batch: examples per step.
        first: the first batch.
        last: the batch after the last one.
        replays: steps that take each batch, one after the other.
        most: steps at a time, and 100 at most.
    """
    examples = count_examples(data)
    whole = examples // batch
    chunk = max(1, min(most, _STEPS_PER_CALL) // replays)
    for start in range(first, last, chunk):
        stop, rows = min(start + chunk, last), []
        for epoch in range(start // whole, (stop - 1) // whole + 1):
            order = jax.random.permutation(jax.random.fold_in(key, epoch), examples)
            low = max(start - epoch * whole, 0)
            high = min(stop - epoch * whole, whole)
            rows.append(order[low * batch : high * batch].reshape(-1, batch))
        found = jnp.concatenate(rows)
        yield found if replays == 1 else jnp.repeat(found, replays, axis=0)


def step_keys(key: jax.Array, first: int, count: int) -> jax.Array:
    """Make a key for each of some steps, ``key[count]``, apart from those of orders.

    Args:
        key: of the run.
        first: the first step, counted from 0 through all epochs.
        count: how many.
    """
    return _step_keys(key, first, jnp.arange(count))


@jax.jit
def _step_keys(key: jax.Array, first: jax.Array, numbers: jax.Array) -> jax.Array:
    # The orders fold in epochs, of which there are never so many.
    own = jax.random.fold_in(key, np.uint32(2**32 - 1))
    return jax.vmap(lambda i: jax.random.fold_in(own, first + i))(numbers)


class Carry(NamedTuple):
    """What steps pass on.

    Attributes:
        params: of the network.
        state: of the optimizer.
        memory: the state of the objective; none for plain losses.
    """

    params: Params
    state: Any
    memory: Any = ()


class Told(NamedTuple):
    """What steps tell, each before its update.

    Attributes:
        loss: ``float[steps]``.
        aux: what the objective reports, ``float[steps]`` by name.
    """

    loss: jax.Array
    aux: dict[str, jax.Array]


def run(
    loss: LossFn | Objective,
    optimizer: optax.GradientTransformation,
    carry: Carry,
    masks: Masks | None,
    data: Any,
    index: jax.Array | None,
    keys: jax.Array | None = None,
) -> tuple[Carry, Told]:
    """Take a step on each ``data[index[i]]``, or ``data[i]`` without an index.

    Args:
        loss: ``loss_fn(params, batch)``, the mean loss of a batch, or an objective.
        optimizer: any Optax transformation.
        carry: where to start. What is no float among params stays as it is; the state
            of the optimizer is that of `swapjax.core.trees.trainable` params.
        masks: entries to keep; the others become zero. None to keep all, or if the
            optimizer itself keeps the others zero.
        data: a pytree of arrays.
        index: as from `indices`, or None.
        keys: one a step, for an objective; from `step_keys`.

    Raises:
        ValueError: for a loss that is no scalar, or has no gradient, and an objective
            whose state changes its shapes or that reports other than scalars.
    """
    return _run((loss, optimizer.update), carry, masks, data, index, keys)


@Compiled
def _run(
    loss: LossFn | Objective,
    update: Callable,
    carry: Carry,
    masks: Masks | None,
    data: Any,
    index: jax.Array | None,
    keys: jax.Array | None,
) -> tuple[Carry, Told]:
    """Take the steps; see `run`."""
    step = _make_step(loss, update, masks)

    def take(carry: Carry, i: Any) -> tuple[Carry, Told]:
        rows, key = i
        return step(carry, rows if index is None else _pick(data, rows), key)

    # Around the loop, which is one equation to do anew, not around each gradient.
    loop = canonical_convolutions(functools.partial(jax.lax.scan, take))
    return loop(carry, (data if index is None else index, keys))


def run_some(
    loss: LossFn | Objective,
    optimizer: optax.GradientTransformation,
    carry: Carry,
    data: Any,
    index: jax.Array,
    keys: jax.Array | None,
    span: tuple[int, int],
    mask_step: bool,
) -> tuple[Carry, Told]:
    """Take some of the steps of an index; one program serves for any number of them.

    Args:
        loss: as `run` takes it, like the arguments that follow.
        optimizer: whose update takes `mask_step`, see `swapjax.sparse`.
        carry: where to start.
        data: a pytree of arrays.
        index: as from `indices`.
        keys: one for each step of the index, or None.
        span: the first of these steps, and the one after the last.
        mask_step: which of the two programs of the optimizer to take.

    Returns:
        As `run`, of all steps of the index, zero where none was taken.
    """
    return _run_some(
        (loss, optimizer.update, mask_step), carry, data, index, keys, *span
    )


@Compiled
def _run_some(
    loss: LossFn | Objective,
    update: Callable,
    mask_step: bool,
    carry: Carry,
    data: Any,
    index: jax.Array,
    keys: jax.Array | None,
    first: jax.Array,
    last: jax.Array,
) -> tuple[Carry, Told]:
    """Take the steps; see `run_some`."""
    update = functools.partial(update, mask_step=mask_step)
    step = _make_step(loss, update, None)

    def at(i: Any, carry: Carry) -> tuple[Carry, Told]:
        return step(carry, _pick(data, index[i]), _pick(keys, i))

    def take(i: jax.Array, so_far: tuple[Carry, Told]) -> tuple[Carry, Told]:
        carry, told = so_far
        carry, now = at(i, carry)
        add = lambda all_, x: all_.at[i].set(x.astype(all_.dtype))  # noqa: E731
        return carry, jax.tree.map(add, told, now)

    def loop(start: tuple[Carry, Told]) -> tuple[Carry, Told]:
        return jax.lax.fori_loop(first, last, take, start)

    _, one = jax.eval_shape(at, 0, carry)
    dtype = jnp.result_type(float)
    told = jax.tree.map(lambda _: jnp.zeros(len(index), dtype), one)
    return canonical_convolutions(loop)((carry, told))


def _pick(data: Any, i: jax.Array) -> Any:
    return jax.tree.map(lambda x: x[i], data)


def _make_step(
    loss: LossFn | Objective, update: Callable, masks: Masks | None
) -> Callable[[Carry, Any, Any], tuple[Carry, Told]]:
    """Make a step: ``(carry, batch, key) -> (carry, told)``."""
    objective = as_objective(loss)

    def step(carry: Carry, batch: Any, key: Any) -> tuple[Carry, Told]:
        params, state, memory = carry
        grads, value, new_memory, aux = objective.value_and_grad(
            params, memory, batch, key
        )
        _require_same_shapes(memory, new_memory)
        _require_scalars(aux)
        seen = trees.trainable(params)
        updates, state = update(grads, state, seen)
        if masks is not None:
            # p + (-p) is exactly zero in every dtype.
            updates = jax.tree.map(
                lambda m, u, p: jnp.where(m, u, -p), masks, updates, seen
            )
        new = trees.filled(optax.apply_updates(seen, updates), params)
        return Carry(new, state, new_memory), Told(value, aux)

    return step


def _require_same_shapes(before: Any, after: Any) -> None:
    """Raise for an objective whose state no loop can carry."""
    (was, old), (now, new) = map(_kinds, (before, after))
    if old != new or was != now:
        raise ValueError(
            "loss of the objective: its state must keep its tree, shapes and dtypes, "
            f"was {old} with {was}, is {new} with {now}"
        )


def _kinds(tree: Any) -> tuple[list[str], Any]:
    leaves, treedef = jax.tree.flatten(tree)
    arrays = [x if hasattr(x, "dtype") else jnp.asarray(x) for x in leaves]
    return [f"{x.dtype}[{','.join(map(str, x.shape))}]" for x in arrays], treedef


def _require_scalars(aux: Any) -> None:
    """Raise for what an objective reports, where no mean of an epoch is made of it."""
    fits = isinstance(aux, dict) and all(
        isinstance(name, str) and jnp.ndim(x) == 0 for name, x in aux.items()
    )
    if not fits:
        raise ValueError(
            "loss of the objective: aux must be a dict of scalars by name, got "
            f"{jax.tree.map(jnp.shape, aux)}"
        )


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
        params = trees.trainable(params)
        state = optimizer.init(params)
        program = jax.make_jaxpr(optimizer.update)(params, state, params)
    except Exception:  # it takes other params, or more arguments: what it holds must do
        code = told
    else:
        code = f"{programs.describe(program)} {identity.digest(state)}"
    return identity.with_code(identity.short_hash(identity.without_code(told)), code)
