"""All that is tried on one support: settings, and lengths of the first-order step."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from swapjax.core import trees
from swapjax.core.types import Leaves
from swapjax.pruning.method import Problem, rows_of
from swapjax.pruning.solvers import natural_step
from swapjax.pruning.solvers.candidates import lowest, pick
from swapjax.pruning.solvers.natural_step import FRACTIONS
from swapjax.pruning.solvers.refit import Refit


class _Search(NamedTuple):
    """What is known after some of the weights to try on a support.

    Attributes:
        before: the loss of the weights before the stage.
        after: that of the same on the support.
        bend: see `natural_step.bend`.
        fit: the re-fit to try now.
        best: the one with the lowest loss so far, its step dropped.
        loss: this loss.
    """

    before: jax.Array
    after: jax.Array
    bend: jax.Array
    fit: Refit
    best: Refit
    loss: jax.Array


def try_all(
    problem: Problem,
    plain: Leaves,
    make: Callable[[Any, jax.Array | None], Refit],
    settings: Any,
    first_order: bool,
) -> tuple[Refit, jax.Array, jax.Array]:
    """Re-fit with every setting, and from there follow the mean gradient, or do not.

    The loss tells how far, and which setting. One loop takes it of all weights, of
    those before the stage and of the same on the support first: a network is compiled
    wherever its loss is taken, and that is most of what there is to compile.

    Args:
        problem: of the stage.
        plain: its weights on the support.
        make: a re-fit, of a setting and a bend, None for no step.
        settings: those to try, dampings and what goes with them: arrays [m].
        first_order: whether to follow the gradient.

    Returns:
        The fit with the lowest loss, its length in units of a full step and its step
        dropped; this loss; and that of plain.
    """
    rows, weights = rows_of(problem), problem.weights
    first = jax.tree.leaves(settings)[0]
    count, dtype = len(first), first.dtype
    refit = lambda one, bend: make(one, bend if first_order else None)  # noqa: E731

    def bend_of(before: jax.Array, after: jax.Array) -> jax.Array:
        if problem.has_criterion:
            return natural_step.bend_of(problem, plain)
        return natural_step.bend(rows, weights, plain, before, after)

    fractions = jnp.asarray(FRACTIONS if first_order else (0.0,), dtype)

    def look(seen: _Search, i: jax.Array) -> tuple[_Search, None]:
        trial = jnp.maximum(i - 2, 0)
        setting = pick(trial // fractions.size, settings)
        fraction = fractions[trial % fractions.size]
        fit = jax.lax.switch(
            jnp.where((i >= 2) & (trial % fractions.size == 0), 2, i == 1),
            [
                lambda: seen.fit,
                lambda: seen.fit._replace(weights=plain),
                lambda: refit(setting, seen.bend),
            ],
        )
        length = (fraction * fit.length).astype(fit.length.dtype)
        moved = fit.weights
        if first_order:
            moved = optax.tree.add_scale(fit.weights, -length, fit.step)
            moved = trees.cast_like(moved, fit.weights)
        loss = problem.loss(moved).astype(dtype)
        before = jnp.where(i == 0, loss, seen.before)
        after = jnp.where(i == 1, loss, seen.after)
        bend = jax.lax.cond(
            first_order & (i == 1),
            lambda: bend_of(before, after),
            lambda: seen.bend,
        )
        share = fraction * (fit.length * bend).astype(fit.length.dtype)
        found = fit._replace(weights=moved, length=share, step=())
        # The first of the lowest; NaN counts as the highest.
        is_lower = lowest(jnp.stack([seen.loss, loss])) == 1
        best, least = jax.lax.cond(
            (i == 2) | ((i > 2) & is_lower),
            lambda: (found, loss),
            lambda: (seen.best, seen.loss),
        )
        return _Search(before, after, bend, fit, best, least), None

    zero = jnp.zeros((), dtype)
    shapes = jax.eval_shape(refit, pick(0, settings), zero)
    none = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    # Without a step these are the weights before the stage.
    start = none._replace(weights=trees.cast_like(weights, none.weights))
    seen = _Search(zero, zero, zero, start, none._replace(step=()), zero)
    trials = jnp.arange(2 + count * fractions.size, dtype=jnp.int32)
    seen, _ = jax.lax.scan(look, seen, trials)
    return seen.best, seen.loss, seen.after


def try_unasked(
    problem: Problem,
    plain: Leaves,
    make: Callable[[Any, jax.Array | None], Refit],
    settings: Any,
    first_order: bool,
) -> tuple[Refit, jax.Array, jax.Array]:
    """Re-fit with every setting, and let rows left out choose, not the loss.

    The mean gradient is followed as far as the same rows trust it, in full. Its length
    is measured by two losses, which choose nothing.

    Args:
        problem: of the stage.
        plain: its weights on the support.
        make: a re-fit, of a setting and a bend, that tells the error of rows left out;
            of those that tell nothing the first setting counts.
        settings: those to try: arrays [m].
        first_order: whether to follow the gradient.

    Returns:
        As `try_all`, with this error for the loss, 0 if nothing is told, and infinity
        for that of plain, which is no choice.
    """
    bend = natural_step.bend_of(problem, plain) if first_order else None

    def one(setting: Any) -> tuple[Refit, jax.Array]:
        fit = make(setting, bend)
        moved, length = fit.weights, fit.length
        if bend is not None:
            moved = optax.tree.add_scale(moved, -length, fit.step)
            moved = trees.cast_like(moved, fit.weights)
            length = (length * bend).astype(length.dtype)
        told = fit.left_out
        error = jnp.zeros_like(length) if isinstance(told, tuple) else told
        return fit._replace(weights=moved, length=length, step=(), left_out=()), error

    def look(best: tuple, setting: Any) -> tuple[tuple, None]:
        found = one(setting)
        # The first of the lowest; NaN counts as the highest.
        is_lower = (found[1] < best[1]) | jnp.isnan(best[1])
        return jax.lax.cond(is_lower, lambda: found, lambda: best), None

    none = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(one, pick(0, settings))
    )
    start = none[0], jnp.full_like(none[1], jnp.nan)
    best, _ = jax.lax.scan(look, start, settings)
    return *best, jnp.full_like(best[1], jnp.inf)
