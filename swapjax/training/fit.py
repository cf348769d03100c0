"""A training loop that records what masks do, and resumes where it was stopped."""

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from swapjax.core import identity, sharding, trees
from swapjax.core.checks import require_count
from swapjax.core.objective import Objective
from swapjax.core.types import LossFn, Params
from swapjax.loops import steps
from swapjax.loops.steps import Carry
from swapjax.sparsity import masks as masking
from swapjax.training import ending
from swapjax.training.epoch import (
    Epoch,
    compare,
    masks_at_first,
    masks_now,
    residuals_now,
)
from swapjax.training.pace import Pace
from swapjax.training.settle import require_settling
from swapjax.training.state import is_sparse
from swapjax.training.train_function import describe
from swapjax.training.two_programs import Steps

_KIND = "epochs"
_LOSS = "the loss"  # beside what an objective reports


class Fitted(NamedTuple):
    """The result of `fit`.

    Attributes:
        params: trained.
        state: of the optimizer; `swapjax.masks_of` finds masks in it.
        history: the record of each epoch.
    """

    params: Params
    state: Any
    history: tuple[Epoch, ...]


def fit(
    loss_fn: LossFn | Objective,
    params: Params,
    optimizer: optax.GradientTransformation,
    data: Any,
    *,
    epochs: int,
    batch: int | None = None,
    key: jax.Array,
    steps_per_epoch: int | None = None,
    on_host: bool | None = None,
    evaluate: Callable[[Params], float | Mapping[str, float]] | None = None,
    checkpoint: str | Path | None = None,
    callback: Callable[[Epoch], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Fitted:
    """Train with an optimizer, sparse or not.

    Args:
        loss_fn: ``loss_fn(params, batch)``, the mean loss of a batch; or a
            `swapjax.training.Objective`, whose state is kept with the run, and which
            looks at all data before the first step, at batches as they first come.
        params: any pytree of arrays and numbers. Under `swapjax.sparse` training starts
            from what its first masks leave of them.
        optimizer: any Optax transformation.
        data: a pytree of arrays with a leading axis of examples, of which each epoch
            has an order of its own and takes whole batches only; or batches as they
            are, as data loaders give them: an iterable, a list, a function that makes
            an iterator. An epoch is one pass over them. A batch of another size, as the
            last may be, is a step like the others, and one more compilation.
        epochs: how many passes over the data. An objective with replays takes each
            batch for as many steps in a row, and so an epoch has as many times the
            steps; schedules of masks and learning rates count steps.
        batch: examples a step; left out where data are batches.
        key: a JAX PRNG key, for the orders and for what an objective draws.
        steps_per_epoch: how many batches an epoch takes, where they are not one pass:
            the next goes on where it stopped. An iterator, which can be seen once only,
            and a loader without an end need it.
        on_host: whether arrays of NumPy, as a file mapped into memory, stay there and
            are sent some steps at a time, which changes no bit of the results. By
            default those that would take more than half of the device's memory.
        evaluate: ``params -> accuracy`` after each epoch, for the history; or a mapping
            with ``"accuracy"`` and other numbers, which the history tells by name.
        checkpoint: a file to keep the state in after each epoch. If it exists, the run
            goes on from there, and ends bit for bit as if it had never stopped. It
            cannot tell one loss from another, but tells objectives apart; nor other
            batches, which are gone through up to where it stopped and must come in the
            same order.
        callback: called with each finished epoch; training ends with that epoch if it
            raises StopIteration, as in ``scipy.optimize``. The status of that epoch
            says so, with the text of the exception, and a call with the checkpoint of
            that run returns it as it ended.
        progress: called now and then with the steps done and the steps in all.

    Returns:
        Params, the state of the optimizer, and the history. Where no optimizer keeps
        masks, the history counts the zeros of what names tell to be matrices.

    Raises:
        ValueError: for arguments out of range, masks that would change after training,
            data without arrays or with fewer examples than a batch, batches that end
            early, a list that the loss takes both for one pytree and for batches,
            params and losses that are not finite; and a checkpoint of another run, in
            no folder, or of a run of several processes.

    Warns:
        UserWarning: of what `swapjax.check_state` finds after an epoch, once, and of
            masks that are less sparse in the end than they should be, as where updates
            were skipped; and of the reason that a callback gave to end training. The
            history keeps them all, and the run is not lost.

    Example:
        >>> import optax, swapjax
        >>> from swapjax.training import fit
        >>> x = jax.random.normal(jax.random.key(0), (32, 4))
        >>> def loss_fn(params, x):
        ...     return jnp.mean((x @ params["kernel"] - 2 * x[:, :2]) ** 2)
        >>> tx = swapjax.sparse(
        ...     optax.sgd(0.1), swapjax.gmp(), sparsity=0.75,
        ...     schedule=swapjax.cubic(0, 8, every=4))
        >>> params = {"kernel": jnp.full((4, 2), 0.5)}
        >>> fitted = fit(loss_fn, params, tx, x, epochs=3, batch=8,
        ...              key=jax.random.key(2))
        >>> [(epoch.steps, epoch.sparsity) for epoch in fitted.history]
        [(4, 0.625), (8, 0.75), (12, 0.75)]
    """
    require_count("epochs", epochs)
    params = _as_arrays(params)
    pace = Pace(
        loss_fn, params, data, batch=batch, batches=steps_per_epoch, key=key,
        on_host=on_host,
    )  # fmt: skip
    moved = trees.trainable(params)
    state = optimizer.init(moved)
    require_settling(optimizer, state, moved, epochs * pace.each)
    start = Carry(params, state, pace.begin(params))
    first = masks_at_first(params, state)
    own = {"objective": loss_fn} if isinstance(loss_fn, Objective) else {}
    run = _fingerprint(
        checkpoint, start, key, optimizer, pace, {"epochs": epochs, "batch": batch},
        evaluate=describe(evaluate), **own,
    )  # fmt: skip
    found = _load(checkpoint, start, run, epochs)
    if found is None:
        # Dense weights would shape the first gradients otherwise.
        sparse = is_sparse(state)
        shaped = masking.apply_masks(params, first) if sparse else params
        found = start._replace(params=shaped), ()

    take_steps = Steps(loss_fn, optimizer, moved, state)
    carry, history = found
    masks = masks_now(carry.params, carry.state, first)
    for number in ending.left(history, epochs):
        started, told = time.perf_counter(), dict[str, list[float]]()
        for part, index, keys in pace.steps(params, number):
            carry, now = take_steps(carry, part, index, keys)
            _add(told, {_LOSS: now.loss, **now.aux})
            _require_finite(told[_LOSS], number)
            if progress is not None:
                done = (number - 1) * pace.each + len(told[_LOSS])
                progress(done, epochs * pace.each)
        means = {name: sum(values) / len(values) for name, values in told.items()}
        loss = means.pop(_LOSS)
        accuracy, others = _evaluate(evaluate, carry.params, means)
        before, masks = masks, masks_now(carry.params, carry.state, first)
        densities, sparsity, churn = compare(before, masks)
        epoch = Epoch(
            epoch=number,
            steps=number * pace.each,
            loss=loss,
            accuracy=accuracy,
            sparsity=sparsity,
            densities=densities,
            churn=churn,
            seconds=time.perf_counter() - started,
            status=ending.warn(carry.state, history, last=number == epochs),
            told=means | others | residuals_now(carry.params, carry.state),
        )
        history = (*history, epoch)
        _save(checkpoint, carry, history, run)
        if said := ending.said_by(callback, epoch):
            history = ending.ended(history, said, carry.state, last=number == epochs)
            _save(checkpoint, carry, history, run)
            break
    return Fitted(carry.params, carry.state, history)


def _add(told: dict[str, list[float]], now: Mapping[str, Any]) -> None:
    """Gather what steps tell."""
    for name, values in now.items():
        told.setdefault(name, []).extend(np.asarray(values, np.float64).tolist())


def _evaluate(
    evaluate: Callable | None, params: Params, aux: Mapping[str, Any]
) -> tuple[float | None, dict[str, float]]:
    """Take the accuracy, and other numbers by name, of what evaluates."""
    if evaluate is None:
        return None, {}
    found = evaluate(params)
    if not isinstance(found, Mapping):
        return float(found), {}
    others = {name: float(x) for name, x in found.items() if name != "accuracy"}
    if "accuracy" not in found or others.keys() & aux.keys():
        raise ValueError(
            "evaluate must return an accuracy, or a mapping with 'accuracy' and names "
            f"that the objective does not report, got {sorted(found)} beside "
            f"{sorted(aux)}"
        )
    return float(found["accuracy"]), others


def _as_arrays(params: Params) -> Params:
    """Check params, and put them on the device."""
    trees.require_arrays(params, "params")
    params = jax.tree.map(jnp.asarray, params)
    trees.require_finite(trees.paths(params), jax.tree.leaves(params), "params")
    return params


def _require_finite(losses: list[float], epoch: int) -> None:
    bad = [step for step, loss in enumerate(losses) if not math.isfinite(loss)]
    if not bad:
        return
    found, data = losses[bad[0]], "the data, as for labels out of range"
    if epoch > 1:  # the data were seen
        said = f"the loss became {found} in epoch {epoch}; take a smaller learning rate"
    elif bad[0]:
        said = (
            f"the loss became {found} in epoch {epoch}; take a smaller learning rate, "
            f"or look at {data}"
        )
    else:
        said = f"the loss is {found} before the first update; look at it and at {data}"
    raise ValueError(f"fit: {said}")


def _fingerprint(
    path: str | Path | None,
    start: Carry,
    key: jax.Array,
    optimizer: optax.GradientTransformation,
    pace: Pace,
    lengths: dict[str, Any],
    **more: Any,
) -> dict[str, str]:
    """Tell the run apart from others, for its file; nothing without one."""
    if path is None:
        return {}
    # Imported here so that the core does without safetensors.
    from swapjax.io import resume

    resume.require_room(path)
    told = {
        "data": pace.describe(),
        "optimizer": steps.describe(optimizer, start.params),
        "state": identity.digest(start.state),
    }
    return resume.fingerprint(start.params, key, **lengths, **told, **more)


def _save(
    path: str | Path | None,
    carry: Carry,
    history: tuple[Epoch, ...],
    run: dict[str, str],
) -> None:
    if path is None:
        return
    from swapjax.io import resume

    notes = {"history": [epoch.to_dict() for epoch in history]}
    resume.save(path, resume.State(_named(carry), notes), run, _KIND)


def _load(
    path: str | Path | None, like: Carry, run: dict[str, str], epochs: int
) -> tuple[Carry, tuple[Epoch, ...]] | None:
    if path is None:
        return None
    from swapjax.io import records, resume

    kept = _named(like)
    state = resume.load(path, kept, run, _KIND)
    if state is None:
        return None
    kept = {k: sharding.put_like(tree, kept[k]) for k, tree in state.trees.items()}
    history = records.read(
        path, state.notes, Epoch, lambda epoch: Epoch(**epoch), range(1, epochs + 1)
    )
    return Carry(kept["params"], kept["state"], kept["objective"]), history


def _named(carry: Carry) -> dict[str, Any]:
    """Name what a file keeps."""
    return {"params": carry.params, "state": carry.state, "objective": carry.memory}
