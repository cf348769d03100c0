"""Q, its gradient, and exact steps, against explicit G in float64."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from hypothesis import given
from hypothesis import strategies as st
from jax.scipy.special import logsumexp
from small_systems import N, P, metrics, problem

from swapjax.pruning.solvers import least_squares, sinkhorn

pytestmark = pytest.mark.usefixtures("x64")


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
