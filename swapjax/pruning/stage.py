"""One stage of a run: gradients, support, re-fit, fine-tuning, batch statistics."""

import dataclasses
import math
import time
from contextlib import nullcontext

import jax
import jax.numpy as jnp
import numpy as np

from swapjax.core import sharding, trees
from swapjax.core.configuration import lenient
from swapjax.core.threads import one_blas_thread
from swapjax.core.types import Leaves, Masks, Params, Status
from swapjax.gradients.matrix_free import MatrixFreeRows
from swapjax.gradients.stored import StoredRows
from swapjax.gradients.unit import form_in_unit
from swapjax.loops.finetune import finetune as tune
from swapjax.pruning.history import Saved, Stage
from swapjax.pruning.inputs import Inputs
from swapjax.pruning.judgement import (
    appoint,
    losses_of_rows,
    mean_loss,
    never_worse,
)
from swapjax.pruning.look import look
from swapjax.pruning.method import Problem, Solution
from swapjax.pruning.settings import Settings
from swapjax.pruning.solve import check_support, solve
from swapjax.pruning.vector import Ended, cut, pack, unpack
from swapjax.sparsity import masks as masking
from swapjax.sparsity.plan import Plan


def advance(
    settings: Settings, inputs: Inputs, state: Saved, number: int, spare: Leaves = ()
) -> tuple[Saved, Leaves]:
    """Do one stage.

    Args:
        settings: how to prune.
        inputs: what to prune.
        state: where the run stands.
        number: of the stage, from 0.
        spare: what the stage before left of memory for rows.

    Returns:
        Where the run stands then, and the memory of the rows.

    Raises:
        ValueError: for losses, gradients and params that are not finite, a method that
            keeps too much, and params of another tree that `recalibrate` returns.
    """
    started = time.perf_counter()
    target, source, method = inputs.plan, inputs.source, settings.method
    layout = inputs.layout
    draw_key, noise_key, tune_key = settings.keys(number)
    seen = look(settings, inputs, state.params, draw_key, noise_key)
    free, teller = seen.rows, seen.teller
    before, rows = mean_loss(teller, state.params), None
    if teller is not None and not math.isfinite(before):
        raise _lost(teller, state.params, "loss_fn", number + 1)
    judge = appoint(settings, inputs, state.params, seen, before)
    # The rows as the method sees them.
    if free is not None and method.needs_rows:
        own = dataclasses.replace(free, layout=layout)
        rows = form_in_unit(own, target, settings.storage, spare)
    weights, _ = pack(state.params, layout)
    problem = Problem(
        weights=weights,
        initial=inputs.initial,
        rows=rows,
        within=inputs.within,
        layers=seen.layers,
        params=state.params if method.needs_params else None,
        layout=layout,
        **judge.fields(free, layout),
    )
    functions = () if free is None else free.functions
    if judge.rows is not None and judge.rows is not free:
        functions += judge.rows.functions
    budget = inputs.budgets[number]
    # Only what has rows or layers may solve systems.
    solves = rows is not None or seen.layers is not None
    one_thread = one_blas_thread(problem.weights) if solves else nullcontext()
    with lenient(), one_thread:
        solution = solve(method, problem, budget, functions)
        jax.block_until_ready(solution)
        check_support(method, solution, budget)

    def put(leaves: Leaves) -> Params:
        cuts = cut(leaves, layout)
        merged = target.layout.merge(cuts, state.params)
        return sharding.put_like(merged, inputs.params)

    solution, loss = never_worse(judge, put, problem.weights, solution)
    told = {} if judge.mark is None else {"harm_unit": judge.mark.unit}
    if rows is not None:
        assert rows.unit is not None
        told["unit"] = rows.unit
    solution = solution._replace(details={**solution.details, **told})
    ended = unpack(solution, layout)
    masks = target.layout.masks(ended.masks)
    new = target.layout.merge(ended.weights, state.params)
    if not ended.is_finite:
        trees.require_finite(trees.paths(new), jax.tree.leaves(new), "params")
    made = {f"method {method.name}": new}
    if settings.finetune is not None:
        assert settings.tuned is not None
        assert source is not None
        made["finetune"] = new = tune(
            settings.tuned, new, source.stream, settings.finetune, masks=masks,
            key=jax.random.key(0) if tune_key is None else tune_key,
        )  # fmt: skip
        trees.require_finite(trees.paths(new), jax.tree.leaves(new), "finetune")
    if settings.recalibrate is not None:
        made["recalibrate"] = new = _recalibrate(settings, new, masks)
    new = sharding.put_like(new, inputs.params)
    after = loss
    if after is None or judge.rows is not teller or len(made) > 1:
        after = mean_loss(teller, new)
    if teller is not None and not math.isfinite(after):
        lost = (k for k, p in made.items() if not math.isfinite(mean_loss(teller, p)))
        culprit = next(lost, "loss_fn")
        raise _lost(teller, made.get(culprit, new), culprit, number + 1)
    stage = _report(number + 1, target, ended, solution, before, after, started)
    taken = 0 if source is None else source.taken
    spare = rows.matrices if isinstance(rows, StoredRows) else ()
    return Saved(new, masks, (*state.history, stage), taken), spare


_REMEDIES = {
    "loss_fn": "look at the labels (do they count from 0?), the data and the loss",
    "finetune": "take a smaller learning rate",
    "recalibrate": "look at what it returns",
}


def _lost(rows: MatrixFreeRows, params: Params, culprit: str, stage: int) -> ValueError:
    """Make the error for a loss that is not finite.

    Args:
        rows: the examples.
        params: where it is not finite.
        culprit: what made them, or loss_fn.
        stage: its number, from 1.
    """
    each = np.asarray(losses_of_rows(rows, params))
    bad = np.flatnonzero(~np.isfinite(each))
    which = "the mean of its losses"
    if bad.size:
        which = f"{bad.size:,} of {each.size:,} rows, first row {bad[0]:,}"
    remedy = _REMEDIES.get(culprit, "the loss must be finite for sparse weights too")
    value = mean_loss(rows, params)
    return ValueError(
        f"{culprit}: the loss became {value} in stage {stage} ({which}); {remedy}"
    )


def _recalibrate(settings: Settings, params: Params, masks: Masks) -> Params:
    """Let the user's function work on params, and look at what it returns.

    Raises:
        ValueError: for another tree, other shapes or dtypes, and entries that are not
            finite, naming the leaves.
    """
    assert settings.recalibrate is not None
    # A copy of the tree: it may be written into.
    found = settings.recalibrate(jax.tree.map(lambda x: x, params))
    trees.require_like(found, params, "recalibrate")
    found = jax.tree.map(jnp.asarray, found)
    trees.require_finite(trees.paths(found), jax.tree.leaves(found), "recalibrate")
    return masking.apply_masks(found, masks)


def _report(
    number: int,
    target: Plan,
    ended: Ended,
    solution: Solution,
    before: float,
    after: float,
    started: float,
) -> Stage:
    kept = sum(ended.kept)
    values = (math.nan,) if solution.objective is None else solution.objective
    return Stage(
        stage=number,
        sparsity=1 - kept / target.total,
        kept=kept,
        layers=dict(zip(target.layout.layers, ended.kept, strict=True)),
        objective=(float(values[0]), float(values[-1])),
        loss_before=before,
        loss=after,
        seconds=time.perf_counter() - started,
        status=Status(int(solution.status)),
        iterations=int(solution.iterations),
        details={k: float(v) for k, v in solution.details.items()},
    )
