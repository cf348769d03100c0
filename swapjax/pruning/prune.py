"""The driver: stages of fresh gradients, a sparser support, a re-fit, fine-tuning."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from swapjax.activations.layer import Layer
from swapjax.activations.trace import second_moments
from swapjax.core import counts, identity, sharding, trees
from swapjax.core.types import Leaves, LossFn, Masks, Params, Status
from swapjax.gradients.build import recipe
from swapjax.gradients.matrix_free import MatrixFreeRows
from swapjax.gradients.operator import Corruption, Storage
from swapjax.gradients.unit import form_in_unit
from swapjax.io import resume
from swapjax.loops.finetune import FineTune
from swapjax.loops.finetune import finetune as tune
from swapjax.pruning import history
from swapjax.pruning.history import Pruned, Saved, Stage
from swapjax.pruning.inputs import Inputs, Settings, place
from swapjax.pruning.judgement import mean_loss, never_worse
from swapjax.pruning.method import Method, Problem, Solution
from swapjax.pruning.methods.swap import swap
from swapjax.sparsity import masks as masking
from swapjax.sparsity import schedules
from swapjax.sparsity.budget import Budget
from swapjax.sparsity.plan import Plan


def prune(
    loss_fn: LossFn | None,
    params: Params,
    data: Any = None,
    *,
    sparsity: float | None = None,
    plan: Plan | None = None,
    method: Method | None = None,
    stages: int = 1,
    samples: int = 1000,
    batch: int = 1,
    schedule: schedules.Schedule | None = None,
    key: jax.Array | None = None,
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
            in inference mode. Without data it may be None.
        params: the trained weights, any pytree of arrays.
        data: a pytree of arrays with a leading axis of examples, of which each stage
            draws ``samples * batch`` distinct ones; or an iterator of such batches,
            of which each stage takes as many as it needs. None for a method that looks
            at weights alone, as `magnitude`; with one, data only tells the loss, and
            may be fewer than samples.
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
        key: a JAX PRNG key; the same key gives the same result. None where nothing is
            drawn: without data, for a method that looks at weights alone, and for
            batches of an iterator.
        finetune: optimizer steps after each stage.
        recalibrate: ``params -> params``, called last in each stage, to estimate batch
            statistics anew for instance. Its result is masked again.
        within: masks outside of which nothing may be kept, to prune a sparse network
            further. A group of a pattern n:m with fewer than n entries keeps what it
            has.
        checkpoint: a file to keep the state in after each stage. If it exists, the run
            goes on from there, and ends bit for bit as if it had never stopped.
        noise: what corrupts the gradient rows, as `swapjax.GradientNoise`; methods
            that take no gradients do not see it.
        storage: ``"stored"`` keeps the rows in memory, samples times the prunable
            entries; ``"matrix-free"`` recomputes them in every product; ``"auto"``
            stores what is below 2 GiB.
        dtype: of stored rows; ``jnp.bfloat16`` halves their memory.
        callback: called with each finished stage.

    Params may be sharded over devices in any way, and data too: each device then takes
    the gradients of its own examples. Results keep the sharding of params. In a run of
    several processes each calls this with the same arguments.

    Returns:
        Params, masks and history.

    Raises:
        ValueError: for arguments out of range, data or a key that is missing, too few
            examples, entries that are not finite in params, data or gradients, masks
            that do not belong to params or are False in a leaf that is not prunable,
            params and data on different devices, and a checkpoint of another run, in no
            folder, or of a run of several processes.

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
    settings = Settings(
        loss_fn=loss_fn,
        method=swap() if method is None else method,
        stages=stages,
        samples=samples,
        batch=batch,
        schedule=schedules.exponential(initial=0.1) if schedule is None else schedule,
        key=key,
        finetune=finetune,
        recalibrate=recalibrate,
        noise=noise,
        storage=storage,
        dtype=dtype,
        callback=callback,
    )
    trees.require_arrays(params, "params")
    brought = jax.tree.map(jnp.asarray, params)
    inputs = place(settings, brought, data, sparsity=sparsity, plan=plan, within=within)
    state = Saved(inputs.params, None, (), 0)
    if checkpoint is not None:
        resume.require_room(checkpoint)
        run = _fingerprint(settings, inputs)
        found = history.load(
            checkpoint, inputs.params, inputs.plan, run, stages=stages,
            counts=inputs.source is not None and inputs.source.counts,
        )  # fmt: skip
        state = found or state
        state = state._replace(params=sharding.put_like(state.params, inputs.params))
        if inputs.source is not None:
            inputs.source.skip(state.batches)
    for number in range(len(state.history), stages):
        state = _advance(settings, inputs, state, number)
        if checkpoint is not None:
            history.save(checkpoint, state, run)
        if callback is not None:
            callback(state.history[-1])
    # Masks take the sharding of their weights.
    pruned, masks = (
        sharding.put_like(tree, brought) for tree in (state.params, state.masks)
    )
    return Pruned(pruned, masks, state.history)


def _advance(settings: Settings, inputs: Inputs, state: Saved, number: int) -> Saved:
    """Do one stage: gradients, support, re-fit, fine-tuning, batch statistics."""
    started = time.perf_counter()
    target, source, method = inputs.plan, inputs.source, settings.method
    layout = target.layout
    draw_key, noise_key, tune_key = settings.keys(number)
    free, layers = _look(settings, inputs, state.params, draw_key, noise_key)
    before, rows = mean_loss(free, state.params), None
    if free is not None and method.needs_rows:
        rows = form_in_unit(free, target, settings.storage)
    problem = Problem(
        weights=layout.split(state.params),
        initial=inputs.initial,
        rows=rows,
        within=inputs.within,
        layers=layers,
        params=state.params if method.needs_params else None,
        layout=layout,
    )
    solution = _solve(method, problem, inputs.budgets[number])
    _check_support(method, solution, inputs.budgets[number])
    solution = never_worse(free, problem.weights, solution)
    if rows is not None:
        assert rows.unit is not None
        details = {**solution.details, "unit": rows.unit}
        solution = solution._replace(details=details)
    new = layout.merge(solution.weights, state.params)
    masks = layout.masks(solution.masks)
    if settings.finetune is not None:
        assert settings.loss_fn is not None
        assert source is not None
        new = tune(
            settings.loss_fn, new, source.stream, settings.finetune, masks=masks,
            key=jax.random.key(0) if tune_key is None else tune_key,
        )  # fmt: skip
    if settings.recalibrate is not None:
        new = masking.apply_masks(settings.recalibrate(new), masks)
    new = sharding.put_like(new, inputs.params)
    trees.require_finite(trees.paths(new), jax.tree.leaves(new), "params")
    after = mean_loss(free, new)
    stage = _report(number + 1, masks, solution, before, after, started)
    taken = 0 if source is None else source.taken
    return Saved(new, masks, (*state.history, stage), taken)


def _look(
    settings: Settings,
    inputs: Inputs,
    params: Params,
    draw_key: jax.Array | None,
    noise_key: jax.Array | None,
) -> tuple[MatrixFreeRows | None, tuple[Layer, ...] | None]:
    """Draw examples: the rows that follow from them, unformed, and what layers read."""
    if inputs.source is None:
        return None, None
    assert settings.loss_fn is not None
    examples = inputs.source.draw(draw_key)
    rows = recipe(
        settings.loss_fn, params, examples, inputs.plan,
        batch=settings.batch, dtype=settings.dtype, corruption=settings.corruption,
        key=noise_key, spread=inputs.source.spread,
    )  # fmt: skip
    if not settings.method.needs_layers:
        return rows, None
    layers = second_moments(
        settings.loss_fn, params, examples, inputs.plan.layout.paths,
        batch=settings.batch, chunk=rows.chunk,
    )  # fmt: skip
    return rows, layers


def _fingerprint(settings: Settings, inputs: Inputs) -> dict[str, str]:
    """Tell the run apart from others, for its file."""
    target, source, within = inputs.plan, inputs.source, inputs.within
    return resume.fingerprint(
        inputs.params,
        settings.key,
        **settings.describe(),
        sparsity=float(target.sparsity),
        plan=target,
        data=source and source.digest(),
        within=within and identity.digest(within),
    )


# Methods are static and compare by their settings: one compilation serves all stages,
# and all methods of the same settings.
_solve = jax.jit(lambda method, *args: method(*args), static_argnums=0)


def _check_support(method: Method, solution: Solution, budget: Budget) -> None:
    """Raise for a solution that keeps more than the budget, or weights off its support.

    Raises:
        ValueError: naming the method.
    """
    parts = _count(solution.masks, solution.weights)
    kept, loose = (sum(map(counts.total, part)) for part in parts)
    wanted = counts.total(budget.keep)
    if kept > wanted:
        raise ValueError(
            f"method {method.name}: keeps {kept:,} entries, more than the {wanted:,} "
            "of its budget; choose them with swapjax.select"
        )
    if loose:
        raise ValueError(
            f"method {method.name}: {loose:,} weights are not zero where masks are "
            "False"
        )


@jax.jit
def _count(masks: Leaves, weights: Leaves) -> tuple[Leaves, Leaves]:
    """Count the entries that are kept, and the weights besides that are not zero.

    In parts: those of all leaves together may be more than an int32 holds.
    """
    pairs = zip(masks, weights, strict=True)
    loose = tuple(counts.partial_counts(~m & (w != 0)) for m, w in pairs)
    return tuple(map(counts.partial_counts, masks)), loose


def _report(
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
