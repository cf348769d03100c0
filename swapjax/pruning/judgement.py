"""The loss as the judge of a stage: no re-fit may be worse than none."""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from swapjax.core import trees
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
    rows: MatrixFreeRows | None,
    put: Callable[[Leaves], Params],
    weights: Leaves,
    solution: Solution,
) -> tuple[Solution, float | None]:
    """Keep weights as they were on a support where a re-fit raises the loss.

    Whatever a method minimises is a model, and the loss of the stage's examples is what
    it stands for. Takes two evaluations of that loss, none if weights are as they were.

    Args:
        rows: a recipe of the examples that judge, None without any: nothing is judged.
        put: makes params of leaves as the method saw them.
        weights: these leaves before the stage.
        solution: of a method.

    Returns:
        The solution, or the thresholded weights on its support, with a status that says
        so; and its loss, where it was looked at. A loss that is NaN counts as the worse
        one.
    """
    if rows is None:
        return solution, None
    with lenient():
        plain, moved = _threshold(weights, solution)
    if not moved:
        return solution, None
    # By the program that tells the loss of a stage: one of its own would hold the
    # network once more.
    after = mean_loss(rows, put(trees.cast_like(solution.weights, weights)))
    before = mean_loss(rows, put(plain))
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
