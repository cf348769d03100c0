"""SWAP against linear regression, and its objective against its algebra."""

import jax.numpy as jnp
import numpy as np
import pytest
from problems import N, setting, solve
from trees import flat

from swapjax import (
    Status,
    linear_regression,
    swap,
)
from swapjax.pruning.solvers import targets
from swapjax.pruning.solvers.refit import prepare, refit
from swapjax.sparsity.budget import select


@pytest.mark.usefixtures("x64")
def test_jit_changes_nothing():
    problem, target = setting(jnp.float64)
    method = swap(target="smoothed", support="magnitude", first_order=False)
    jitted = solve(method, problem, target.budget)
    eager = method(problem, target.budget)
    np.testing.assert_allclose(flat(eager.weights), flat(jitted.weights), rtol=1e-6)


@pytest.mark.usefixtures("x64")
class TestSwap:
    """Identities in float64."""

    @pytest.mark.parametrize(
        ("options", "storage"),
        [
            ({"target": "smoothed"}, "stored"),
            ({"target": "hybrid", "rounds": 3}, "matrix-free"),
        ],
        ids=str,
    )
    def test_conjugate_gradients_end_where_the_gram_matrix_does(self, options, storage):
        problem, target = setting(jnp.float64, storage=storage)
        options |= {"support": "obd", "first_order": False, "damping": 1.0}
        exact, steps = (
            solve(swap(algebra=algebra, **options), problem, target.budget)
            for algebra in ("gram", "cg")
        )
        np.testing.assert_allclose(
            flat(steps.weights), flat(exact.weights), rtol=1e-4, atol=1e-5
        )
        np.testing.assert_allclose(steps.objective[-1], exact.objective[-1], rtol=1e-5)
        assert Status(int(steps.status)) == Status(int(exact.status))

    def test_swap_with_the_identity_coupling_is_linear_regression(self):
        problem, target = setting(jnp.float64)
        wanted = solve(linear_regression(), problem, target.budget)
        for same in (
            swap(target="hybrid", rho=0.0, epsilon=0.0),
            swap(target="smoothed", epsilon=0.0),
        ):
            got = solve(same, problem, target.budget)
            np.testing.assert_allclose(
                flat(got.weights), flat(wanted.weights), rtol=1e-9, atol=1e-12
            )

    def test_smoothing_with_a_tiny_epsilon_tends_to_linear_regression(self):
        problem, target = setting(jnp.float64)
        wanted = solve(linear_regression(), problem, target.budget)
        got = solve(swap(target="smoothed", epsilon=1e-9), problem, target.budget)
        np.testing.assert_allclose(flat(got.weights), flat(wanted.weights), rtol=1e-6)

    @pytest.mark.parametrize(
        "options",
        [
            {"target": "exact", "perplexity": 2.0},
            {"target": "hybrid", "perplexity": 2.0},
            {"target": "exact", "epsilon": 0.0},
        ],
        ids=["exact", "hybrid", "exact in order"],
    )
    def test_the_alternation_lowers_the_objective_every_round(self, options):
        method = swap(
            rounds=12, tolerance=0.0, max_sinkhorn=5000, first_order=False,
            support="magnitude", **options,
        )  # fmt: skip
        problem, target = setting(jnp.float64)
        solution = solve(method, problem, target.budget)
        trace = np.asarray(solution.objective)
        assert len(trace) == 13
        # Sinkhorn stops at a marginal error of 1e-3, which the objective feels; a sort
        # is exact.
        slack = 1e-12 if "epsilon" in options else 1e-3
        assert np.all(np.diff(trace) <= slack * trace[0])
        assert trace[-1] < trace[0]

    @pytest.mark.parametrize("name", ["identity", "smoothed", "hybrid", "exact"])
    def test_the_objective_in_the_dual_is_that_of_the_weights(self, name):
        """What the n x n algebra reports is Q at the weights that are returned."""
        problem, target = setting(jnp.float64)
        rows, wbar = problem.rows, problem.weights
        support = select(tuple(jnp.abs(w) for w in wbar), target.budget)
        y, damping = rows.project(wbar), 0.05
        variant = targets.make(
            name, epsilon=None, perplexity=3.0, rho=0.5, max_iterations=3000
        )
        state = variant.prepare(y)
        ground = prepare(rows, support, wbar, y, variant, state)
        fit = refit(
            rows, ground, y, variant, damping=damping, bend=jnp.ones(()), rounds=3,
            tolerance=0.0,
        )  # fmt: skip
        x = rows.project(fit.weights)
        quadratic, _ = variant.fit(state, x, y)
        residual = np.asarray(x - quadratic.targets)
        m = np.eye(N) if quadratic.metric is None else np.asarray(quadratic.metric)
        ridge = N * damping / 2 * np.sum((flat(fit.weights) - flat(wbar)) ** 2)
        primal = residual @ m @ residual / 2 + float(quadratic.constant) + ridge
        # Sinkhorn stops at a marginal error of 1e-3.
        np.testing.assert_allclose(fit.objective[-1], primal, rtol=2e-3)

    def test_gradient_at_the_reference_tells_the_variants_apart(self):
        """Pulling w = wbar away from itself is the bias of the exact objective."""
        problem, _ = setting(jnp.float64)
        y = problem.rows.project(problem.weights)
        slopes = {}
        for name in ("identity", "exact", "debiased", "smoothed", "hybrid"):
            variant = targets.make(
                name, epsilon=None, perplexity=4.0, rho=0.5, max_iterations=5000
            )
            fit, _ = variant.fit(variant.prepare(y), y, y)
            slopes[name] = float(jnp.abs(y - fit.targets).max() / jnp.abs(y).max())
        assert slopes["identity"] == slopes["smoothed"] == 0
        assert slopes["debiased"] < 1e-6
        assert slopes["exact"] > 1e-3
        assert slopes["hybrid"] > 1e-3

    def test_a_coupling_that_did_not_converge_is_reported(self):
        problem, target = setting(jnp.float64)
        method = swap(target="exact", epsilon=1e-6, max_sinkhorn=3)
        solution = solve(method, problem, target.budget)
        assert Status(int(solution.status)) is Status.TRANSPORT_NOT_CONVERGED
        assert not bool(solution.details["transport_converged"])


def test_methods_of_the_same_settings_are_one():
    assert swap() == swap()
    assert hash(swap(epsilon=0.1)) == hash(swap(epsilon=0.1))
    assert swap(epsilon=0.1) != swap(epsilon=0.2)
    assert "damping=(0.5,)" in str(linear_regression(damping=0.5))


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (swap, {"target": "other"}, "target must be 'exact', 'debiased'"),
        (swap, {"epsilon": -0.1}, "epsilon must be 0 or more, got -0.1"),
        (swap, {"epsilon": float("nan")}, "epsilon must be 0 or more, got nan"),
        (swap, {"epsilon": 0.1, "perplexity": 2.0}, "epsilon or perplexity, not both"),
        (swap, {"perplexity": 1.0}, "perplexity must be more than 1"),
        (swap, {"perplexity": float("inf")}, "perplexity must be more than 1 and fin"),
        (swap, {"rho": 1.5}, r"rho must be in \[0, 1\]"),
        (swap, {"max_sinkhorn": 0}, "max_sinkhorn must be 1 or more"),
        (swap, {"damping": -1.0}, "damping must be 0 or more, got -1.0"),
        (swap, {"reference": "first"}, "reference must be 'current' or 'initial'"),
        (swap, {"iterations": 0}, "iterations must be 1 or more"),
        (swap, {"rounds": 0}, "rounds must be 1 or more"),
        (swap, {"tolerance": -1.0}, "tolerance must be 0 or more"),
    ],
)
def test_bad_settings_are_named(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)
