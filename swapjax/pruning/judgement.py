"""The loss as the judge of a stage: no re-fit may be worse than none."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from swapjax.core.compiled import Compiled
from swapjax.core.configuration import lenient
from swapjax.core.types import Leaves, Params, Status
from swapjax.gradients.matrix_free import MatrixFreeRows, each_loss
from swapjax.pruning.method import Solution
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


def losses_of_rows(rows: MatrixFreeRows, params: Params) -> np.ndarray:
    """Evaluate the loss of every row's examples at other params, [n]."""
    return np.asarray(_each((), rows, params, owners=rows.functions))


@Compiled
def _each(rows: MatrixFreeRows, params: Params) -> jax.Array:
    moved = dataclasses.replace(rows, params=params)
    return each_loss(moved, rows.layout.split(params))


def never_worse(
    rows: MatrixFreeRows | None, weights: Leaves, solution: Solution
) -> Solution:
    """Keep weights as they were on a support where a re-fit raises the loss.

    Whatever a method minimises is a model, and the loss of the stage's examples is what
    it stands for. Takes two evaluations of that loss, none if weights are as they were.

    Args:
        rows: a recipe of the stage's examples, None without any: nothing is judged.
        weights: the leaves before the stage.
        solution: of a method.

    Returns:
        The solution, or the thresholded weights on its support, with a status that says
        so. A loss that is NaN counts as the worse one.
    """
    if rows is None:
        return solution
    with lenient():
        return _judge((), rows, weights, solution, owners=rows.functions)


@Compiled
def _judge(rows: MatrixFreeRows, weights: Leaves, solution: Solution) -> Solution:
    plain = apply_masks(weights, solution.masks)
    pairs = tuple(zip(solution.weights, plain, strict=True))
    moved = jnp.stack([jnp.any(new != old) for new, old in pairs]).any()

    def judge() -> tuple[jax.Array, jax.Array]:
        both = tuple(jnp.stack([new, old.astype(new.dtype)]) for new, old in pairs)
        losses = jax.lax.map(rows.loss, both)
        return jnp.isnan(losses[0]) | (losses[0] > losses[1]), losses[1]

    dtype = jax.eval_shape(rows.loss, plain).dtype
    none = jnp.asarray(False), jnp.zeros((), dtype)
    worse, loss = jax.lax.cond(moved, judge, lambda: none)
    lost = solution.status == Status.NOT_FINITE
    status = jnp.where(worse & ~lost, Status.NOT_REFITTED, solution.status)
    chosen = tuple(jnp.where(worse, old.astype(new.dtype), new) for new, old in pairs)
    # What was told of the weights that are not taken.
    told = {"loss": loss, "first_order": 0}
    details = {
        key: jnp.where(worse, told[key], value) if key in told else value
        for key, value in solution.details.items()
    }
    return solution._replace(
        weights=chosen, status=status.astype(jnp.int32), details=details
    )
