"""Iterative hard thresholding: steps along the gradient, cut back to k entries."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from swapjax.core.types import Leaves
from swapjax.gradients.operator import GradientOperator
from swapjax.pruning.solvers import least_squares
from swapjax.pruning.solvers.candidates import count_new, lowest
from swapjax.pruning.solvers.targets import State, Target
from swapjax.sparsity import scores
from swapjax.sparsity.budget import Budget, select
from swapjax.sparsity.masks import apply_masks

_GRID = 12  # trial steps beyond the support limit
_GROWTH = 2.0  # from one to the next
_BEYOND = 1.001  # times the limit: the first of them
_POWER_ITERATIONS = 10


class Path(NamedTuple):
    """Where iterative hard thresholding ended.

    Attributes:
        support: bool leaves.
        weights: the leaves, zero off the support.
        objective: Q at every iterate, [iterations + 1].
        iterations: how many were needed.
        swaps: how many entries are in the last support and not in the first.
    """

    support: Leaves
    weights: Leaves
    objective: jax.Array
    iterations: jax.Array
    swaps: jax.Array


def iht(
    rows: GradientOperator,
    support: Leaves,
    weights: Leaves,
    reference: Leaves,
    y: jax.Array,
    target: Target,
    state: State,
    budget: Budget,
    *,
    damping: jax.Array | float,
    iterations: int,
    tolerance: float,
    within: Leaves | None = None,
) -> Path:
    """Search for a better support from a first one.

    While the exact step along the gradient on the support is shorter than the support
    limit (`least_squares.support_limit`) it is taken. Otherwise steps along the full
    gradient are tried on a geometric grid from the limit on, each judged by Q *after*
    thresholding at the coupling of the iterate, and the best is taken if it lowers Q.
    The iteration stops where none does.

    Args:
        rows: the operator G.
        support: the support to start from, with the budget's counts.
        weights: the weights to start from.
        reference: the weights wbar.
        y: ``G wbar``, [n].
        target: the variant of the objective.
        state: as the target prepared it for y.
        budget: the counts.
        damping: lambda.
        iterations: the most steps.
        tolerance: the relative change of Q at which to stop.
        within: entries outside of which none is kept.
    """
    n = rows.n
    weights = apply_masks(weights, support)
    safe = 1 / (_largest_eigenvalue(rows) + n * damping)

    def value(fit: least_squares.Fit, x: jax.Array, w: Leaves) -> jax.Array:
        return least_squares.misfit(fit, x) + least_squares.ridge(
            w, reference, n, damping
        )

    def threshold(w: Leaves) -> tuple[Leaves, Leaves]:
        mask = select(scores.magnitude(w), budget, within)
        return apply_masks(w, mask), mask

    def step(carry: tuple) -> tuple:
        i, w, s, x, fit, state, trace = carry
        pulled = rows.pull_back(least_squares.slope(fit, x))
        g = least_squares.gradient(pulled, w, reference, n, damping)
        g = tuple(a.astype(b.dtype) for a, b in zip(g, w, strict=True))
        d = apply_masks(g, s)
        offset = optax.tree.sub(w, reference)
        tau = least_squares.line_step(fit, x, d, rows.project(d), offset, damping)
        limit = least_squares.support_limit(w, g, s)
        tau, limit = tau.astype(x.dtype), limit.astype(x.dtype)
        now = value(fit, x, w)
        w, s = jax.lax.cond(
            tau < limit,
            lambda: (optax.tree.add_scale(w, -tau, d), s),
            lambda: _step_beyond(
                w, s, g, tau, safe, limit, now, threshold,
                lambda v: value(fit, rows.project(v), v),
            ),
        )  # fmt: skip
        x = rows.project(w)
        fit, state = target.fit(state, x, y)
        trace = jnp.where(jnp.arange(iterations + 1) > i, value(fit, x, w), trace)
        return i + 1, w, s, x, fit, state, trace

    def moving(carry: tuple) -> jax.Array:
        i, trace = carry[0], carry[-1]
        fell = trace[i - 1] - trace[i]
        return (i < iterations) & (fell > tolerance * jnp.abs(trace[i]))

    x = rows.project(weights)
    fit, state = target.fit(state, x, y)
    trace = jnp.full(iterations + 1, value(fit, x, weights))
    zero = jnp.zeros((), jnp.int32)
    carry = step((zero, weights, support, x, fit, state, trace))
    i, w, s, *_, trace = jax.lax.while_loop(moving, step, carry)
    return Path(s, w, trace, i, count_new(s, support))


def _step_beyond(
    weights: Leaves,
    support: Leaves,
    direction: Leaves,
    exact: jax.Array,
    safe: jax.Array,
    limit: jax.Array,
    now: jax.Array,
    threshold: Callable[[Leaves], tuple[Leaves, Leaves]],
    value: Callable[[Leaves], jax.Array],
) -> tuple[Leaves, Leaves]:
    """Take the best of several steps that may change the support, or none.

    Args:
        weights: the leaves.
        support: their mask.
        direction: the full gradient.
        exact: the exact step on the support.
        safe: a step that lowers Q whatever the support.
        limit: the largest step that leaves the support as it is, perhaps infinite.
        now: Q at the weights.
        threshold: from stepped weights to those that stay, and their mask.
        value: Q of weights, the coupling held.
    """
    # At the limit itself two entries tie, and rounding would choose between them. An
    # exact step of 30 times the limit is as far as is ever worth trying.
    reach = jnp.where(jnp.isfinite(limit), _BEYOND * limit, exact)
    grid = jnp.minimum(reach * _GROWTH ** jnp.arange(_GRID), 30 * exact)
    steps = jnp.concatenate([jnp.stack([exact, safe.astype(exact.dtype)]), grid])
    trials, masks = jax.vmap(
        lambda t: threshold(optax.tree.add_scale(weights, -t, direction))
    )(steps)
    values = jax.vmap(value)(trials)
    best = lowest(values)
    better = values[best] < now
    pick = lambda new, old: jnp.where(better, new[best], old)  # noqa: E731
    return jax.tree.map(pick, trials, weights), jax.tree.map(pick, masks, support)


def _largest_eigenvalue(rows: GradientOperator) -> jax.Array:
    """Estimate that of ``G G^T`` by power iteration: a bound, but for an undershoot."""

    def step(_: int, v: jax.Array) -> jax.Array:
        u = rows.project(rows.pull_back(v / optax.tree.norm(v)))
        return u.astype(v.dtype)

    start = jnp.ones(rows.n) + 0.1 * jnp.cos(jnp.arange(rows.n))
    return 1.05 * jnp.linalg.norm(jax.lax.fori_loop(0, _POWER_ITERATIONS, step, start))
