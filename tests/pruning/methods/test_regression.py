"""Linear regression against normal equations in float64."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import N, explicit, setting, solve
from trees import flat

from swapjax import (
    Status,
    linear_regression,
)
from swapjax.pruning.solvers import natural_step
from swapjax.pruning.solvers.conjugate_gradients import prefers_cg
from swapjax.pruning.solvers.dual_system import damp, diagonalise


@pytest.mark.usefixtures("x64")
class TestRegression:
    """Identities in float64."""

    def test_conjugate_gradients_that_do_not_arrive_say_so(self):
        problem, target = setting(jnp.float64)
        method = linear_regression(algebra="cg", damping=1e-13, first_order=False)
        solution = solve(method, problem, target.budget)
        assert Status(int(solution.status)) in (
            Status.CONVERGED,
            Status.ITERATION_LIMIT,
        )
        assert np.isfinite(flat(solution.weights)).all()

    def test_the_cheaper_algebra_is_chosen(self):
        stored, _ = setting(jnp.float64)
        free, _ = setting(jnp.float64, storage="matrix-free")
        for rows, few, many in (
            (stored.rows, 1000, 200_000),
            (free.rows, 1000, 20_000),
        ):
            weights = tuple(
                jax.ShapeDtypeStruct((1000, 1000), jnp.float32) for _ in "ab"
            )
            source = rows if rows is free.rows else rows.source
            for n, cg in ((few, False), (many, True)):
                resized = dataclasses.replace(source, n=n)
                if rows is stored.rows:
                    resized = dataclasses.replace(rows, source=resized)
                assert prefers_cg(resized, weights, solves=3) == cg

    def test_linear_regression_solves_the_normal_equations_on_its_support(self):
        problem, target = setting(jnp.float64)
        method = linear_regression(support="magnitude", first_order=False, damping=0.1)
        solution = solve(method, problem, target.budget)
        g, w = explicit(problem.rows), flat(problem.weights)
        kept = flat(solution.masks).astype(bool)
        assert sorted(np.abs(w)[kept]) == sorted(np.abs(w))[-target.kept :]
        gs = g[:, kept]
        left = gs.T @ gs + N * 0.1 * np.eye(kept.sum())
        expected = np.linalg.solve(left, gs.T @ (g @ w) + N * 0.1 * w[kept])
        np.testing.assert_allclose(flat(solution.weights)[kept], expected, rtol=1e-8)

    def test_re_fitted_values_are_written(self):
        problem, target = setting(jnp.float64)
        solution = solve(linear_regression(), problem, target.budget)
        kept = flat(solution.masks).astype(bool)
        change = flat(solution.weights)[kept] - flat(problem.weights)[kept]
        assert np.all(np.abs(change) > 0)

    def test_hard_thresholding_never_ends_above_its_start(self):
        problem, target = setting(jnp.float64)
        common = {"first_order": False, "damping": 5e-5}
        first = solve(
            linear_regression(support="magnitude", **common), problem, target.budget
        )
        searched = solve(
            linear_regression(support="iht", iterations=30, **common),
            problem,
            target.budget,
        )
        assert int(searched.details["support_swaps"]) > 0
        assert float(searched.objective[-1]) < float(first.objective[-1])

    def test_no_damping_and_too_few_rows_is_reported(self):
        problem, target = setting(jnp.float64, sparsity=0.1)
        doubled = setting(jnp.float64, sparsity=0.8)
        few = doubled[1].budget
        solution = solve(linear_regression(damping=0.0), doubled[0], few)
        assert Status(int(solution.status)) is Status.RANK_DEFICIENT
        solution = solve(linear_regression(damping=0.1), problem, target.budget)
        assert Status(int(solution.status)) is Status.CONVERGED


@pytest.mark.usefixtures("x64")
class TestFirstOrder:
    """The natural-gradient step, and how far the rows left out confirm it."""

    def test_the_trusted_length_is_that_of_re_fits_without_each_row(self):
        problem, _ = setting(jnp.float64)
        g, damping, bend = explicit(problem.rows)[:, :40], 0.3, 1.7
        rng = np.random.default_rng(0)
        residual = rng.normal(size=N)

        def change(keep, t):
            """What a re-fit on some rows does to all rows."""
            gs = g[keep]
            k = gs @ gs.T + N * damping * np.eye(len(gs))
            return g @ gs.T @ np.linalg.solve(k, t[keep])

        every = np.arange(N)
        missed, follow = np.empty(N), np.empty(N)
        for i in range(N):
            others = every[every != i]
            missed[i] = change(others, residual)[i] - residual[i]
            follow[i] = change(others, np.ones(N))[i]
        # d/ds of mean(v) + c/2 mean(v^2) at v = missed - s follow vanishes.
        expected = (follow.mean() + bend * (missed * follow).mean()) / (
            bend * (follow**2).mean()
        )
        system = damp(diagonalise(jnp.asarray(g @ g.T)), damping)
        length = natural_step.trust(system, jnp.asarray(residual)).length(bend)
        np.testing.assert_allclose(length, np.clip(expected, 0, 1 / bend), rtol=1e-8)

    def test_never_raises_the_loss_of_the_rows(self):
        problem, target = setting(jnp.float64)
        without = solve(linear_regression(first_order=False), problem, target.budget)
        with_it = solve(linear_regression(), problem, target.budget)
        loss = problem.rows.loss
        assert float(loss(with_it.weights)) <= float(loss(without.weights))
        assert 0 <= float(with_it.details["first_order"]) <= 1


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (linear_regression, {"damping": float("inf")}, "damping must be 0 or more"),
        (linear_regression, {"support": "largest"}, "support must be of 'magnitude'"),
        (linear_regression, {"support": ()}, "support must be of 'magnitude'"),
    ],
)
def test_bad_settings_are_named(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)
