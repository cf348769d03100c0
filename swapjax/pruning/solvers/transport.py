"""Couplings of the projections of pruned and reference weights.

``x = G w`` and ``y = G wbar`` are two clouds of n scalars. A coupling ``Pi`` [n, n]
matches the points of x (rows) with those of y (columns); its rows sum to a, its columns
to b. What a pruning method needs of it is the transported targets
``yhat_i = sum_j Pi_ij y_j / a_i``: where each x_i should go.

========== ============ =====================================================
coupling   epsilon      matches
========== ============ =====================================================
identity   (none)       each example with itself: linear regression
in_order   0            by rank: optimal transport on a line is a sort
entropic   in between   softly, with the neighbours that epsilon reaches
uniform    infinite     everything with everything
========== ============ =====================================================

The identity is not the limit of small epsilon: sorting forgets which example is which.
Closed forms are here, `entropic` is in `swapjax.pruning.solvers.sinkhorn`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Coupling(NamedTuple):
    """A coupling of x and y, with the diagnostics of its solver.

    Attributes:
        targets: [n], the barycentric image of y at each x.
        cost: ``sum_ij Pi_ij (x_i - y_j)^2``.
        divergence: ``epsilon * KL(Pi | a b^T)``; 0 where epsilon is none or 0, and
            where it is infinite.
        potentials: the dual potentials (f, g) in units of the cost, each [n]; zeros
            where the coupling has none. Pass them on as a warm start.
        perplexity: ``exp`` of the mean entropy of the rows: how many points of y a
            point of x is matched with.
        iterations: of Sinkhorn; 0 for closed forms.
        marginal_error: how far the row and column sums are from a and b, in L1, the
            larger of the two.
        converged: whether that is within the threshold.
        plan: ``Pi`` [n, n] if it was asked for, else None.
    """

    targets: jax.Array
    cost: jax.Array
    divergence: jax.Array
    potentials: tuple[jax.Array, jax.Array]
    perplexity: jax.Array
    iterations: jax.Array
    marginal_error: jax.Array
    converged: jax.Array
    plan: jax.Array | None


def identity(
    x: jax.Array, y: jax.Array, a: jax.Array | None = None, *, return_plan: bool = False
) -> Coupling:
    """Couple each example with itself: ``Pi = diag(a)``, ``yhat = y``.

    Args:
        x: [n] projections of the pruned weights.
        y: [n] projections of the reference weights.
        a: [n] weights of the examples, summing to 1; all equal by default.
        return_plan: whether to form ``Pi``.
    """
    a = masses(x, a)
    plan = jnp.diag(a) if return_plan else None
    return _closed_form(y, jnp.sum(a * jnp.square(x - y)), jnp.ones(()), plan)


def in_order(
    x: jax.Array,
    y: jax.Array,
    a: jax.Array | None = None,
    b: jax.Array | None = None,
    *,
    return_plan: bool = False,
) -> Coupling:
    """Couple by rank, which is optimal transport for epsilon = 0 on a line.

    The sort is stable: where x equals y, every example is matched with itself.
    Takes O(n log n) time with equal weights, O(n^2) otherwise.

    Args:
        x: [n] projections of the pruned weights.
        y: [n] projections of the reference weights.
        a: [n] weights of x, summing to 1; all equal by default.
        b: [n] weights of y, likewise.
        return_plan: whether to form ``Pi``.
    """
    n = x.shape[0]
    i, j = jnp.argsort(x, stable=True), jnp.argsort(y, stable=True)
    if a is None and b is None:
        targets = jnp.zeros_like(y).at[i].set(y[j])
        cost = jnp.mean(jnp.square(x - targets))
        plan = jnp.zeros((n, n), x.dtype).at[i, j].set(1 / n) if return_plan else None
        return _closed_form(targets, cost, jnp.ones(()), plan)
    a, b = masses(x, a), masses(y, b)
    # On the axis of cumulated mass each point is an interval; Pi is their overlap.
    upper_a, upper_b = jnp.cumsum(a[i]), jnp.cumsum(b[j])
    lower_a, lower_b = upper_a - a[i], upper_b - b[j]
    overlap = jnp.minimum(upper_a[:, None], upper_b) - jnp.maximum(
        lower_a[:, None], lower_b
    )
    plan = jnp.zeros((n, n), x.dtype).at[i[:, None], j].set(jnp.maximum(overlap, 0))
    cost = jnp.sum(plan * squared_distances(x, y))
    return _closed_form(
        plan @ y / a, cost, mean_perplexity(plan), plan if return_plan else None
    )


def uniform(
    x: jax.Array,
    y: jax.Array,
    a: jax.Array | None = None,
    b: jax.Array | None = None,
    *,
    return_plan: bool = False,
) -> Coupling:
    """Couple everything with everything: ``Pi = a b^T``, the limit of large epsilon.

    Args:
        x: [n] projections of the pruned weights.
        y: [n] projections of the reference weights.
        a: [n] weights of x, summing to 1; all equal by default.
        b: [n] weights of y, likewise.
        return_plan: whether to form ``Pi``.
    """
    a, b = masses(x, a), masses(y, b)
    mean_x, mean_y = jnp.dot(a, x), jnp.dot(b, y)
    # <Pi, C> without the n x n cost: two variances and the distance of the means.
    spread = jnp.dot(a, jnp.square(x - mean_x)) + jnp.dot(b, jnp.square(y - mean_y))
    entropy = -jnp.sum(jnp.where(b > 0, b * jnp.log(jnp.where(b > 0, b, 1)), 0))
    return _closed_form(
        jnp.full_like(y, mean_y),
        spread + jnp.square(mean_x - mean_y),
        jnp.exp(entropy),
        jnp.outer(a, b) if return_plan else None,
    )


def squared_distances(x: jax.Array, y: jax.Array) -> jax.Array:
    """Form the cost ``C_ij = (x_i - y_j)^2``, [n, n]."""
    return jnp.square(x[:, None] - y)


def masses(x: jax.Array, a: jax.Array | None) -> jax.Array:
    """Take the weights of examples, or equal ones, in the dtype of x, [n]."""
    n = x.shape[0]
    return jnp.full((n,), 1 / n, x.dtype) if a is None else a.astype(x.dtype)


def mean_perplexity(plan: jax.Array) -> jax.Array:
    """Count the points of y that a point of x is matched with on average."""
    rows = plan / jnp.maximum(jnp.sum(plan, axis=1, keepdims=True), 1e-30)
    logs = jnp.log(jnp.where(rows > 0, rows, 1))
    return jnp.exp(jnp.mean(-jnp.sum(rows * logs, axis=1)))


def _closed_form(
    targets: jax.Array, cost: jax.Array, perplexity: jax.Array, plan: jax.Array | None
) -> Coupling:
    zeros = jnp.zeros_like(targets)
    return Coupling(
        targets=targets,
        cost=cost,
        divergence=jnp.zeros_like(cost),
        potentials=(zeros, zeros),
        perplexity=jnp.asarray(perplexity, targets.dtype),
        iterations=jnp.zeros((), jnp.int32),
        marginal_error=jnp.zeros((), targets.dtype),
        converged=jnp.asarray(True),
        plan=plan,
    )
