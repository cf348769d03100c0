"""Several candidates, the loss as the judge, one answer."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from swapjax.core.types import Leaves, Status
from swapjax.pruning.method import Problem, Solution
from swapjax.sparsity.masks import apply_masks


def lowest(losses: jax.Array) -> jax.Array:
    """Find the lowest loss; NaN counts as the worst."""
    return jnp.argmin(jnp.where(jnp.isnan(losses), jnp.inf, losses))


def stack(several: Sequence[Any]) -> Any:
    """Stack several trees as one, along a new leading axis."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *several)


def pick(index: jax.Array | int, stacked: Any) -> Any:
    """Undo `stack` for one of the trees, by an index that may be traced."""
    return jax.tree.map(lambda leaf: leaf[index], stacked)


def map_distinct(
    make: Callable[[Leaves], tuple[Any, jax.Array, jax.Array]], supports: Leaves
) -> tuple[Any, jax.Array, jax.Array]:
    """Map over supports, and pass over those that equal one before.

    Args:
        make: anything of a support, with two losses.
        supports: bool leaves, stacked.

    Returns:
        What was made, stacked; zeros with infinite losses where nothing was.
    """
    count = len(supports[0])
    if count == 1:
        return jax.lax.map(make, supports)

    def equal(i: int, j: int) -> jax.Array:
        return jnp.stack([jnp.all(leaf[i] == leaf[j]) for leaf in supports]).all()

    repeats = [
        jnp.stack([equal(i, j) for j in range(i)]).any() for i in range(1, count)
    ]
    shapes = jax.eval_shape(make, pick(0, supports))
    nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    found, *losses = nothing
    nothing = found, *(jnp.full_like(loss, jnp.inf) for loss in losses)
    return jax.lax.map(
        lambda item: jax.lax.cond(item[0], lambda _: nothing, make, item[1]),
        (jnp.stack([jnp.asarray(False), *repeats]), supports),
    )


def count_new(masks: Leaves, before: Leaves) -> jax.Array:
    """Count the entries that are in masks and were not in those before."""
    return jnp.asarray(
        sum(
            jnp.sum(new & ~old, dtype=jnp.int32)
            for new, old in zip(masks, before, strict=True)
        )
    )


def best_of(
    make: Callable[[Any], Solution], options: Any, loss: Callable[[Leaves], jax.Array]
) -> Solution:
    """Make several solutions, and take the one with the lowest loss.

    Args:
        make: a solution from one of the options; traced once for all of them.
        options: a tree of arrays with a leading axis of options.
        loss: of weights.
    """

    def one(option: Any) -> tuple[Solution, jax.Array]:
        solution = make(option)
        return solution, loss(solution.weights)

    if len(jax.tree.leaves(options)[0]) == 1:
        return make(pick(jnp.zeros((), jnp.int32), options))
    solutions, losses = jax.lax.map(one, options)
    best = lowest(losses)
    solution: Solution = pick(best, solutions)
    return solution._replace(details={**solution.details, "loss": losses[best]})


def conclude(
    problem: Problem,
    weights: Leaves,
    mask: Leaves,
    *,
    objective: jax.Array,
    iterations: jax.Array | int,
    raised: jax.Array,
    details: dict[str, jax.Array],
) -> Solution:
    """Make a solution of weights on a support, or of the thresholded ones if lost.

    Args:
        problem: what was solved.
        weights: the leaves found, zero off the support.
        mask: the support.
        objective: its values.
        iterations: how many there were.
        raised: whether a damping had to be raised.
        details: what else there is to tell.
    """
    finite = jnp.isfinite(objective[-1])
    finite &= jnp.stack([jnp.all(jnp.isfinite(w)) for w in weights]).all()
    status = jnp.where(raised, Status.DAMPED, Status.CONVERGED)
    thresholded = apply_masks(problem.weights, mask)
    return Solution(
        weights=tuple(
            jnp.where(finite, new.astype(old.dtype), old)
            for new, old in zip(weights, thresholded, strict=True)
        ),
        masks=mask,
        objective=objective,
        iterations=jnp.asarray(iterations, jnp.int32),
        status=jnp.where(finite, status, Status.NOT_FINITE).astype(jnp.int32),
        details=details,
    )
