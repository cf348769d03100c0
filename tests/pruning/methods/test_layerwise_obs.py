"""The layer-wise surgeon against explicit loops, dense solutions and all masks."""

import dataclasses
import itertools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_problems import (
    METHODS,
    ONE,
    draw,
    fitted,
    obc,
    problem_of,
    rise,
    setting,
    single,
    sparse_gpt,
)
from network import loss_fn
from problems import solve
from trees import flat

import swapjax
from swapjax import Status, layerwise_obs, plan, wanda
from swapjax.sparsity.patterns import NM


@pytest.mark.usefixtures("x64")
class TestGreedy:
    def test_one_removal_is_the_best_there_is(self):
        inputs = 6
        moment, hessian, weights = single(inputs, 2)
        problem = problem_of(moment, weights)
        budget = plan({"kernel": weights}, 1 / (2 * inputs)).budget
        solution = solve(METHODS["greedy"], problem, budget)
        best = min(
            rise(
                hessian,
                fitted(hessian, wbar, np.delete(np.arange(inputs), q)),
                wbar,
            )
            for wbar in weights.T
            for q in range(inputs)
        )
        np.testing.assert_allclose(solution.objective[-1], best, rtol=1e-9)

    def test_no_support_of_the_same_size_is_better_by_much(self):
        """The greedy order is not the best of all masks, but near it."""
        moment, hessian, weights = single(8, 1, 3)
        problem = problem_of(moment, weights)
        solution = solve(
            METHODS["greedy"], problem, plan({"kernel": weights}, 0.5).budget
        )
        every = [
            rise(
                hessian,
                fitted(hessian, weights[:, 0], np.array(kept)),
                weights[:, 0],
            )
            for kept in itertools.combinations(range(8), 4)
        ]
        rank = np.sum(np.array(every) < float(solution.objective[-1]) * (1 - 1e-9))
        assert rank <= 3

    def test_a_budget_is_a_cut_through_all_orders(self):
        moment, hessian, weights = single(seed=5)
        problem = problem_of(moment, weights)
        solution = solve(
            METHODS["greedy"], problem, plan({"kernel": weights}, 0.6).budget
        )
        mask = np.asarray(solution.masks[0])
        worst, next_best = 0.0, np.inf
        for o in range(3):
            order, rises = obc(hessian, weights[:, o])
            gone = int((~mask[:, o]).sum())
            assert set(order[:gone]) == set(np.flatnonzero(~mask[:, o]))
            steps = np.maximum.accumulate(rises)
            worst = max([worst, *steps[:gone]])
            next_best = min([next_best, *steps[gone:]])
        assert worst <= next_best

    def test_a_pattern_is_obeyed_on_the_way(self):
        """Each removal is the cheapest that the pattern still allows."""
        moment, hessian, weights = single(seed=7)
        problem = problem_of(moment, weights)
        target = plan({"kernel": weights}, pattern=NM(2, 4))
        solution = solve(METHODS["greedy"], problem, target.budget)
        for o in range(3):
            left, gone = list(range(8)), []
            while len(gone) < 4:
                w = fitted(hessian, weights[:, o], np.array(left))
                inverse = np.linalg.inv(hessian[np.ix_(left, left)])
                costs = w[left] ** 2 / np.diag(inverse)
                full = [sum(g // 4 == q // 4 for g in gone) == 2 for q in left]
                gone.append(left.pop(int(np.argmin(np.where(full, np.inf, costs)))))
            assert set(np.flatnonzero(~np.asarray(solution.masks[0])[:, o])) == set(
                gone
            )


@pytest.mark.usefixtures("x64")
class TestColumns:
    @pytest.mark.parametrize(("inputs", "block"), [(1, 1), (11, 4), (8, 100)])
    @hypothesis.given(seed=st.integers(0, 10**6))
    @hypothesis.settings(max_examples=10)
    def test_weights_are_those_of_an_explicit_loop(self, inputs, block, seed):
        moment, hessian, weights = single(inputs, 4, seed)
        problem = problem_of(moment, weights)
        method = layerwise_obs(order="columns", block=block, refit=False)
        budget = plan({"kernel": weights}, 0.4).budget
        solution = solve(method, problem, budget)
        mask = np.asarray(solution.masks[0])
        assert mask.sum() == int(budget.keep[0])
        expected = sparse_gpt(hessian, weights, mask)
        np.testing.assert_allclose(solution.weights[0], expected, rtol=1e-7, atol=1e-9)

    def test_each_block_keeps_its_best(self):
        """By ``w^2 / U_jj^2`` with the weights as they are when it is reached."""
        moment, hessian, weights = single(seed=2)
        problem = problem_of(moment, weights)
        budget = plan({"kernel": weights}, 0.6).budget
        solution = solve(METHODS["columns"], problem, budget)
        mask = np.asarray(solution.masks[0])
        saliency = weights**2 / np.diag(np.linalg.inv(hessian))[:, None]
        before = saliency >= np.sort(saliency.ravel())[-mask.sum()]
        w = weights.copy()
        for start in range(0, 8, 3):
            rows = slice(start, start + 3)
            diagonal = [np.linalg.inv(hessian[j:, j:])[0, 0] for j in range(8)][rows]
            scores = w[rows] ** 2 / np.array(diagonal)[:, None]
            count = before[rows].sum()
            expected = scores >= np.sort(scores.ravel())[-count]
            assert (mask[rows] == expected).all()
            # As the next block sees them.
            part = np.ones_like(mask)
            part[: start + 3] = mask[: start + 3]
            w = sparse_gpt(hessian, weights, part)

    @pytest.mark.parametrize("block", [1, 6])
    def test_a_pattern_chooses_among_its_own(self, block):
        moment, hessian, weights = single(seed=4)
        problem = problem_of(moment, weights)
        target = plan({"kernel": weights}, pattern=NM(1, 4))
        method = layerwise_obs(order="columns", block=block, refit=False)
        solution = solve(method, problem, target.budget)
        mask = np.ones(weights.shape, bool)
        for start in (0, 4):
            w = sparse_gpt(hessian, weights, mask)
            rows = slice(start, start + 4)
            diagonal = [np.linalg.inv(hessian[j:, j:])[0, 0] for j in range(8)][rows]
            scores = w[rows] ** 2 / np.array(diagonal)[:, None]
            mask[rows] = scores == scores.max(axis=0)
        assert (np.asarray(solution.masks[0]) == mask).all()
        expected = sparse_gpt(hessian, weights, mask)
        np.testing.assert_allclose(solution.weights[0], expected, rtol=1e-8, atol=1e-10)


@pytest.mark.usefixtures("x64")
class TestQuadratic:
    @pytest.mark.parametrize("name", ["greedy", "columns and re-fit", "fisher"])
    def test_weights_are_least_squares_on_their_support(self, name):
        problem, target = setting(sparsity=0.6, **ONE)
        solution = solve(METHODS[name], problem, target.budget)
        for w, mask, wbar, layer in zip(
            solution.weights, solution.masks, problem.weights, problem.layers,
            strict=True,
        ):  # fmt: skip
            moment = np.asarray(layer.moment)[0]
            size = len(moment)
            hessian = moment + 0.01 * np.trace(moment) / size * np.eye(size)
            for o in range(w.shape[1]):
                kept = np.flatnonzero(mask[:, o])
                expected = fitted(hessian, np.asarray(wbar)[:, o], kept)
                np.testing.assert_allclose(w[:, o], expected, rtol=1e-8, atol=1e-12)

    @pytest.mark.parametrize("name", ["greedy", "columns", "columns and re-fit"])
    def test_the_objective_is_what_outputs_move_by(self, name):
        problem, target = setting(**ONE)
        solution = solve(METHODS[name], problem, target.budget)
        expected = [0.0, 0.0]
        for w, mask, wbar, layer in zip(
            solution.weights, solution.masks, problem.weights, problem.layers,
            strict=True,
        ):  # fmt: skip
            moment = np.asarray(layer.moment)[0]
            hessian = moment + 0.01 * np.trace(moment) / len(moment) * np.eye(
                len(moment)
            )
            for i, v in enumerate((wbar * mask, w)):
                expected[i] += np.trace((v - wbar).T @ hessian @ (v - wbar))
        np.testing.assert_allclose(solution.objective, expected, rtol=1e-9)
        assert solution.objective[1] < solution.objective[0]

    @pytest.mark.parametrize(
        ("order", "dtype"), [("greedy", "float32"), ("columns", "float64")]
    )
    def test_a_singular_moment_is_damped_and_reported(self, order, dtype):
        moment, _, weights = single()
        moment[:, 3], moment[3] = moment[:, 2], moment[2]  # two inputs that are one
        moment[3, 3] = moment[2, 2]
        problem = problem_of(moment.astype(dtype), weights.astype(dtype))
        budget = plan({"kernel": weights}, 0.5).budget
        solution = solve(layerwise_obs(order=order, damping=0.0), problem, budget)
        if int(solution.status) == Status.DAMPED:
            assert 0 < float(solution.details["damping"]) < 1e-3
        else:
            # Rounding may leave it just positive; then nothing was done.
            assert float(solution.details["damping"]) == 0
        assert np.isfinite(flat(solution.weights)).all()
        well = solve(layerwise_obs(order=order, damping=1e-3), problem, budget)
        assert int(well.status) == Status.CONVERGED
        np.testing.assert_allclose(well.details["damping"], 1e-3)

    def test_an_indefinite_moment_is_damped_and_reported(self):
        moment = np.diag([3.0, 1.0, -0.05, 2.0, 1.0, 1.0, 1.0, 1.0])
        problem = problem_of(moment, np.ones((8, 3)))
        budget = plan({"kernel": np.ones((8, 3))}, 0.5).budget
        solution = solve(METHODS["greedy"], problem, budget)
        assert Status(int(solution.status)) is Status.DAMPED
        np.testing.assert_allclose(solution.details["damping"], 0.1)

    def test_what_no_damping_mends_is_reported(self):
        moment, _, weights = single()
        problem = problem_of(moment * np.nan, weights)
        budget = plan({"kernel": weights}, 0.5).budget
        for name in ("greedy", "columns"):
            solution = solve(METHODS[name], problem, budget)
            assert Status(int(solution.status)) is Status.NOT_FINITE
            mask = np.asarray(solution.masks[0])
            assert mask.sum() == 12
            assert (np.asarray(solution.weights[0]) == weights * mask).all()

    @pytest.mark.parametrize("name", ["greedy", "columns"])
    def test_inputs_that_read_nothing_go_first(self, name):
        moment, _, weights = single()
        moment[[1, 4]] = 0
        moment[:, [1, 4]] = 0
        weights[[1, 4]] = 100.0
        problem = problem_of(moment, weights)
        budget = plan({"kernel": weights}, 0.4).budget
        solution = solve(METHODS[name], problem, budget)
        assert int(solution.status) == Status.CONVERGED
        assert not np.any(np.asarray(solution.masks[0])[[1, 4]])

    def test_a_layer_that_reads_nothing_at_all(self):
        problem = problem_of(np.zeros((8, 8)), np.ones((8, 3)))
        budget = plan({"kernel": np.ones((8, 3))}, 0.5).budget
        for name in ("greedy", "columns", "wanda by output"):
            solution = solve(METHODS[name], problem, budget)
            assert np.asarray(solution.masks[0]).sum() == 12
            assert int(solution.status) == Status.CONVERGED


@pytest.mark.usefixtures("x64")
class TestStages:
    @pytest.mark.parametrize(
        ("order", "reference"), [("greedy", "current"), ("columns", "initial")]
    )
    def test_stages_climb_to_the_sparsity(self, order, reference):
        params, data = draw()
        method = layerwise_obs(order=order, reference=reference)
        pruned = swapjax.prune(
            loss_fn, params, data, sparsity=0.6, method=method, stages=3, samples=40,
            key=jax.random.key(0),
        )  # fmt: skip
        assert swapjax.density(pruned.masks) == pytest.approx(0.4)
        fine = Status.CONVERGED, Status.NOT_REFITTED  # the loss has the last word
        assert all(s.status in fine for s in pruned.history)
        assert all(s.objective[1] <= s.objective[0] for s in pruned.history)

    def test_patterns_go_by_stages(self):
        params, data = draw()
        rule = plan(params, pattern=NM(2, 4), exclude="fc1/kernel")
        pruned = swapjax.prune(
            loss_fn, params, data, plan=rule, method=layerwise_obs(), stages=2,
            samples=40, key=jax.random.key(0),
        )  # fmt: skip
        groups = np.asarray(pruned.masks["fc2"]["kernel"]).reshape(2, 4, 4).sum(1)
        assert (groups == 2).all()

    def test_moments_are_those_of_the_current_weights(self):
        """The second stage reads what the pruned first layer makes."""
        params, data = draw()
        seen = []
        method = wanda()

        def spy(problem, budget):
            seen.append(problem.layers[1].moment.shape)
            return method.solve(problem, budget)

        spied = dataclasses.replace(method, name="spy", solve=spy)
        swapjax.prune(
            loss_fn, params, data, sparsity=0.6, method=spied, stages=2, samples=40,
            key=jax.random.key(0),
        )  # fmt: skip
        assert seen == [(1, 8, 8)]  # compiled once


@pytest.mark.usefixtures("x64")
def test_auto_mixes_orders(monkeypatch):
    """Leaves of one budget that differ in order still keep exactly their count."""
    from swapjax.pruning.solvers import layerwise

    problem, target = setting(sparsity=0.6)
    monkeypatch.setattr(layerwise, "GREEDY_WORK", 6**3 * 8)
    inside = tuple(jnp.arange(w.size).reshape(w.shape) % 4 > 0 for w in problem.weights)
    problem = dataclasses.replace(problem, within=inside)
    # A block of its own, or what was compiled for others would serve.
    solution = solve(layerwise_obs(block=5), problem, target.budget)
    assert int(solution.details["greedy_layers"]) == 1
    assert flat(solution.masks).sum() == target.kept
    for mask, allowed in zip(solution.masks, inside, strict=True):
        assert not np.any(mask & ~allowed)


@pytest.mark.usefixtures("x64")
def test_fisher_weighs_outputs_by_their_gradient():
    """With one layer and independent factors the weights are those of K-FAC."""
    problem, target = setting()
    rows, layers = problem.rows, problem.layers
    squares = rows.mean_squares()
    for square, layer in zip(squares, layers, strict=True):
        read = np.trace(np.asarray(layer.moment)[0])
        assert (np.asarray(square).sum(axis=0) / read > 0).all()
    equal = solve(METHODS["greedy"], problem, target.budget)
    fisher = solve(METHODS["fisher"], problem, target.budget)
    assert not all(
        (a == b).all() for a, b in zip(equal.masks, fisher.masks, strict=True)
    )


@pytest.mark.usefixtures("x64")
def test_relative_errors_do_not_depend_on_the_scale_of_an_output():
    """Batch norm divides by it; an output that is always zero keeps nothing."""
    moment, _, weights = single(8, 4)
    scaled = jnp.asarray(weights) * jnp.asarray([1.0, 64.0, 2.0**-6, 0.0])
    plain = jnp.asarray(weights) * jnp.asarray([1.0, 1.0, 1.0, 0.0])
    budget = plan({"kernel": weights}, 0.6).budget
    masks = {
        (weigh, name): solve(
            layerwise_obs(weigh=weigh, order="greedy"), problem_of(moment, w), budget
        ).masks[0]
        for weigh in ("equal", "output")
        for name, w in (("plain", plain), ("scaled", scaled))
    }
    np.testing.assert_array_equal(masks["output", "plain"], masks["output", "scaled"])
    assert not masks["output", "scaled"][:, 3].any()
    assert np.any(masks["equal", "plain"] != masks["equal", "scaled"])


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("method", [layerwise_obs, swapjax.alps])
def test_relative_errors_do_not_depend_on_the_scale_of_a_layer(method):
    """Batch norm divides by it; outputs of one layer compete as they are."""
    problem, target = setting(sparsity=0.6)
    first, second = problem.weights
    scaled = (first * 2.0**6, second * 2.0**-6)
    scaled = dataclasses.replace(problem, weights=scaled, initial=scaled)
    masks = {
        (weigh, name): solve(method(weigh=weigh), of, target.budget).masks
        for weigh in ("equal", "layer")
        for name, of in (("plain", problem), ("scaled", scaled))
    }
    for a, b in zip(masks["layer", "plain"], masks["layer", "scaled"], strict=True):
        np.testing.assert_array_equal(a, b)
    default = solve(method(), problem, target.budget).masks
    np.testing.assert_array_equal(default[0], masks["layer", "plain"][0])
    assert np.any(masks["equal", "plain"][0] != masks["equal", "scaled"][0])
    alone = [solve(method(weigh=w), *one_layer()).masks[0] for w in ("equal", "layer")]
    np.testing.assert_array_equal(*alone)


def one_layer():
    moment, _, weights = single(8, 4)
    return problem_of(moment, weights), plan({"kernel": weights}, 0.6).budget


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"order": "random"}, "order"),
        ({"damping": -1.0}, "damping"),
        ({"damping": float("nan")}, "damping"),
        ({"damping": [0.1, 0.2]}, "damping must be one number here"),
        ({"block": 0}, "block"),
        ({"weigh": "energy"}, "weigh"),
        ({"reference": "last"}, "reference"),
    ],
)
def test_arguments_out_of_range_are_named(options, word):
    with pytest.raises(ValueError, match=word):
        layerwise_obs(**options)


def test_fisher_needs_rows():
    problem, target = setting(jnp.float32)
    with pytest.raises(ValueError, match="needs gradient rows"):
        METHODS["fisher"](dataclasses.replace(problem, rows=None), target.budget)
