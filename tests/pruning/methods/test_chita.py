"""CHITA against normal equations, explicit loops and brute force."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import (
    N,
    bend,
    dense,
    explicit,
    on_support,
    setting,
    small,
    solve,
    supports,
)
from trees import flat

import swapjax
from swapjax import (
    Status,
    cbs,
    chita,
    woodfisher,
)
from swapjax.pruning.solvers.coordinate_descent import descend

pytestmark = pytest.mark.usefixtures("x64")


class TestCHITA:
    """The regression with a budget."""

    # Blocks that hold all of the support, one each, and one by one until they settle.
    @pytest.mark.parametrize("first_order", [False, True])
    @pytest.mark.parametrize(
        "blocks", [{}, {"block": 72, "sweeps": 1}, {"block": 5, "sweeps": 400}]
    )
    def test_solves_the_normal_equations_of_its_support(self, first_order, blocks):
        problem, target = setting(jnp.float64)
        method = chita(
            damping=0.05, search="magnitude", first_order=first_order, **blocks
        )
        solution = solve(method, problem, target.budget)
        h, g = dense(problem, 0.05)
        w, keep = flat(problem.weights), flat(solution.masks).astype(bool)
        assert sorted(np.abs(w)[keep]) == sorted(np.abs(w))[-target.kept :]
        slope = None
        if first_order:
            slope = g.mean(axis=0) / bend(problem, solution.masks)
        expected = on_support(h, w, keep, slope)
        np.testing.assert_allclose(flat(solution.weights), expected, rtol=1e-8)
        assert float(solution.objective[-1]) < float(solution.objective[0])

    @pytest.mark.parametrize("sweeps", [1, 3])
    def test_each_block_makes_up_for_what_the_others_leave(self, sweeps):
        problem, target = setting(jnp.float64)
        method = chita(damping=0.05, search="magnitude", block=7, sweeps=sweeps)
        solution = solve(method, problem, target.budget)
        g = explicit(problem.rows)
        w, keep = flat(problem.weights), flat(solution.masks).astype(bool)
        left, change = g @ np.where(keep, 0, w), np.zeros(w.size)
        kept = np.flatnonzero(keep)
        for start in [*range(0, len(kept), 7)] * sweeps:
            block = kept[start : start + 7]
            some = g[:, block]
            left += some @ change[block]
            system = some.T @ some + len(g) * 0.05 * np.eye(len(block))
            change[block] = np.linalg.solve(system, some.T @ left)
            left -= some @ change[block]
        expected = np.where(keep, w + change, 0)
        np.testing.assert_allclose(flat(solution.weights), expected, rtol=1e-9)
        value = 0.5 * (left @ left + len(g) * 0.05 * change @ change)
        np.testing.assert_allclose(solution.objective[-1], value, rtol=1e-9)

    def test_shrinking_finds_a_better_support_than_magnitude(self):
        problem, target = setting(jnp.float64, sparsity=0.8)
        h, _ = dense(problem, 0.05)
        w = flat(problem.weights)

        def objective(solution):
            d = flat(solution.weights) - w
            return d @ h @ d

        plain = solve(chita(damping=0.05, search="magnitude"), problem, target.budget)
        searched = solve(chita(damping=0.05), problem, target.budget)
        assert objective(searched) < objective(plain)
        assert int(searched.details["support_swaps"]) > 0
        assert int(plain.details["support_swaps"]) == 0

    def test_a_budget_small_enough_to_try_them_all(self):
        """The search ends near the best of all supports, and never below it."""
        problem, target, g = small(0.5)
        h = g.T @ g / len(g) + 0.01 * np.eye(8)
        w = flat(problem.weights)

        def cost(keep):
            d = on_support(h, w, keep) - w
            return d @ h @ d

        costs = sorted(map(cost, supports(8, 4)))
        solution = solve(chita(damping=0.01), problem, target.budget)
        found = cost(flat(solution.masks).astype(bool))
        np.testing.assert_allclose(
            2 * solution.objective[-1] / len(g) + 0.01 * self.lost(problem, solution),
            found, rtol=1e-7,
        )  # fmt: skip
        assert costs[0] <= found * (1 + 1e-9)
        assert found <= costs[len(costs) // 4]

    @staticmethod
    def lost(problem, solution):
        """What the ridge says of removed weights is a constant, and left out."""
        gone = flat(problem.weights)[~flat(solution.masks).astype(bool)]
        return gone @ gone

    def test_coordinate_descent_tends_to_the_back_solve(self):
        problem, target = setting(jnp.float64)
        exact, slow = (
            solve(
                chita(damping=0.05, search="magnitude", polish=polish, sweeps=400),
                problem, target.budget,
            )
            for polish in ("backsolve", "descent")
        )  # fmt: skip
        np.testing.assert_allclose(
            flat(slow.weights), flat(exact.weights), rtol=1e-5, atol=1e-8
        )
        values = np.asarray(slow.objective)
        assert len(values) == 401
        assert np.all(np.diff(values) <= 1e-12 * values[0])

    def test_one_sweep_is_one_exact_step_per_weight(self):
        problem, _ = setting(jnp.float64)
        g, w = explicit(problem.rows), flat(problem.weights)
        support = tuple(jnp.abs(leaf) > 0.7 for leaf in problem.weights)
        start = tuple(
            jnp.where(s, leaf, 0)
            for s, leaf in zip(support, problem.weights, strict=True)
        )
        t = np.random.default_rng(0).normal(size=N)
        found, _ = jax.jit(
            lambda rows: descend(
                rows, support, start, problem.weights, jnp.asarray(t),
                damping=0.1, sweeps=1,
            )
        )(problem.rows)  # fmt: skip
        values = flat(start)
        for j in np.flatnonzero(flat(support)):
            r = t - g @ values
            size = g[:, j] @ g[:, j]
            pull = N * 0.1 * w[j] + g[:, j] @ r + size * values[j]
            values[j] = pull / (size + N * 0.1)
        np.testing.assert_allclose(flat(found), values, rtol=1e-9, atol=1e-12)

    def test_descent_needs_stored_rows(self):
        problem, target = setting(jnp.float64, storage="matrix-free")
        with pytest.raises(ValueError, match="needs storage='stored'"):
            chita(search="iht", polish="descent")(problem, target.budget)

    def test_stages_of_chita_and_woodfisher_end_where_they_should(self):
        problem, _ = setting(jnp.float64)
        params = {"fc1": {"kernel": problem.weights[0]}}
        x = jax.random.normal(jax.random.key(8), (60, 6), jnp.float64)
        y = jnp.tanh(x @ params["fc1"]["kernel"]) + 0.1

        def loss(params, batch):
            out = jnp.tanh(batch[0] @ params["fc1"]["kernel"])
            return jnp.mean(jnp.square(out - batch[1]))

        for method in (woodfisher(block=9), cbs(), chita()):
            pruned = swapjax.prune(
                loss, params, (x, y), sparsity=0.7, method=method, stages=3,
                samples=40, key=jax.random.key(0),
            )  # fmt: skip
            assert pruned.history[-1].kept == 16
            # Where the model of the loss does not hold, the re-fit is not taken.
            ends = {Status.CONVERGED, Status.NOT_REFITTED}
            assert {s.status for s in pruned.history} <= ends


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (chita, {"search": "cd"}, "search must be 'shrink', 'iht' or 'magnitude'"),
        (chita, {"polish": "sgd"}, "polish must be 'backsolve', 'descent' or 'none'"),
        (chita, {"block": 0}, "block must be 1 or more, got 0"),
        (chita, {"block": 5, "polish": "descent"}, "block: coordinate descent and"),
        (chita, {"block": 5, "search": "shrink"}, "shrink take all weights at once"),
        (chita, {"step": 1.0}, r"step must be in \[0, 1\), got 1.0"),
        (chita, {"iterations": 0}, "iterations must be 1 or more, got 0"),
        (chita, {"sweeps": 0}, "sweeps must be 1 or more, got 0"),
        (chita, {"damping": float("nan")}, "damping must be 0 or more, got nan"),
        (chita, {"damping": "much"}, "damping must be numbers, got 'much'"),
    ],
)
def test_bad_settings_are_named(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_dampings_may_come_in_any_sequence():
    for damping in ([1e-3, 1e-2], np.asarray([1e-3, 1e-2])):
        assert chita(damping=damping) == chita(damping=(1e-3, 1e-2))
