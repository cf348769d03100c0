"""Entropic couplings by Sinkhorn's algorithm, in the log domain.

They are those of `swapjax.pruning.solvers.transport` for epsilon between 0 and
infinity.
"""

from typing import Any

import jax
import jax.numpy as jnp

from swapjax.pruning.solvers.transport import (
    Coupling,
    masses,
    mean_perplexity,
    squared_distances,
)

DEFAULT_ITERATIONS = 1000
_DECAY = 0.98  # of epsilon, each iteration of a start from scratch


def entropic(
    x: jax.Array,
    y: jax.Array,
    epsilon: jax.Array | float,
    a: jax.Array | None = None,
    b: jax.Array | None = None,
    *,
    init: tuple[jax.Array, jax.Array] | None = None,
    threshold: float = 1e-3,
    max_iterations: int = DEFAULT_ITERATIONS,
    return_plan: bool = False,
) -> Coupling:
    """Couple softly: Sinkhorn in the log domain (ott-jax), annealed.

    Minimises ``<Pi, C> + epsilon KL(Pi | a b^T)`` with ``C_ij = (x_i - y_j)^2``. A
    start from scratch lets epsilon fall from the mean cost to its target by 2% an
    iteration, without which small ones take many times the iterations.
    Rows sum to a exactly on exit, so that the targets are averages of y however early
    Sinkhorn stops; columns are off by the marginal error that is returned.

    Args:
        x: [n] projections of the pruned weights.
        y: [n] projections of the reference weights.
        epsilon: regularisation in units of C; positive, may be traced.
        a: [n] weights of x, summing to 1; all equal by default.
        b: [n] weights of y, likewise.
        init: potentials to start from, those of a coupling nearby.
        threshold: the marginal error at which to stop.
        max_iterations: when to stop at the latest. Iterations to convergence grow like
            ``C / epsilon``: below 1% of the cost's scale expect to reach this.
        return_plan: whether to return ``Pi``.
    """
    a, b = masses(x, a), masses(y, b)
    cost, scale = _normalised_cost(x, y)
    target = jnp.asarray(epsilon, cost.dtype) / scale
    if init is None:
        start, anneal = None, jnp.maximum(jnp.mean(cost) / target, 1)
    else:
        start, anneal = (init[0] / scale, init[1] / scale), None
    (_, g), iterations = _sinkhorn(
        cost, target, a, b, threshold, max_iterations, start=start, anneal=anneal
    )
    # The last update is ours: it makes the row sums exact whatever ott stopped at.
    f = target * (jnp.log(a) - jax.nn.logsumexp((g - cost) / target, axis=1))
    plan = jnp.exp((f[:, None] + g - cost) / target)
    error = _marginal_error(plan, a, b)
    divergence = jnp.sum(plan * ((f[:, None] + g - cost) / target - _log_product(a, b)))
    return Coupling(
        targets=plan @ y / a,
        cost=scale * jnp.sum(plan * cost),
        divergence=scale * target * divergence,
        potentials=(scale * f, scale * g),
        perplexity=mean_perplexity(plan),
        iterations=iterations,
        marginal_error=error,
        converged=error <= threshold,
        plan=plan if return_plan else None,
    )


def self_plan(
    y: jax.Array,
    epsilon: jax.Array | float,
    b: jax.Array | None = None,
    *,
    threshold: float = 1e-4,
    max_iterations: int = DEFAULT_ITERATIONS,
) -> Coupling:
    """Couple y with itself: a symmetric plan that smooths over neighbours in y.

    Both potentials are one and the same, and averaging successive updates converges
    in tens of iterations at any epsilon. The plan is positive semidefinite, since
    ``exp(-C/epsilon)`` is.

    Args:
        y: [n] projections.
        epsilon: regularisation in units of the cost; positive, may be traced.
        b: [n] weights of y, summing to 1; all equal by default.
        threshold: the marginal error at which to stop.
        max_iterations: when to stop at the latest.

    Returns:
        The coupling, with its plan.
    """
    b = masses(y, b)
    cost, scale = _normalised_cost(y, y)
    target = jnp.asarray(epsilon, cost.dtype) / scale
    (f, _), iterations = _sinkhorn(
        cost, target, b, b, threshold, max_iterations, symmetric=True
    )
    plan = jnp.exp((f[:, None] + f - cost) / target)
    error = _marginal_error(plan, b, b)
    divergence = jnp.sum(plan * ((f[:, None] + f - cost) / target - _log_product(b, b)))
    return Coupling(
        targets=plan @ y / jnp.sum(plan, axis=1),
        cost=scale * jnp.sum(plan * cost),
        divergence=scale * target * divergence,
        potentials=(scale * f, scale * f),
        perplexity=mean_perplexity(plan),
        iterations=iterations,
        marginal_error=error,
        converged=error <= threshold,
        plan=plan,
    )


def epsilon_for_perplexity(y: jax.Array, perplexity: float) -> jax.Array:
    """Find the epsilon at which a point of y has so many neighbours on average.

    Absolute values of epsilon mean nothing across networks; a number of neighbours
    does. Bisects log epsilon for the rows of ``exp(-C/epsilon)``, C the cost of y with
    itself, each normalised to 1, as t-SNE does; the perplexity of the plan made with
    that epsilon is close to it and is reported with the plan.

    Args:
        y: [n] projections.
        perplexity: ``exp`` of the mean entropy of a row, between 1 and n.

    Returns:
        epsilon in units of the cost. Where duplicates in y keep the perplexity above
        what is asked for, the smallest that is searched, ``e^-36`` of the variance.
    """
    cost, scale = _normalised_cost(y, y)

    def perplexity_at(log_epsilon: jax.Array) -> jax.Array:
        log_rows = jax.nn.log_softmax(-cost / jnp.exp(log_epsilon), axis=1)
        entropies = -jnp.sum(jnp.exp(log_rows) * log_rows, axis=1)
        return jnp.exp(jnp.mean(entropies))

    def halve(_: jax.Array, ends: tuple) -> tuple:
        middle = (ends[0] + ends[1]) / 2
        below = perplexity_at(middle) < perplexity
        return jnp.where(below, middle, ends[0]), jnp.where(below, ends[1], middle)

    ends = (jnp.asarray(-36.0, cost.dtype), jnp.asarray(6.0, cost.dtype))
    low, _ = jax.lax.fori_loop(0, 20, halve, ends)
    return scale * jnp.exp(low)


def _sinkhorn(
    cost: jax.Array,
    epsilon: jax.Array,
    a: jax.Array,
    b: jax.Array,
    threshold: float,
    max_iterations: int,
    *,
    symmetric: bool = False,
    start: tuple[jax.Array, jax.Array] | None = None,
    anneal: jax.Array | None = None,
) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
    """Find dual potentials with ott-jax, and count the iterations."""
    # Imported where it is used: loading ott takes longer than the rest of swapjax.
    from ott.geometry import epsilon_scheduler, geometry
    from ott.problems.linear import linear_problem
    from ott.solvers.linear import acceleration, sinkhorn

    momentum: Any = acceleration.Momentum

    if anneal is None:
        schedule: Any = epsilon
    else:
        scheduler: Any = epsilon_scheduler.Epsilon
        schedule = scheduler(target=epsilon, init=anneal, decay=_DECAY)
    # Averaging old and new potentials is what makes the symmetric updates converge.
    # Over-relaxing the others (value > 1) diverged at small epsilon, and reported
    # convergence on infinite potentials.
    solver = sinkhorn.Sinkhorn(
        threshold=threshold,
        max_iterations=max_iterations,
        parallel_dual_updates=symmetric,
        momentum=momentum(value=0.5) if symmetric else None,
    )
    problem = linear_problem.LinearProblem(
        geometry.Geometry(cost_matrix=cost, epsilon=schedule), a, b
    )
    out = solver(problem) if start is None else solver(problem, init=start)
    return (out.f, out.g), jnp.asarray(out.n_iters, jnp.int32)


def _normalised_cost(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Form the cost in units of the variance of y, and that unit.

    It is built from differences: the expanded square loses, in float32, what small
    epsilon looks at.
    """
    variance = jnp.var(y)
    scale = jnp.where(variance > 0, variance, 1)
    root = jnp.sqrt(scale)
    return squared_distances(x / root, y / root), scale


def _log_product(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.log(a)[:, None] + jnp.log(b)


def _marginal_error(plan: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    rows = jnp.sum(jnp.abs(jnp.sum(plan, axis=1) - a))
    columns = jnp.sum(jnp.abs(jnp.sum(plan, axis=0) - b))
    return jnp.maximum(rows, columns)
