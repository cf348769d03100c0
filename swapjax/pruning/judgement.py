"""The loss as the judge of a stage: no re-fit may be worse than none."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from swapjax.core import trees
from swapjax.core.compiled import Compiled
from swapjax.core.configuration import lenient
from swapjax.core.types import Leaves, Params, Status
from swapjax.gradients.build import recipe
from swapjax.gradients.harm import SHARE, Mark, harm_of
from swapjax.gradients.matrix_free import MatrixFreeRows, each_loss
from swapjax.pruning.inputs import Inputs
from swapjax.pruning.look import Seen
from swapjax.pruning.method import Solution
from swapjax.pruning.settings import Settings
from swapjax.sparsity.layout import Layout
from swapjax.sparsity.masks import apply_masks


def mean_loss(rows: MatrixFreeRows | None, params: Params) -> float:
    """Evaluate the mean loss of the examples at other params; NaN without rows."""
    if rows is None:
        return math.nan
    return float(_mean((), rows, params, owners=rows.functions))


@Compiled
def _mean(rows: MatrixFreeRows, params: Params) -> jax.Array:
    moved = dataclasses.replace(rows, params=params)
    return moved.loss(rows.layout.split(params))


def losses_of_rows(rows: MatrixFreeRows, params: Params) -> jax.Array:
    """Evaluate the loss of every row's examples at other params, [n]."""
    return _each((), rows, params, owners=rows.functions)


@Compiled
def _each(rows: MatrixFreeRows, params: Params) -> jax.Array:
    moved = dataclasses.replace(rows, params=params)
    return each_loss(moved, rows.layout.split(params))


_APART = 1e-2  # of a loss: examples one by one may differ so much from their batches


@dataclasses.dataclass(frozen=True)
class Judge:
    """Who measures weights, less is better.

    Attributes:
        rows: a recipe of the examples that judge, None without any: nothing is judged.
        has_criterion: whether they measure something else than the loss.
        mark: what harm is measured against; None for the mean loss.
    """

    rows: MatrixFreeRows | None
    has_criterion: bool = False
    mark: Mark | None = None

    def __call__(self, params: Params) -> float:
        """Measure params."""
        assert self.rows is not None
        if self.mark is None:
            return mean_loss(self.rows, params)
        return float(_harm(losses_of_rows(self.rows, params), self.mark))

    def fields(self, free: MatrixFreeRows | None, layout: Layout) -> dict[str, Any]:
        """Tell the fields of a problem, that of rows which judge themselves left out.

        Args:
            free: the rows that gradients are taken of, unformed.
            layout: of the prunable leaves as the method sees them.
        """
        if self.rows is None or self.rows is free:
            return {}
        return {
            "validation": dataclasses.replace(self.rows, layout=layout),
            "has_criterion": self.has_criterion,
            "mark": self.mark,
        }


_harm = jax.jit(harm_of)


def appoint(
    settings: Settings, inputs: Inputs, params: Params, seen: Seen, loss: float
) -> Judge:
    """Choose who judges a stage.

    Harm has for its unit a share of the loss with all prunable weights zero. Where that
    is not more than zero, and finite, the loss judges itself; and where it is no mean
    over examples, as one that compares those of a batch.

    Args:
        settings: how to prune.
        inputs: what to prune.
        params: as they are now.
        seen: examples, and the rows that tell losses.
        loss: that they tell of params.
    """
    teller = seen.teller
    criterion = settings.judged_by
    if teller is None or criterion == "loss":
        return Judge(teller)
    again: dict[str, Any] = {"spread": seen.spread, "differentiable": False}
    of = params, seen.examples, inputs.plan
    if callable(criterion):
        return Judge(recipe(criterion, *of, batch=teller.batch, **again), True)
    unknown = mean_loss(teller, _without(params, inputs.plan.layout))
    if not 0 < unknown < math.inf:
        return Judge(teller)
    assert settings.loss_fn is not None
    rows = recipe(settings.loss_fn, *of, batch=1, **again)
    # Against the network as it was last trained: what earlier stages took may be given
    # back, and counts.
    trained = inputs.params if settings.finetune is None else params
    losses = losses_of_rows(rows, trained)
    if teller.batch > 1:
        now = losses if trained is params else losses_of_rows(rows, params)
        if not math.isclose(loss, jnp.mean(now), rel_tol=_APART):
            return Judge(teller)
    return Judge(rows, True, Mark(jnp.asarray(SHARE * unknown, losses.dtype), losses))


@functools.partial(jax.jit, static_argnums=1)
def _without(params: Params, layout: Layout) -> Params:
    """Set all prunable weights to zero."""
    zeros = tuple(jnp.zeros_like(w) for w in layout.take(params))
    return layout.put(zeros, params)


def never_worse(
    judge: Judge,
    put: Callable[[Leaves], Params],
    weights: Leaves,
    solution: Solution,
) -> tuple[Solution, float | None]:
    """Keep weights as they were on a support where a re-fit is judged to be worse.

    Whatever a method minimises is a model, and the loss of the stage's examples is what
    it stands for. Takes two evaluations of that loss, or of what stands for it, none if
    weights are as they were.

    Args:
        judge: who measures weights.
        put: makes params of leaves as the method saw them.
        weights: these leaves before the stage.
        solution: of a method.

    Returns:
        The solution, or the thresholded weights on its support, with a status that says
        so; and what it measures, where that was looked at. NaN counts as the worse.
    """
    if judge.rows is None:
        return solution, None
    with lenient():
        plain, moved = _threshold(weights, solution)
    if not moved:
        return solution, None
    # By the program that tells the loss of a stage: one of its own would hold the
    # network once more.
    after = judge(put(trees.cast_like(solution.weights, weights)))
    before = judge(put(plain))
    if after <= before:
        return solution, after
    pairs = zip(solution.weights, plain, strict=True)
    chosen = tuple(old.astype(new.dtype) for new, old in pairs)
    # What was told of the weights that are not taken. Of NumPy, which compiles nothing.
    told = {"loss": before, "first_order": 0.0}
    details = {
        key: jnp.asarray(np.asarray(told[key], value.dtype)) if key in told else value
        for key, value in solution.details.items()
    }
    status = solution.status
    if int(status) != Status.NOT_FINITE:
        status = jnp.asarray(np.int32(Status.NOT_REFITTED))
    solution = solution._replace(weights=chosen, status=status, details=details)
    return solution, before


@jax.jit
def _threshold(weights: Leaves, solution: Solution) -> tuple[Leaves, jax.Array]:
    """Take the weights on the support of a solution, and tell if its own differ."""
    plain = apply_masks(weights, solution.masks)
    pairs = zip(solution.weights, plain, strict=True)
    return plain, jnp.stack([jnp.any(new != old) for new, old in pairs]).any()
