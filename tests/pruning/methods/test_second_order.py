"""WoodFisher, CBS and CHITA against dense inverses and brute force."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import N, explicit, flat, setting, solve

import swapjax
from swapjax import (
    NM,
    Status,
    cbs,
    chita,
    layerwise_obs,
    obd,
    plan,
    saliency,
    woodfisher,
)
from swapjax.gradients.build import per_example_gradients
from swapjax.pruning import Problem
from swapjax.pruning.solvers import fisher_blocks
from swapjax.pruning.solvers.backsolve import backsolve
from swapjax.pruning.solvers.coordinate_descent import descend
from swapjax.pruning.solvers.least_squares import factor
from swapjax.pruning.solvers.pair_exchange import search
from swapjax.sparsity.budget import select
from swapjax.sparsity.masks import apply_masks

pytestmark = pytest.mark.usefixtures("x64")


def dense(problem, damping):
    """H = F + lambda I as an array, and G."""
    g = explicit(problem.rows)
    return g.T @ g / len(g) + damping * np.eye(g.shape[1]), g


def on_support(h, w, keep, slope=None):
    """The minimiser of g^T d + d^T H d / 2 with w + d zero off the support."""
    slope = np.zeros_like(w) if slope is None else slope
    d = np.where(keep, 0, -w)
    right = -slope[keep] - h[np.ix_(keep, ~keep)] @ d[~keep]
    d[keep] = np.linalg.solve(h[np.ix_(keep, keep)], right)
    return w + d


def small(sparsity, n=9):
    """A linear model with 8 weights: every mask can be tried."""
    keys = jax.random.split(jax.random.key(3), 3)
    params = {"kernel": jax.random.normal(keys[0], (4, 2), jnp.float64)}
    x = jax.random.normal(keys[1], (n, 4), jnp.float64)
    x = x.at[:, 1].add(0.9 * x[:, 0])  # weights that can stand in for each other
    y = jax.random.normal(keys[2], (n, 2), jnp.float64)

    def loss(params, batch):
        return jnp.mean(jnp.square(batch[0] @ params["kernel"] - batch[1]))

    target = plan(params, sparsity, min_keep=0)
    rows = per_example_gradients(loss, params, (x, y), target)
    weights = target.split(params)
    g = np.asarray(rows.matrices[0]).reshape(n, -1)
    return Problem(weights, weights, rows), target, g


def supports(total, kept):
    for chosen in itertools.combinations(range(total), kept):
        mask = np.zeros(total, bool)
        mask[list(chosen)] = True
        yield mask


class TestParts:
    """The systems that the methods share."""

    @pytest.mark.parametrize("ridge", [1e-3, 1.0])
    def test_factor_solves(self, ridge):
        a = np.random.default_rng(0).normal(size=(6, 9))
        h = a @ a.T
        got = jax.jit(factor)(jnp.asarray(h), ridge)
        damped = h + ridge * np.eye(6)
        np.testing.assert_allclose(got.solve(np.eye(6)), np.linalg.inv(damped))
        root = np.asarray(got.inverse_root())
        np.testing.assert_allclose(root.T @ root, np.linalg.inv(damped))
        assert not got.raised
        assert got.ridge == ridge

    def test_a_singular_matrix_is_damped_and_told(self):
        a = np.ones((5, 5))
        got = jax.jit(factor)(jnp.asarray(a), 0.0)
        assert got.raised
        assert 0 < got.ridge < 1e-12
        assert np.isfinite(got.solve(np.ones(5))).all()
        nothing = factor(jnp.zeros((3, 3)), 0.0)
        assert nothing.raised
        assert np.isfinite(nothing.lower).all()
        # NaN is beyond help, but it ends.
        assert factor(jnp.full((2, 2), jnp.nan), 0.1).raised

    # Up to 24 rows are solved as n x n alone, unless told that this is many.
    @pytest.mark.parametrize("small", [0, 24])
    @pytest.mark.parametrize("kept", [0, 1, 5, 17, 18, 24, 25, 72])
    def test_backsolve_is_the_augmented_least_squares(self, kept, small, monkeypatch):
        monkeypatch.setattr("swapjax.pruning.solvers.backsolve._SMALL", small)
        problem, _ = setting(jnp.float64)
        g = explicit(problem.rows)
        rng = np.random.default_rng(kept)
        keep = np.zeros(72, bool)
        keep[rng.permutation(72)[:kept]] = True
        support = tuple(
            jnp.asarray(part.reshape(w.shape))
            for part, w in zip(np.split(keep, [54]), problem.weights, strict=True)
        )
        r, ridge = rng.normal(size=N), 0.3
        got = jax.jit(backsolve)(problem.rows, support, jnp.asarray(r), ridge)
        above = np.concatenate([g[:, keep], np.sqrt(ridge) * np.eye(kept)])
        right = np.concatenate([r, np.zeros(kept)])
        expected, *_ = np.linalg.lstsq(above, right)
        change = flat(got.change)
        np.testing.assert_allclose(change[keep], expected, rtol=1e-9, atol=1e-12)
        assert not change[~keep].any()
        value = 0.5 * np.sum((above @ expected - right) ** 2)
        np.testing.assert_allclose(got.value, value, rtol=1e-9)

    def test_backsolve_keeps_its_digits_in_float32(self):
        problem, _ = setting(jnp.float64)
        narrow = tuple(m.astype(jnp.float32) for m in problem.rows.matrices)
        single = dataclasses.replace(problem.rows, matrices=narrow)
        support = tuple(jnp.abs(w) > 0.5 for w in problem.weights)
        gone = tuple(jnp.where(abs(w) > 0.5, 0, w) for w in problem.weights)
        solve = jax.jit(backsolve)
        for ridge in (1e-1, 1e-3):
            r = problem.rows.project(gone)
            wanted = flat(solve(problem.rows, support, r, ridge).change)
            got = flat(solve(single, support, r.astype(jnp.float32), ridge).change)
            assert np.abs(got - wanted).max() < 1e-3 * np.abs(wanted).max()

    @pytest.mark.parametrize("axis", [-1, 0])
    @pytest.mark.parametrize("size", [1, 4, 7, 100])
    def test_blocks_hold_every_entry_once_output_by_output(self, axis, size):
        weights = (jnp.zeros((3, 4)), jnp.zeros((2, 3, 5)))
        for leaf, index in zip(
            weights, fisher_blocks.partition(weights, size, axis), strict=True
        ):
            places = np.asarray(index).ravel()
            real = places[places < leaf.size]
            assert sorted(real) == list(range(leaf.size))
            outputs = np.unravel_index(real, leaf.shape)[axis]
            assert np.all(np.diff(outputs) >= 0)
            assert index.shape[1] == min(size, leaf.size)


class TestScored:
    """Ranks from formulas."""

    def test_saliency_and_obd(self):
        problem, target = setting(jnp.float64)
        g, w = explicit(problem.rows), flat(problem.weights)
        scores = {
            saliency(): np.abs(w * g.mean(axis=0)),
            obd(): w**2 * np.mean(g**2, axis=0),
        }
        for method, score in scores.items():
            solution = solve(method, problem, target.budget)
            best = np.sort(np.argsort(-score)[: target.kept])
            np.testing.assert_array_equal(np.flatnonzero(flat(solution.masks)), best)
            kept = flat(solution.masks).astype(bool)
            np.testing.assert_array_equal(flat(solution.weights), np.where(kept, w, 0))


class TestWoodFisher:
    """Optimal Brain Surgeon with the dense matrix."""

    @pytest.mark.parametrize("block", [None, 12, 100])
    @pytest.mark.parametrize("update", ["joint", "independent", "none"])
    @pytest.mark.parametrize("first_order", [False, True])
    def test_equals_the_dense_inverse(self, block, update, first_order):
        problem, target = setting(jnp.float64)
        damping = 0.05
        method = woodfisher(
            block=block, damping=damping, update=update, first_order=first_order
        )
        solution = solve(method, problem, target.budget)
        h, g = dense(problem, damping)
        if block is not None:
            same = np.zeros_like(h, bool)
            cut = fisher_blocks.partition(problem.weights, block, -1)
            for leaf, offset in zip(cut, (0, 54), strict=True):
                size = 54 if offset == 0 else 18
                for row in np.asarray(leaf):
                    places = row[row < size] + offset
                    same[np.ix_(places, places)] = True
            h = np.where(same, h, 0)
        inverse = np.linalg.inv(h)
        w = flat(problem.weights)
        if first_order:
            w = w - inverse @ g.mean(axis=0)
        score = w**2 / np.diag(inverse)
        keep = np.zeros(72, bool)
        keep[np.argsort(-score)[: target.kept]] = True
        np.testing.assert_array_equal(flat(solution.masks).astype(bool), keep)
        alone = w - inverse @ np.where(keep, 0, w / np.diag(inverse))
        expected = {
            "joint": on_support(h, w, keep),
            "independent": np.where(keep, alone, 0),
            "none": np.where(keep, w, 0),
        }[update]
        np.testing.assert_allclose(flat(solution.weights), expected, rtol=1e-7)
        d = flat(solution.weights) - w
        np.testing.assert_allclose(solution.objective[-1], N * d @ h @ d / 2, rtol=1e-7)
        assert Status(int(solution.status)) is Status.CONVERGED

    def test_the_first_removal_is_the_best_there_is(self):
        problem, target, g = small(1 / 8)
        h = g.T @ g / len(g) + 0.01 * np.eye(8)
        w = flat(problem.weights)
        solution = solve(woodfisher(block=None, damping=0.01), problem, target.budget)

        def cost(keep):
            d = on_support(h, w, keep) - w
            return d @ h @ d

        best = min(supports(8, 7), key=cost)
        np.testing.assert_array_equal(flat(solution.masks).astype(bool), best)
        np.testing.assert_allclose(
            flat(solution.weights), on_support(h, w, best), rtol=1e-8
        )

    def test_rounds_take_gradients_anew(self):
        problem, target = setting(jnp.float64, sparsity=0.5)
        method = woodfisher(block=None, damping=0.05, rounds=2)
        both = solve(method, problem, target.budget)
        one = woodfisher(block=None, damping=0.05)
        half = solve(one, problem, target.at(0.25).budget)
        there = Problem(
            half.weights, problem.initial, problem.rows.at(half.weights), half.masks
        )
        then = solve(one, there, target.budget)
        np.testing.assert_allclose(flat(both.weights), flat(then.weights), rtol=1e-9)
        assert int(both.iterations) == 2

    def test_gradients_without_damping_are_damped_and_told(self):
        problem, target = setting(jnp.float64)
        for block in (None, 30):
            method = woodfisher(block=block, damping=0.0)
            solution = solve(method, problem, target.budget)
            assert Status(int(solution.status)) is Status.DAMPED
            assert float(solution.details["damping"]) > 0
            assert np.isfinite(flat(solution.weights)).all()

    def test_patterns_are_kept_and_not_in_rounds(self):
        problem, _ = setting(jnp.float64)
        params = {"fc1": {"kernel": problem.weights[0]}}
        target = plan(params, pattern=NM(1, 2))
        rows = per_example_gradients(
            lambda p, b: jnp.sum(jnp.square(b @ p["fc1"]["kernel"])),
            params, jnp.ones((5, 6)), target,
        )  # fmt: skip
        one = Problem(target.split(params), target.split(params), rows)
        for method in (woodfisher(), chita(), obd()):
            (mask,) = solve(method, one, target.budget).masks
            assert np.all(np.asarray(mask).reshape(3, 2, 9).sum(1) == 1)
        with pytest.raises(ValueError, match="a pattern is reached in one round"):
            woodfisher(rounds=2)(one, target.budget)
        with pytest.raises(ValueError, match="cbs does not exchange within N:M"):
            cbs()(one, target.budget)


class TestCBS:
    """The exchange of pairs, by brute force."""

    @pytest.mark.parametrize("start", ["magnitude", "obd", "woodfisher"])
    def test_no_exchange_of_two_weights_is_left(self, start):
        problem, target, g = small(0.5)
        h = g.T @ g / len(g) + 0.01 * np.eye(8)
        w = flat(problem.weights)

        def f(keep):
            gone = np.where(keep, 0, w)
            return gone @ h @ gone

        solution = solve(
            cbs(start=start, damping=0.01, block=8), problem, target.budget
        )
        np.testing.assert_allclose(
            solution.details["selection"],
            f(flat(solution.masks).astype(bool)), rtol=1e-8,
        )  # fmt: skip
        support = jax.random.permutation(
            jax.random.key(len(start)), jnp.arange(8) < 4
        ).reshape(4, 2)
        found = jax.jit(
            lambda rows: search(
                rows, problem.weights, (support,), rows.mean_squares(), target.budget,
                None, damping=0.01, candidates=100, passes=50,
            )
        )(problem.rows)  # fmt: skip
        keep = flat(found.last).astype(bool)
        assert keep.sum() == 4
        for i, j in itertools.product(np.flatnonzero(keep), np.flatnonzero(~keep)):
            other = keep.copy()
            other[[i, j]] = other[[j, i]]
            assert f(other) >= f(keep) * (1 - 1e-6)
        assert f(keep) <= f(flat((support,)).astype(bool))
        assert min(map(f, supports(8, 4))) <= f(keep) * (1 + 1e-9)

    def test_the_update_is_the_best_on_its_support(self):
        problem, target = setting(jnp.float64)
        solution = solve(cbs(damping=0.05), problem, target.budget)
        h, _ = dense(problem, 0.05)
        keep = flat(solution.masks).astype(bool)
        expected = on_support(h, flat(problem.weights), keep)
        np.testing.assert_allclose(flat(solution.weights), expected, rtol=1e-8)

    def test_exchanges_respect_budgets_and_floors(self):
        problem, target = setting(jnp.float64, allocation="uniform", sparsity=0.9)
        # The worst start: the smallest weights of each leaf are kept.
        start = select(tuple(-jnp.abs(w) for w in problem.weights), target.budget)
        for budget, limit in ((target.budget, target.keep), (None, (1, 1))):
            if budget is None:
                together = setting(jnp.float64, sparsity=0.9)[1].budget
                budget = dataclasses.replace(together, floors=(1, 1))
            found = jax.jit(
                lambda rows, budget: search(
                    rows, problem.weights, start, rows.mean_squares(), budget,
                    None, damping=0.01, candidates=20, passes=9,
                )
            )(problem.rows, budget)  # fmt: skip
            counts = [int(m.sum()) for m in found.last]
            assert sum(counts) == target.kept
            assert all(c >= least for c, least in zip(counts, limit, strict=True))
            changed = sum(
                int(jnp.sum(a & ~b)) for a, b in zip(found.last, start, strict=True)
            )
            assert changed > 0

    def test_fewer_passes_end_higher(self):
        problem, target = setting(jnp.float64)
        none = solve(cbs(start="magnitude", passes=0), problem, target.budget)
        some = solve(cbs(start="magnitude"), problem, target.budget)
        assert float(none.details["exchanges"]) == 0
        loss = problem.rows.loss
        first = apply_masks(problem.weights, none.masks)
        last = apply_masks(problem.weights, some.masks)
        assert float(loss(last)) <= float(loss(first))


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
        slope = g.mean(axis=0) if first_order else None
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
            assert [s.status for s in pruned.history] == [Status.CONVERGED] * 3


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (woodfisher, {"block": 0}, "block must be 1 or more, got 0"),
        (woodfisher, {"damping": -1.0}, "damping must be 0 or more, got -1.0"),
        (woodfisher, {"update": "all"}, "update must be 'joint', 'independent'"),
        (woodfisher, {"rounds": 0}, "rounds must be 1 or more, got 0"),
        (cbs, {"start": "random"}, "start must be of 'magnitude', 'obd' and"),
        (cbs, {"start": ()}, "start must be of 'magnitude', 'obd' and"),
        (cbs, {"damping": ()}, "damping must be 0 or more"),
        (cbs, {"candidates": 0}, "candidates must be 1 or more, got 0"),
        (cbs, {"block": 0}, "block must be 1 or more, got 0"),
        (cbs, {"passes": -1}, "passes must be 0 or more, got -1"),
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
        (woodfisher, {"rounds": 1.5}, "rounds must be a whole number, got 1.5"),
        (layerwise_obs, {"damping": [0.1, 0.2]}, "damping must be one number here"),
    ],
)
def test_bad_settings_are_named(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_dampings_may_come_in_any_sequence():
    for damping in ([1e-3, 1e-2], np.asarray([1e-3, 1e-2])):
        assert chita(damping=damping) == chita(damping=(1e-3, 1e-2))


def test_they_say_that_they_need_rows():
    weights = (jnp.ones((2, 2)),)
    budget = plan({"kernel": weights[0]}, 0.5).budget
    for method in (saliency(), obd(), woodfisher(), cbs(), chita()):
        with pytest.raises(ValueError, match="needs gradient rows"):
            method(Problem(weights, weights), budget)
