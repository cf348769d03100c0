"""A training loop that records what masks do, and resumes where it was stopped."""

import dataclasses
import math
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from swapjax.core import identity, sharding, trees
from swapjax.core.checks import require_count
from swapjax.core.counts import partial_counts, total
from swapjax.core.types import LossFn, Masks, Params
from swapjax.loops import steps
from swapjax.sparsity import masks as masking
from swapjax.sparsity.planning import plan
from swapjax.training.settle import require_settling, tell, tell_unsettled
from swapjax.training.state import is_sparse, masks_of
from swapjax.training.train_function import describe
from swapjax.training.two_programs import Steps

_KIND = "epochs"


@dataclasses.dataclass(frozen=True)
class Epoch:
    """The record of one epoch.

    Attributes:
        epoch: its number, from 1.
        steps: updates since the start.
        loss: the mean over its steps, each before its update.
        accuracy: what `evaluate` returned after it, None without one.
        sparsity: the fraction of prunable entries that are zero after it.
        densities: the fraction that is left, by the path of each prunable leaf.
        churn: prunable entries that were active before or after it, but not both.
        seconds: wall time, compilation and evaluation included.
        status: what `swapjax.check_state` finds after it, and whether mask steps are
            missing at the end; empty where all is well.
    """

    epoch: int
    steps: int
    loss: float
    accuracy: float | None
    sparsity: float
    densities: dict[str, float]
    churn: int
    seconds: float
    status: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Convert to what JSON takes."""
        return dataclasses.asdict(self)


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
    loss_fn: LossFn,
    params: Params,
    optimizer: optax.GradientTransformation,
    data: Any,
    *,
    epochs: int,
    batch: int,
    key: jax.Array,
    evaluate: Callable[[Params], float] | None = None,
    checkpoint: str | Path | None = None,
    callback: Callable[[Epoch], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Fitted:
    """Train with an optimizer, sparse or not.

    Args:
        loss_fn: ``loss_fn(params, batch)``, the mean loss of a batch.
        params: any pytree of arrays and numbers. Under `swapjax.sparse` training starts
            from what its first masks leave of them.
        optimizer: any Optax transformation.
        data: a pytree of arrays with a leading axis of examples; it stays on the
            device. Each epoch has an order of its own and takes whole batches only.
        epochs: how many.
        batch: examples a step.
        key: a JAX PRNG key, for the orders.
        evaluate: ``params -> accuracy`` after each epoch, for the history.
        checkpoint: a file to keep the state in after each epoch. If it exists, the run
            goes on from there, and ends bit for bit as if it had never stopped. It
            cannot tell one loss from another.
        callback: called with each finished epoch.
        progress: called now and then with the steps done and the steps in all.

    Returns:
        Params, the state of the optimizer, and the history. Where no optimizer keeps
        masks, the history counts the zeros of what names tell to be matrices.

    Raises:
        ValueError: for arguments out of range, masks that would change after training,
            data without arrays or with fewer examples than a batch, params and losses
            that are not finite; and a checkpoint of another run, in no folder, or of a
            run of several processes.

    Warns:
        UserWarning: of what `swapjax.check_state` finds after an epoch, once, and of
            masks that are less sparse in the end than they should be, as where updates
            were skipped. The history keeps both, and the run is not lost.

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
    require_count("batch", batch)
    params, data = _as_arrays(params, data)
    per_epoch = steps.per_epoch(data, batch, "batch")
    moved = steps.trainable(params)
    state = optimizer.init(moved)
    require_settling(optimizer, state, moved, epochs * per_epoch)
    sparse = is_sparse(state)
    first = masks_of(state, params) if sparse else _prunable(params)

    found, run = None, {}
    if checkpoint is not None:
        # Imported here so that the core does without safetensors.
        from swapjax.io import resume

        resume.require_room(checkpoint)
        run = resume.fingerprint(
            params, key, epochs=epochs, batch=batch, data=identity.digest(data),
            optimizer=steps.describe(optimizer, params), state=identity.digest(state),
            evaluate=describe(evaluate),
        )  # fmt: skip
        found = _load(checkpoint, Fitted(params, state, ()), run, epochs)
    if found is None:
        # Dense weights would shape the first gradients otherwise.
        start = masking.apply_masks(params, first) if sparse else params
        found = Fitted(start, state, ())

    take_steps = Steps(loss_fn, optimizer, moved, state)
    masks = _masks_now(found, first)
    for number in range(len(found.history) + 1, epochs + 1):
        started, losses = time.perf_counter(), []
        params, state, history = found
        done = (number - 1) * per_epoch
        for index in steps.indices(key, data, batch, done, number * per_epoch):
            params, state, some = take_steps(params, state, data, index)
            losses.extend(np.asarray(some, np.float64).tolist())
            _require_finite(losses, number)
            if progress is not None:
                progress(done + len(losses), epochs * per_epoch)
        accuracy = None if evaluate is None else float(evaluate(params))
        found = Fitted(params, state, history)
        before, masks = masks, _masks_now(found, first)
        densities, sparsity, churn = _compare(before, masks)
        epoch = Epoch(
            epoch=number,
            steps=done + len(losses),
            loss=sum(losses) / len(losses),
            accuracy=accuracy,
            sparsity=sparsity,
            densities=densities,
            churn=churn,
            seconds=time.perf_counter() - started,
            status=_warn(found, last=number == epochs),
        )
        found = found._replace(history=(*history, epoch))
        if checkpoint is not None:
            _save(checkpoint, found, run)
        if callback is not None:
            callback(epoch)
    return found


def _warn(fitted: Fitted, last: bool) -> str:
    """Say what is wrong with masks after an epoch, and warn of it if that is new."""
    said = tell(fitted.state)
    missing = tell_unsettled(fitted.state) if last else ""
    before = {epoch.status for epoch in fitted.history}
    for text in (said if said not in before else "", missing):
        if text:
            warnings.warn(f"fit: {text}", stacklevel=3)
    return "; ".join(filter(None, (said, missing)))


def _as_arrays(params: Params, data: Any) -> tuple[Params, Any]:
    """Check params and data, and put them on the device."""
    if isinstance(data, Iterator):
        raise ValueError("data: give arrays; an iterator of batches can be seen once")
    trees.require_arrays(params, "params")
    params = jax.tree.map(jnp.asarray, params)
    trees.require_finite(trees.paths(params), jax.tree.leaves(params), "params")
    return params, jax.tree.map(jnp.asarray, data)


def _masks_now(fitted: Fitted, first: Masks) -> Masks:
    """Take the masks of the optimizer, or those of the zeros where it has none."""
    if is_sparse(fitted.state):
        return masks_of(fitted.state, fitted.params)
    return masking.from_zeros(fitted.params, first)


def _prunable(params: Params) -> Masks:
    """Make masks that tell which leaves to count zeros of."""
    try:
        target = plan(params, 0.0)
    except ValueError:  # there is none
        return jax.tree.map(lambda _: jnp.asarray(True), params)
    return target.layout.masks(target.layout.everything())


def _compare(before: Masks, after: Masks) -> tuple[dict[str, float], float, int]:
    """Measure the densities of leaves, the sparsity of all, and the entries that moved.

    One call to the device, however many leaves there are.
    """
    paths = trees.paths(after)
    leaves = zip(paths, jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    pairs = {path: (a, b) for path, a, b in leaves if np.ndim(b) and b.size}
    counts = jax.device_get(_count(pairs))
    kept = {path: total(count) for path, (count, _) in counts.items()}
    sizes = {path: b.size for path, (_, b) in pairs.items()}
    densities = {path: kept[path] / sizes[path] for path in pairs}
    sparsity = 1 - sum(kept.values()) / sum(sizes.values()) if sizes else 0.0
    return densities, sparsity, sum(total(changed) for _, changed in counts.values())


@jax.jit
def _count(pairs: dict[str, tuple]) -> dict[str, tuple]:
    return {
        path: (partial_counts(b), partial_counts(a != b))
        for path, (a, b) in pairs.items()
    }


def _require_finite(losses: list[float], epoch: int) -> None:
    bad = [loss for loss in losses if not math.isfinite(loss)]
    if bad:
        raise ValueError(
            f"fit: the loss became {bad[0]} in epoch {epoch}; take a smaller learning "
            "rate"
        )


def _save(path: str | Path, found: Fitted, run: dict[str, str]) -> None:
    from swapjax.io import resume

    kept = {"params": found.params, "state": found.state}
    notes = {"history": [epoch.to_dict() for epoch in found.history]}
    resume.save(path, resume.State(kept, notes), run, _KIND)


def _load(
    path: str | Path, like: Fitted, run: dict[str, str], epochs: int
) -> Fitted | None:
    from swapjax.io import records, resume

    kept = {"params": like.params, "state": like.state}
    state = resume.load(path, kept, run, _KIND)
    if state is None:
        return None
    kept = {k: sharding.put_like(tree, kept[k]) for k, tree in state.trees.items()}
    history = records.read(
        path, state.notes, Epoch, lambda epoch: Epoch(**epoch), range(1, epochs + 1)
    )
    return Fitted(kept["params"], kept["state"], history)
