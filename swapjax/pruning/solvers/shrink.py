"""The shrinking search: thresholded a little at a time, with a re-fit in between."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from swapjax.core.types import Leaves
from swapjax.gradients.operator import GradientOperator
from swapjax.sparsity import scores
from swapjax.sparsity.budget import Budget, count_by_group, select
from swapjax.sparsity.masks import apply_masks


class Shrunk(NamedTuple):
    """Where the shrinking search ended.

    Attributes:
        support: bool leaves.
        weights: the leaves re-fitted on it, zero off it.
        rounds: the re-fits on the way.
    """

    support: Leaves
    weights: Leaves
    rounds: jax.Array


def shrink(
    rows: GradientOperator,
    reference: Leaves,
    target: jax.Array,
    budget: Budget,
    refit: Callable[[Leaves], Leaves],
    loss_of: Callable[[Leaves], jax.Array],
    *,
    hold: Callable[[Leaves], Leaves],
    stiffness: Leaves,
    step: float,
    iterations: int,
    within: Leaves | None = None,
) -> Shrunk:
    """Search for a support by keeping a share of the entries at a time.

    On every support the weights are re-fitted. What is off it stands for the value that
    minimises ``1/2 |G w - t|^2 + n/2 (w - wbar)^T R (w - wbar)`` in that weight alone,
    so that it may come back. Of the supports at the final density the one counts whose
    weights have the lowest loss.

    Args:
        rows: the operator G.
        reference: the weights wbar, where the search starts.
        target: t, [n].
        budget: the counts to arrive at; patterns are reached at once.
        refit: from a support to the weights on it.
        loss_of: the mean loss of weights, which judges.
        hold: from leaves v to ``n R v``; for the identity ``n lambda v``.
        stiffness: ``n R_qq``.
        step: the share of entries that is kept at a time, in [0, 1).
        iterations: thresholdings at the final density.
        within: entries outside of which none is kept.
    """
    dtype = jax.eval_shape(loss_of, reference).dtype
    start = jnp.asarray(jnp.inf, dtype)
    pairs = zip(rows.mean_squares(), stiffness, strict=True)
    below = tuple(rows.n * f + held for f, held in pairs)

    def one(carry: tuple) -> tuple:
        count, ranked, left, done, best, lowest = carry
        # One fewer at least: the share of few entries rounds up to all of them.
        fewer = jnp.ceil(step * count).astype(count.dtype)
        count = jnp.maximum(jnp.minimum(fewer, count - 1), budget.keep)
        here = dataclasses.replace(budget, keep=count)
        # At the end magnitude and OBD in turn: far from the reference neither is
        # always the better one.
        last = jnp.all(count <= budget.keep) & ((iterations - left) % 2 == 1)
        scored = tuple(
            jnp.abs(v.astype(b.dtype)) * jnp.where(last, jnp.sqrt(b), 1)
            for v, b in zip(ranked, below, strict=True)
        )
        mask = select(scored, here, within)
        weights = refit(mask)
        arrived = jnp.all(count <= budget.keep)
        # On the way there nobody asks for it.
        loss = jax.lax.cond(arrived, lambda: loss_of(weights), lambda: start)
        better = loss < lowest
        best = jax.tree.map(
            lambda new, old: jnp.where(better, new, old), (mask, weights), best
        )
        # Off the support: the minimiser in each weight alone.
        pulled = rows.pull_back(target - rows.project(weights))
        drawn = hold(optax.tree.sub(reference, weights))
        alone = ((g + h) / b for g, h, b in zip(pulled, drawn, below, strict=True))
        ranked = tuple(
            jnp.where(m, w, a.astype(w.dtype))
            for m, w, a in zip(mask, weights, alone, strict=True)
        )
        left = left - arrived.astype(left.dtype)
        return count, ranked, left, done + 1, best, jnp.minimum(loss, lowest)

    none = jnp.zeros((), jnp.int32)
    mask = select(scores.magnitude(reference), budget, within)
    best = (mask, apply_masks(reference, mask))
    nonzeros = count_by_group(tuple(w != 0 for w in reference), budget)
    count = budget.keep if any(budget.patterns) else nonzeros
    carry = (count, reference, none + iterations, none, best, start)
    carry = jax.lax.while_loop(lambda c: c[2] > 0, one, carry)
    return Shrunk(*carry[4], carry[3])
