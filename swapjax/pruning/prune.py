"""The driver: stages of fresh gradients, a sparser support, a re-fit, fine-tuning."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from swapjax.activations.trace import second_moments
from swapjax.core import sharding, trees
from swapjax.core.checks import require_count
from swapjax.core.types import Leaves, LossFn, Masks, Params, Status
from swapjax.gradients.build import check_storage, form, recipe
from swapjax.gradients.matrix_free import MatrixFreeRows
from swapjax.gradients.operator import Corruption, Storage
from swapjax.loops.examples import Source
from swapjax.loops.finetune import FineTune
from swapjax.loops.finetune import finetune as tune
from swapjax.pruning.history import Saved, Stage
from swapjax.pruning.method import Method, Problem, Solution
from swapjax.pruning.methods.swap import swap
from swapjax.sparsity import masks as masking
from swapjax.sparsity import schedules
from swapjax.sparsity.bounds import allowed, room
from swapjax.sparsity.budget import Budget
from swapjax.sparsity.plan import Plan, planned


class Pruned(NamedTuple):
    """A pruned network.

    Attributes:
        params: zero where masks are False.
        masks: with the tree of params; the scalar True for a leaf never pruned.
        history: what each stage did.
    """

    params: Params
    masks: Masks
    history: tuple[Stage, ...]


def prune(
    loss_fn: LossFn,
    params: Params,
    data: Any,
    *,
    sparsity: float | None = None,
    plan: Plan | None = None,
    method: Method | None = None,
    stages: int = 1,
    samples: int = 1000,
    batch: int = 1,
    schedule: schedules.Schedule | None = None,
    key: jax.Array,
    finetune: FineTune | None = None,
    recalibrate: Callable[[Params], Params] | None = None,
    within: Masks | None = None,
    checkpoint: str | Path | None = None,
    noise: Corruption | None = None,
    storage: Storage = "auto",
    dtype: Any = None,
    callback: Callable[[Stage], None] | None = None,
) -> Pruned:
    """Prune a trained network.

    Every stage takes gradients of fresh examples at the current weights, lets the
    method choose a support of the stage's size and re-fit the weights on it, and then
    fine-tunes and recalibrates if asked to. A weight pruned at one stage may return at
    a later one.

    Args:
        loss_fn: ``loss_fn(params, batch)``, the mean loss of a batch whose leaves have
            a leading axis of examples. All that is known of the network; evaluate it
            in inference mode.
        params: the trained weights, any pytree of arrays.
        data: a pytree of arrays with a leading axis of examples, of which each stage
            draws ``samples * batch`` distinct ones; or an iterator of such batches,
            of which each stage takes as many as it needs.
        sparsity: the fraction of prunable entries to remove, in [0, 1); leaves named
            ``kernel`` or ``weight`` of rank 2 or more are prunable.
        plan: instead of a sparsity, made by `swapjax.plan` with rules of its own.
        method: `swap` by default, or `linear_regression`, or `magnitude`.
        stages: how many rounds.
        samples: gradient rows a stage.
        batch: examples averaged into one row. Rows of 16 examples see 16 times as
            much data in the same memory.
        schedule: the sparsities on the way; by default `schedules.exponential` from
            0.1.
        key: a JAX PRNG key; the same key gives the same result.
        finetune: optimizer steps after each stage.
        recalibrate: ``params -> params``, called last in each stage, to estimate batch
            statistics anew for instance. Its result is masked again.
        within: masks outside of which nothing may be kept, to prune a sparse network
            further.
        checkpoint: a file to keep the state in after each stage. If it exists, the run
            goes on from there, and ends bit for bit as if it had never stopped.
        noise: what corrupts the gradient rows, as `noise.GradientNoise`.
        storage: ``"stored"`` keeps the rows in memory, samples times the prunable
            entries; ``"matrix-free"`` recomputes them in every product; ``"auto"``
            stores what is below 2 GiB.
        dtype: of stored rows; ``jnp.bfloat16`` halves their memory.
        callback: called with each finished stage.

    Params may be sharded over devices in any way, and data too: each device then takes
    the gradients of its own examples. Results lie where params did. In a run of several
    processes each calls this with the same arguments.

    Returns:
        Params, masks and history.

    Raises:
        ValueError: for arguments out of range, too few examples, entries that are not
            finite in params, data or gradients, masks that do not belong to params,
            params and data on different devices, and a checkpoint of another run, in
            no folder, or of a run of several processes.

    Example:
        >>> import jax, jax.numpy as jnp, swapjax
        >>> params = {"kernel": jax.random.normal(jax.random.key(0), (8, 3))}
        >>> x = jax.random.normal(jax.random.key(1), (50, 8))
        >>> y = x @ params["kernel"] + 0.1
        >>> def loss_fn(params, batch):
        ...     x, y = batch
        ...     return jnp.mean((x @ params["kernel"] - y) ** 2)
        >>> key = jax.random.key(2)
        >>> pruned = swapjax.prune(
        ...     loss_fn, params, (x, y), sparsity=0.5, samples=50, key=key)
        >>> int(jnp.sum(pruned.params["kernel"] != 0))
        12
    """
    method = swap() if method is None else method
    schedule = schedules.exponential(initial=0.1) if schedule is None else schedule
    if schedule.start is not None:
        raise ValueError(
            f"schedule: {schedule} counts updates of an optimizer, for swapjax.sparse; "
            "leave start and end out for stages"
        )
    check_storage(storage)
    for name, value in (("stages", stages), ("samples", samples), ("batch", batch)):
        require_count(name, value)
    if not isinstance(method, Method):
        raise ValueError(
            "method must be what a function like swapjax.swap() returns, got "
            f"{method!r}"
        )
    if noise is not None and not callable(noise):
        raise ValueError(
            "noise must be a function of rows, such as "
            f"swapjax.gradients.noise.GradientNoise(scale, proportion), got {noise!r}"
        )
    trees.require_arrays(params, "params")
    params = brought = jax.tree.map(jnp.asarray, params)
    arrays = () if isinstance(data, Iterator) else data
    sharding.require_same_devices(params=params, data=arrays, within=within)
    params, within = sharding.leave_to_compiler((params, within))
    data = data if isinstance(data, Iterator) else sharding.leave_to_compiler(data)
    target = planned(params, sparsity, plan)
    target.require_entries("prune")
    initial = target.split(params)
    trees.require_finite(trees.paths(params), jax.tree.leaves(params), "params")
    source = Source(data, samples * batch)
    inside = None if within is None else allowed(within, params, target)
    table = schedule.table(target.sparsity, stages)
    budgets = _budgets([target.at(level) for level in table], inside)

    state = Saved(params, None, (), 0)
    if checkpoint is not None:
        # Imported here so that the core does without safetensors.
        from swapjax.io.resume import require_room
        from swapjax.pruning import resume

        require_room(checkpoint)
        run = resume.fingerprint(
            params, key, method=method, stages=stages, samples=samples, batch=batch,
            sparsity=float(target.sparsity), plan=repr(target), schedule=schedule,
            noise=noise, dtype=dtype, storage=storage, data=source.digest(),
            within=within and resume.digest(within),
            finetune=finetune and finetune.describe(),
        )  # fmt: skip
        state = resume.load(checkpoint, params, run) or state
        state = state._replace(params=sharding.put_like(state.params, params))
        source.skip(state.batches)

    for t in range(len(state.history), stages):
        started = time.perf_counter()
        draw_key, noise_key, tune_key = jax.random.split(jax.random.fold_in(key, t), 3)
        examples = source.draw(draw_key)
        rows = recipe(
            loss_fn, state.params, examples, target,
            batch=batch, dtype=dtype, corruption=noise, key=noise_key,
            spread=source.spread,
        )  # fmt: skip
        before = _loss(rows, state.params)
        layers = None
        if method.needs_layers:
            layers = second_moments(
                loss_fn, state.params, examples, target.paths,
                batch=batch, chunk=rows.chunk,
            )  # fmt: skip
        problem = Problem(
            weights=target.split(state.params),
            initial=initial,
            rows=form(rows, target, storage) if method.needs_rows else None,
            within=inside,
            layers=layers,
            params=state.params if method.needs_params else None,
            positions=target.positions,
        )
        solution = _solve(method, problem, budgets[t])
        new = target.merge(solution.weights, state.params)
        masks = target.masks(solution.masks)
        if finetune is not None:
            new = tune(loss_fn, new, source.stream, finetune, masks=masks, key=tune_key)
        if recalibrate is not None:
            new = masking.apply_masks(recalibrate(new), masks)
        new = sharding.put_like(new, params)
        trees.require_finite(trees.paths(new), jax.tree.leaves(new), "params")
        stage = _stage(t + 1, masks, solution, before, _loss(rows, new), started)
        state = Saved(new, masks, (*state.history, stage), source.taken)
        if checkpoint is not None:
            resume.save(checkpoint, state, run)
        if callback is not None:
            callback(stage)
    # Masks lie with the weights that they are of.
    pruned, masks = (
        sharding.put_like(tree, brought) for tree in (state.params, state.masks)
    )
    return Pruned(pruned, masks, state.history)


# Methods are static and compare by their settings: one compilation serves all stages,
# and all methods of the same settings.
_solve = jax.jit(lambda method, *args: method(*args), static_argnums=0)


@jax.jit
def _loss(rows: MatrixFreeRows, params: Params) -> jax.Array:
    """The mean loss of the rows' examples at other params, prunable or not."""
    moved = dataclasses.replace(rows, params=params)
    return moved.loss(trees.take(params, rows.positions))


def _budgets(stages: list[Plan], inside: Leaves | None) -> list[Budget]:
    """The counts of every stage, no more than what may be kept at all."""
    if inside is None:
        return [stage.budget for stage in stages]
    there = jnp.asarray(room(stages[-1], inside), jnp.int32)
    return [
        dataclasses.replace(b, keep=jnp.minimum(b.keep, there))
        for b in (stage.budget for stage in stages)
    ]


def _stage(
    number: int,
    masks: Masks,
    solution: Solution,
    before: jax.Array,
    after: jax.Array,
    started: float,
) -> Stage:
    kept, total = masking.count(masks)
    return Stage(
        stage=number,
        sparsity=1 - kept / total,
        kept=kept,
        objective=(float(solution.objective[0]), float(solution.objective[-1])),
        loss_before=float(before),
        loss=float(after),
        seconds=time.perf_counter() - started,
        status=Status(int(solution.status)),
        iterations=int(solution.iterations),
        details={k: float(v) for k, v in solution.details.items()},
    )
