"""Couplings against their formulas and against POT, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import ot
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swapjax.pruning.solvers import sinkhorn, transport

pytestmark = pytest.mark.usefixtures("x64")

N = 30


def clouds(seed=0, n=N):
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.normal(size=n)), jnp.asarray(0.5 + 2 * rng.normal(size=n))


def weights(seed, n=N):
    a = np.random.default_rng(seed).uniform(0.2, 1.0, n)
    return jnp.asarray(a / a.sum())


def cost(x, y):
    return (np.asarray(x)[:, None] - np.asarray(y)) ** 2


def kl(plan, a, b):
    plan, product = np.asarray(plan), np.outer(a, b)
    on = plan > 0
    return np.sum(plan[on] * np.log(plan[on] / product[on]))


def check_consistent(coupling, x, y, a, b, atol=1e-9):
    """What is reported agrees with the plan."""
    plan = np.asarray(coupling.plan)
    np.testing.assert_allclose(plan.sum(1), a, atol=atol)
    np.testing.assert_allclose(coupling.targets, plan @ np.asarray(y) / a, atol=atol)
    np.testing.assert_allclose(coupling.cost, np.sum(plan * cost(x, y)), atol=atol)
    error = max(np.abs(plan.sum(1) - a).sum(), np.abs(plan.sum(0) - b).sum())
    np.testing.assert_allclose(coupling.marginal_error, error, atol=atol)


def test_identity_matches_each_example_with_itself():
    (x, y), a = clouds(), weights(1)
    coupling = transport.identity(x, y, a, return_plan=True)
    check_consistent(coupling, x, y, np.asarray(a), np.asarray(a))
    np.testing.assert_array_equal(coupling.targets, y)
    np.testing.assert_allclose(coupling.plan, np.diag(a))


def test_in_order_is_optimal_transport():
    (x, y), a = clouds(), np.full(N, 1 / N)
    coupling = transport.in_order(x, y, return_plan=True)
    check_consistent(coupling, x, y, a, a)
    np.testing.assert_allclose(coupling.plan, ot.emd(a, a, cost(x, y)), atol=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_in_order_with_other_weights_is_optimal_transport(seed):
    (x, y), a, b = clouds(seed), weights(seed + 10), weights(seed + 20)
    coupling = transport.in_order(x, y, a, b, return_plan=True)
    check_consistent(coupling, x, y, np.asarray(a), np.asarray(b))
    expected = ot.emd(np.asarray(a), np.asarray(b), cost(x, y))
    np.testing.assert_allclose(coupling.plan, expected, atol=1e-10)


def test_in_order_leaves_equal_clouds_where_they_are():
    x = jnp.asarray([2.0, 1.0, 1.0, 3.0, 1.0])
    np.testing.assert_array_equal(transport.in_order(x, x).targets, x)
    plan = transport.in_order(x, x, return_plan=True).plan
    np.testing.assert_allclose(plan, np.eye(5) / 5)


def test_uniform_is_the_product_of_the_weights():
    (x, y), a, b = clouds(), weights(1), weights(2)
    coupling = transport.uniform(x, y, a, b, return_plan=True)
    check_consistent(coupling, x, y, np.asarray(a), np.asarray(b))
    np.testing.assert_allclose(coupling.plan, np.outer(a, b))
    uniform = transport.uniform(x, y)
    np.testing.assert_allclose(uniform.perplexity, N)


@pytest.mark.parametrize("epsilon", [0.05, 1.0, 100.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_entropic_equals_sinkhorn(epsilon, weighted):
    x, y = clouds()
    a, b = (weights(1), weights(2)) if weighted else (None, None)
    coupling = sinkhorn.entropic(
        x, y, epsilon, a, b, threshold=1e-12, max_iterations=50000, return_plan=True
    )
    wa, wb = (np.asarray(v) if weighted else np.full(N, 1 / N) for v in (a, b))
    expected = ot.sinkhorn(
        wa, wb, cost(x, y), epsilon, method="sinkhorn_log", stopThr=1e-13,
        numItermax=200000,
    )  # fmt: skip
    assert bool(coupling.converged)
    assert int(coupling.iterations) > 0
    check_consistent(coupling, x, y, wa, wb)
    np.testing.assert_allclose(coupling.plan, expected, atol=1e-10)
    np.testing.assert_allclose(
        coupling.divergence, epsilon * kl(expected, wa, wb), rtol=1e-7
    )


def test_entropic_tends_to_the_sort_and_to_the_mean():
    x, y = clouds()
    narrow = sinkhorn.entropic(x, y, 1e-3, max_iterations=20000)
    wide = sinkhorn.entropic(x, y, 1e6)
    np.testing.assert_allclose(
        narrow.targets, transport.in_order(x, y).targets, atol=0.05
    )
    np.testing.assert_allclose(wide.targets, jnp.full(N, y.mean()), atol=1e-3)
    np.testing.assert_allclose(wide.perplexity, N, rtol=1e-6)


def test_entropic_reports_that_it_did_not_converge():
    x, y = clouds()
    coupling = sinkhorn.entropic(x, y, 1e-4, max_iterations=10, return_plan=True)
    assert not bool(coupling.converged)
    assert float(coupling.marginal_error) > 1e-3
    # The targets are averages of y all the same.
    np.testing.assert_allclose(coupling.plan.sum(1), 1 / N, rtol=1e-9)


def test_a_warm_start_takes_fewer_iterations_to_the_same_plan():
    x, y = clouds()
    options = {"threshold": 1e-8, "max_iterations": 20000, "return_plan": True}
    cold = sinkhorn.entropic(x, y, 0.3, **options)
    moved = x + 0.01 * jnp.sin(jnp.arange(N))
    fresh = sinkhorn.entropic(moved, y, 0.3, **options)
    warm = sinkhorn.entropic(moved, y, 0.3, init=cold.potentials, **options)
    assert int(warm.iterations) < int(fresh.iterations)
    np.testing.assert_allclose(warm.plan, fresh.plan, atol=1e-7)


def test_units_of_the_projections_do_not_matter():
    """Scaling x and y by c and epsilon by c^2 leaves the plan as it is."""
    x, y = clouds()
    first = sinkhorn.entropic(x, y, 0.2, return_plan=True)
    tiny = sinkhorn.entropic(1e-5 * x, 1e-5 * y, 0.2e-10, return_plan=True)
    np.testing.assert_allclose(first.plan, tiny.plan, atol=1e-9)
    np.testing.assert_allclose(first.cost, 1e10 * tiny.cost, rtol=1e-6)


def test_examples_without_weight_are_left_alone():
    """Duplicates count as often as they occur."""
    x, y = clouds(3)
    double = sinkhorn.entropic(
        jnp.concatenate([x, x[:5]]), y, 0.5, threshold=1e-10, max_iterations=20000
    )
    a = jnp.full(N, 1.0).at[:5].set(2.0) / (N + 5)
    weighted = sinkhorn.entropic(x, y, 0.5, a, threshold=1e-10, max_iterations=20000)
    np.testing.assert_allclose(double.targets[:N], weighted.targets, atol=1e-6)


@pytest.mark.parametrize("epsilon", [1e-4, 0.05, 5.0])
def test_self_plan_is_a_symmetric_coupling_without_negative_eigenvalues(epsilon):
    _, y = clouds()
    coupling = sinkhorn.self_plan(y, epsilon, threshold=1e-10)
    plan = np.asarray(coupling.plan)
    assert bool(coupling.converged)
    np.testing.assert_allclose(plan, plan.T, atol=1e-14)
    np.testing.assert_allclose(plan.sum(1), 1 / N, atol=1e-10)
    assert np.linalg.eigvalsh(plan).min() > -1e-12
    # The right sums and this form make it the one entropic coupling.
    half = np.log(np.diag(plan)) / 2
    expected = np.exp(half[:, None] + half - cost(y, y) / epsilon)
    np.testing.assert_allclose(plan, expected, atol=1e-12)
    if epsilon == 5.0:
        a = np.full(N, 1 / N)
        theirs = ot.sinkhorn(a, a, cost(y, y), epsilon, method="sinkhorn_log")
        np.testing.assert_allclose(plan, theirs, atol=1e-9)


@pytest.mark.parametrize("perplexity", [1.5, 4.0, 20.0])
def test_epsilon_is_found_for_a_number_of_neighbours(perplexity):
    _, y = clouds()
    epsilon = sinkhorn.epsilon_for_perplexity(y, perplexity)
    logits = -cost(y, y) / float(epsilon)
    rows = np.exp(logits - logits.max(1, keepdims=True))
    rows /= rows.sum(1, keepdims=True)
    entropy = -np.sum(np.where(rows > 0, rows * np.log(np.maximum(rows, 1e-300)), 0), 1)
    np.testing.assert_allclose(np.exp(entropy.mean()), perplexity, rtol=1e-3)


def test_perplexity_below_that_of_duplicates_gives_the_smallest_epsilon():
    y = jnp.asarray([1.0, 1.0, 1.0, 2.0, 2.0, 2.0])
    epsilon = sinkhorn.epsilon_for_perplexity(y, 2.0)
    assert 0 < float(epsilon) < 1e-12


couple = jax.jit(
    lambda x, y, epsilon: (
        transport.identity(x, y),
        transport.in_order(x, y),
        transport.uniform(x, y),
        sinkhorn.entropic(x, y, epsilon, max_iterations=50),
    )
)


@given(
    st.lists(st.floats(-10, 10), min_size=N, max_size=N),
    st.lists(st.floats(-10, 10), min_size=N, max_size=N),
    st.sampled_from([0.1, 1.0, 50.0]),
)
def test_targets_are_averages_of_y(x, y, epsilon):
    x, y = jnp.asarray(x), jnp.asarray(y)
    for coupling in couple(x, y, epsilon):
        assert np.all(coupling.targets <= y.max() + 1e-9)
        assert np.all(coupling.targets >= y.min() - 1e-9)
        assert float(coupling.cost) >= 0


@pytest.mark.parametrize("y", [[3.0] * 6, [0.0] * 6, [2.0]])
def test_points_that_coincide_are_no_obstacle(y):
    y = jnp.asarray(y)
    x = jnp.zeros_like(y)
    a = np.full(len(y), 1 / len(y))
    for coupling in (
        sinkhorn.entropic(x, y, 1.0, return_plan=True),
        sinkhorn.self_plan(y, 1.0),
        transport.in_order(x, y, return_plan=True),
        transport.uniform(x, y, return_plan=True),
    ):
        np.testing.assert_allclose(coupling.targets, y, atol=1e-12)
        np.testing.assert_allclose(coupling.plan.sum(1), a)
    assert np.isfinite(sinkhorn.epsilon_for_perplexity(y, 2.0))


def test_float32_is_close_to_float64():
    x, y = clouds(n=200)
    wide = sinkhorn.entropic(x, y, 0.1, threshold=1e-4, max_iterations=5000)
    narrow = sinkhorn.entropic(
        x.astype(jnp.float32), y.astype(jnp.float32), 0.1, threshold=1e-4,
        max_iterations=5000,
    )  # fmt: skip
    assert narrow.targets.dtype == jnp.float32
    np.testing.assert_allclose(narrow.targets, wide.targets, atol=2e-3)
