"""Q, its gradient, exact steps and the re-fit, against explicit G in float64."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from hypothesis import given
from hypothesis import strategies as st
from jax.scipy.special import logsumexp

from swapjax.pruning.solvers import least_squares, sinkhorn

pytestmark = pytest.mark.usefixtures("x64")

N, P = 8, 12


def problem(seed=0):
    rng = np.random.default_rng(seed)
    g, wbar = rng.normal(size=(N, P)), rng.normal(size=P)
    return jnp.asarray(g), jnp.asarray(wbar)


def metrics(seed=0):
    """The three kinds of M: the identity, a diagonal, a plan."""
    a = np.random.default_rng(seed).uniform(0.5, 1.5, N)
    y = jnp.asarray(np.random.default_rng(seed + 1).normal(size=N))
    plan = sinkhorn.self_plan(y, 0.3, threshold=1e-12).plan
    return {"identity": None, "diagonal": jnp.asarray(a), "plan": N * plan}


def dense(metric):
    if metric is None:
        return np.eye(N)
    return np.diag(metric) if metric.ndim == 1 else np.asarray(metric)


def quadratic(fit, g, w, wbar, damping):
    return least_squares.misfit(fit, g @ w) + least_squares.ridge(
        (w,), (wbar,), N, damping
    )


@pytest.mark.parametrize("kind", ["identity", "diagonal", "plan"])
def test_gradient_is_that_of_the_objective(kind):
    (g, wbar), metric = problem(), metrics()[kind]
    t = jnp.asarray(np.random.default_rng(2).normal(size=N))
    fit = least_squares.Fit(t, metric, jnp.asarray(0.7))
    w = wbar + 0.3
    expected = jax.grad(lambda w: quadratic(fit, g, w, wbar, 0.1))(w)
    pulled = (g.T @ least_squares.slope(fit, g @ w),)
    (got,) = least_squares.gradient(pulled, (w,), (wbar,), N, 0.1)
    np.testing.assert_allclose(got, expected, rtol=1e-10)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("epsilon", [0.3, 3.0])
def test_gradient_through_a_converged_sinkhorn_holds_the_plan(weighted, epsilon):
    """The envelope theorem: as jax.grad through Sinkhorn, and finite differences."""
    (g, wbar), rng = problem(), np.random.default_rng(4)
    w = jnp.asarray(np.where(rng.uniform(size=P) < 0.5, 0.0, wbar))
    a = rng.uniform(0.5, 1.5, N) if weighted else np.ones(N)
    a = jnp.asarray(a / a.sum())
    y = g @ wbar

    def unrolled(w):
        cost = jnp.square((g @ w)[:, None] - y)

        def iteration(f, _):
            h = epsilon * (jnp.log(a) - logsumexp((f[:, None] - cost) / epsilon, 0))
            f = epsilon * (jnp.log(a) - logsumexp((h - cost) / epsilon, 1))
            return f, h

        f, h = jax.lax.scan(iteration, jnp.zeros(N), length=3000)
        plan = jnp.exp((f[:, None] + h[-1] - cost) / epsilon)
        entropy = plan * (jnp.log(plan) - jnp.log(jnp.outer(a, a)))
        return 0.5 * N * jnp.sum(plan * cost + epsilon * entropy)

    coupling = sinkhorn.entropic(
        g @ w, y, epsilon, a, a, threshold=1e-12, max_iterations=50000
    )
    value = 0.5 * N * (coupling.cost + coupling.divergence)
    fit = least_squares.Fit(coupling.targets, N * a, jnp.zeros(()))
    (got,) = least_squares.gradient(
        (g.T @ least_squares.slope(fit, g @ w),), (w,), (w,), N, 0.0
    )
    np.testing.assert_allclose(value, unrolled(w), rtol=1e-8)
    np.testing.assert_allclose(got, jax.grad(unrolled)(w), rtol=1e-6, atol=1e-8)
    h = 1e-5
    for q in range(0, P, 5):
        e = jnp.zeros(P).at[q].set(h)
        slope = (unrolled(w + e) - unrolled(w - e)) / (2 * h)
        np.testing.assert_allclose(got[q], slope, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["identity", "diagonal", "plan"])
def test_line_step_is_the_minimiser_along_a_direction(kind):
    (g, wbar), metric = problem(), metrics()[kind]
    rng = np.random.default_rng(3)
    fit = least_squares.Fit(jnp.asarray(rng.normal(size=N)), metric, jnp.zeros(()))
    w, d = wbar + 0.2, jnp.asarray(rng.normal(size=P))
    tau = least_squares.line_step(fit, g @ w, (d,), g @ d, (w - wbar,), 0.1)
    best = scipy.optimize.minimize_scalar(
        lambda t: float(quadratic(fit, g, w - t * d, wbar, 0.1)), tol=1e-12
    )
    np.testing.assert_allclose(tau, best.x, rtol=1e-6)


def test_a_direction_that_changes_nothing_has_a_step_of_zero():
    g, wbar = problem()
    fit = least_squares.Fit(g @ wbar, None, jnp.zeros(()))
    zero = jnp.zeros(P)
    tau = least_squares.line_step(fit, g @ wbar, (zero,), g @ zero, (zero,), 0.1)
    assert float(tau) == 0


@given(st.integers(0, 10**6), st.integers(1, P - 1))
def test_support_limit_is_where_the_largest_entries_change(seed, k):
    rng = np.random.default_rng(seed)
    w, g = rng.normal(size=P), rng.normal(size=P)
    order = np.argsort(-np.abs(w))
    support = np.zeros(P, bool)
    support[order[:k]] = True
    w[~support] = 0
    limit = float(
        least_squares.support_limit(
            (jnp.asarray(w),), (jnp.asarray(g),), (jnp.asarray(support),)
        )
    )

    def holds(tau):
        moved = np.abs(w - tau * g)
        return moved[support].min() >= moved[~support].max()

    # Brute force: the crossings of any two |w_i - tau g_i| are where it can change.
    crossings = [
        (w[i] - s * w[j]) / (g[i] - s * g[j])
        for i, j in itertools.product(np.flatnonzero(support), np.flatnonzero(~support))
        for s in (1, -1)
    ]
    crossings = sorted(c for c in crossings if c > 0)
    first = next((c for c in crossings if not holds(c * (1 + 1e-7))), np.inf)
    np.testing.assert_allclose(limit, first, rtol=1e-6)


def test_support_limit_over_leaves_is_that_of_all_entries():
    rng = np.random.default_rng(5)
    w, g = rng.normal(size=P), jnp.asarray(rng.normal(size=P))
    support = jnp.asarray(np.abs(w) > np.median(np.abs(w)))
    w = jnp.where(support, jnp.asarray(w), 0)
    split = lambda v: (v[:5].reshape(1, 5), v[5:5], v[5:])  # noqa: E731
    whole = least_squares.support_limit((w,), (g,), (support,))
    parts = least_squares.support_limit(split(w), split(g), split(support))
    assert float(whole) == float(parts)


@pytest.mark.parametrize("kind", ["identity", "diagonal", "plan"])
@pytest.mark.parametrize("damping", [1e-6, 1e-2, 1.0])
def test_solve_equals_least_squares(kind, damping):
    """One n x n system, the k x k normal equations, and lstsq on stacked rows."""
    (g, wbar), metric = problem(), metrics()[kind]
    rng = np.random.default_rng(6)
    t, support = rng.normal(size=N), rng.uniform(size=P) < 0.6
    gs, ws = np.asarray(g)[:, support], np.asarray(wbar)[support]
    fit = least_squares.Fit(jnp.asarray(t), metric, jnp.zeros(()))

    system = least_squares.damp(
        least_squares.diagonalise(jnp.asarray(gs @ gs.T), metric), damping
    )
    c = least_squares.solve(system, fit, jnp.asarray(gs @ ws))
    got = ws + gs.T @ np.asarray(c)

    m = dense(metric)
    normal = np.linalg.solve(
        gs.T @ m @ gs + N * damping * np.eye(len(ws)), gs.T @ m @ t + N * damping * ws
    )
    values, vectors = np.linalg.eigh(m)
    root = (vectors * np.sqrt(np.maximum(values, 0))).T
    stacked = np.vstack([root @ gs, np.sqrt(N * damping) * np.eye(len(ws))])
    right = np.concatenate([root @ t, np.sqrt(N * damping) * ws])
    stacked_solution = np.linalg.lstsq(stacked, right)[0]
    np.testing.assert_allclose(got, stacked_solution, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(got, normal, rtol=1e-5, atol=1e-7)
    assert not bool(system.deficient)


def test_solve_equals_the_update_of_the_surgeon():
    """CBS: the same weights from the inverse Fisher, entries removed jointly."""
    g, wbar = (np.asarray(v) for v in problem())
    removed, damping = np.asarray([0, 3, 4, 9]), 0.05
    kept = np.setdiff1d(np.arange(P), removed)
    inverse = np.linalg.inv(g.T @ g / N + damping * np.eye(P))
    block = inverse[np.ix_(removed, removed)]
    expected = wbar - inverse[:, removed] @ np.linalg.solve(block, wbar[removed])

    gs = g[:, kept]
    fit = least_squares.Fit(jnp.asarray(g @ wbar), None, jnp.zeros(()))
    system = least_squares.damp(
        least_squares.diagonalise(jnp.asarray(gs @ gs.T)), damping
    )
    c = least_squares.solve(system, fit, jnp.asarray(gs @ wbar[kept]))
    np.testing.assert_allclose(wbar[kept] + gs.T @ np.asarray(c), expected[kept])
    np.testing.assert_allclose(expected[removed], 0, atol=1e-12)


def test_float32_keeps_four_digits_at_tiny_damping():
    rng = np.random.default_rng(7)
    g, w = rng.normal(size=(50, 200)), rng.normal(size=200)
    t = g @ w + rng.normal(size=50)

    def solution(dtype):
        gs = jnp.asarray(g, dtype)
        fit = least_squares.Fit(jnp.asarray(t, dtype), None, jnp.zeros((), dtype))
        system = least_squares.damp(least_squares.diagonalise(gs @ gs.T), 1e-6)
        return np.asarray(gs.T @ least_squares.solve(system, fit, jnp.zeros(50, dtype)))

    wide, narrow = solution(jnp.float64), solution(jnp.float32)
    assert narrow.dtype == np.float32
    assert np.linalg.norm(narrow - wide) < 1e-4 * np.linalg.norm(wide)


def test_no_damping_takes_the_smallest_change_that_fits():
    g, wbar = problem()
    doubled = jnp.concatenate([g, g])  # rank N, 2 N rows
    t = jnp.concatenate([g @ wbar, g @ wbar]) + 1.0
    system = least_squares.damp(least_squares.diagonalise(doubled @ doubled.T), 0.0)
    fit = least_squares.Fit(t, None, jnp.zeros(()))
    c = least_squares.solve(system, fit, doubled @ wbar)
    expected = np.linalg.pinv(np.asarray(doubled)) @ np.asarray(t - doubled @ wbar)
    assert bool(system.deficient)
    np.testing.assert_allclose(doubled.T @ c, expected, atol=1e-9)


def test_a_linear_term_is_a_shift_of_the_targets():
    """Adding s 1^T G w to Q moves every target by -s (spec: the first-order term)."""
    (g, wbar), s, damping = problem(), 0.3, 0.1
    y = g @ wbar
    shifted = least_squares.Fit(y - s, None, jnp.zeros(()))
    system = least_squares.damp(least_squares.diagonalise(g @ g.T), damping)
    got = wbar + g.T @ least_squares.solve(system, shifted, y)
    hessian = g.T @ g + N * damping * jnp.eye(P)
    expected = wbar - jnp.linalg.solve(hessian, s * g.T @ jnp.ones(N))
    np.testing.assert_allclose(got, expected, rtol=1e-9)


def test_rows_that_are_zero_change_nothing():
    g, wbar = problem()
    fit = least_squares.Fit(g @ wbar + 0.1, None, jnp.zeros(()))
    small = least_squares.damp(least_squares.diagonalise(g @ g.T), 0.1 * 8 / 9)
    want = least_squares.solve(small, fit, g @ wbar)
    padded = jnp.concatenate([g, jnp.zeros((1, P))])
    fit = least_squares.Fit(padded @ wbar + 0.1, None, jnp.zeros(()))
    # n counts the empty row, so damping shrinks to hold n lambda where it was.
    system = least_squares.damp(
        least_squares.diagonalise(padded @ padded.T), 0.1 * 8 / 9 * 8 / 9
    )
    got = least_squares.solve(system, fit, padded @ wbar)
    np.testing.assert_allclose(padded.T @ got, g.T @ want, rtol=1e-9)
