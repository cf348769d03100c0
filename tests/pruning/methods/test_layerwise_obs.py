"""Layer-wise methods against explicit loops, dense solutions and exhaustive search."""

import dataclasses
import functools
import itertools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import swapjax
from swapjax import Status, layerwise_obs, plan, wanda
from swapjax.activations.layer import Layer
from swapjax.activations.trace import second_moments
from swapjax.gradients.build import per_example_gradients
from swapjax.pruning import Problem
from swapjax.pruning.solvers import layer_quadratic, obc_order, sparsegpt_order
from swapjax.sparsity.patterns import NM

# Compilation is most of the time these tests take, and their arrays are tiny.
QUICK = {"xla_backend_optimization_level": 0}
solve = jax.jit(
    lambda method, *args: method(*args), static_argnums=0, compiler_options=QUICK
)

path = jax.jit(obc_order.order, compiler_options=QUICK)
ONE = {"exclude": "b/kernel"}

METHODS = {
    "greedy": layerwise_obs(order="greedy"),
    "columns": layerwise_obs(order="columns", block=3, refit=False),
    "columns and re-fit": layerwise_obs(order="columns", block=3, refit=True),
    "fisher": layerwise_obs(weigh="fisher"),
    "wanda": wanda(),
    "wanda by output": wanda(per_output=True),
}


def loss_fn(params, batch):
    x, y = batch
    hidden = jnp.tanh(x @ params["a"]["kernel"] + params["a"]["bias"])
    return jnp.mean(jnp.square(hidden @ params["b"]["kernel"] - y))


def network(dtype=jnp.float64, inputs=6, hidden=8, n=40):
    keys = jax.random.split(jax.random.key(0), 5)
    params = {
        "a": {
            "kernel": jax.random.normal(keys[0], (inputs, hidden), dtype),
            "bias": jax.random.normal(keys[1], (hidden,), dtype),
        },
        "b": {"kernel": jax.random.normal(keys[2], (hidden, 4), dtype)},
    }
    mix = jax.random.normal(keys[3], (inputs, inputs), dtype)
    x = jax.random.normal(keys[4], (n, inputs), dtype) @ mix
    return params, (x, jnp.ones((n, 4), dtype))


def setting(dtype=jnp.float64, sparsity=0.5, within=None, **rules):
    params, data = network(dtype)
    target = plan(params, sparsity, **rules)
    rows = per_example_gradients(loss_fn, params, data, target)
    weights = target.layout.split(params)
    layers = second_moments(loss_fn, params, data, target.layout.paths)
    return Problem(weights, weights, rows, within, layers), target


def single(inputs=8, outputs=3, seed=0, damping=0.01):
    """One layer as NumPy arrays: its damped Hessian, and its weights."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(4 * inputs, inputs)) @ rng.normal(size=(inputs, inputs))
    moment = x.T @ x / len(x)
    weights = rng.normal(size=(inputs, outputs))
    hessian = moment + damping * np.trace(moment) / inputs * np.eye(inputs)
    return moment, hessian, weights


def problem_of(moment, weights):
    """A problem of one dense layer."""
    weights = jnp.asarray(weights)
    index = jnp.arange(weights.size, dtype=jnp.int32).reshape(1, *weights.shape)
    layer = Layer(jnp.asarray(moment)[None], index)
    return Problem((weights,), (weights,), layers=(layer,))


def dense(hessian, wbar, kept):
    """The least-squares weights of one output on a support."""
    w = np.zeros_like(wbar)
    inside = hessian[np.ix_(kept, kept)]
    w[kept] = np.linalg.solve(inside, hessian[kept] @ wbar)
    return w


def rise(hessian, w, wbar):
    return (w - wbar) @ hessian @ (w - wbar)


def flat(leaves):
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in leaves])


def obc(hessian, wbar, count=None):
    """Optimal Brain Compression of one output, with a fresh inverse at every step."""
    left, order, rises = list(range(len(wbar))), [], []
    for _ in range(len(wbar) if count is None else count):
        w = dense(hessian, wbar, np.array(left))
        inverse = np.linalg.inv(hessian[np.ix_(left, left)])
        costs = w[left] ** 2 / np.diag(inverse)
        best = int(np.argmin(costs))
        rises.append(costs[best])
        order.append(left.pop(best))
    return order, rises


def sparse_gpt(hessian, weights, mask):
    """SparseGPT with a given mask, with a fresh inverse at every column."""
    w = weights.copy()
    for j in range(len(w)):
        inverse = np.linalg.inv(hessian[j:, j:])
        lost = np.where(mask[j], 0, w[j])
        w[j:] -= np.outer(inverse[0], lost / inverse[0, 0])
        w[j] = np.where(mask[j], w[j], 0)
    return w


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, "float32") for name in METHODS]
    + [(name, "bfloat16") for name in ("greedy", "columns")],
)
def test_keeps_the_contract(name, dtype):
    problem, target = setting(jnp.dtype(dtype))
    solution = solve(METHODS[name], problem, target.budget)
    kept = flat(solution.masks).astype(bool)
    assert kept.sum() == target.kept
    assert not flat(solution.weights)[~kept].any()
    assert np.isfinite(flat(solution.weights)).all()
    assert {w.dtype.name for w in solution.weights} == {dtype}
    assert {m.dtype.name for m in solution.masks} == {"bool"}
    assert Status(int(solution.status)) is Status.CONVERGED
    assert all(np.ndim(value) == 0 for value in solution.details.values())


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["greedy", "columns", "wanda by output"])
def test_jit_changes_nothing(name):
    moment, _, weights = single(seed=3)
    problem = problem_of(moment, weights)
    budget = plan({"kernel": weights}, 0.5).budget
    jitted = solve(METHODS[name], problem, budget)
    eager = METHODS[name](problem, budget)
    for a, b in zip(jitted.masks, eager.masks, strict=True):
        assert (a == b).all()
    np.testing.assert_allclose(flat(jitted.weights), flat(eager.weights), rtol=1e-9)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["greedy", "columns", "wanda"])
def test_within_limits_the_support(name):
    problem, target = setting(**ONE)
    allowed = tuple(
        jnp.arange(w.size).reshape(w.shape) % 3 < 2 for w in problem.weights
    )
    problem = dataclasses.replace(problem, within=allowed)
    solution = solve(METHODS[name], problem, target.budget)
    assert flat(solution.masks).sum() == target.kept
    for mask, inside in zip(solution.masks, allowed, strict=True):
        assert not np.any(mask & ~inside)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["greedy", "columns", "wanda"])
def test_zeros_stay_zero(name):
    problem, target = setting(sparsity=0.6, **ONE)
    first = solve(METHODS[name], problem, target.at(0.4).budget)
    again = dataclasses.replace(problem, weights=first.weights)
    second = solve(METHODS[name], again, target.budget)
    assert flat(second.masks).sum() == target.kept
    for mask, before in zip(second.masks, first.masks, strict=True):
        assert not np.any(mask & ~before)


@pytest.mark.parametrize("name", ["greedy", "columns", "wanda"])
@pytest.mark.parametrize("axis", [-2, -1])
def test_patterns_are_kept_exactly(name, axis):
    pattern = NM(1, 2, axis=axis)
    problem, target = setting(jnp.float32, None, pattern=pattern, **ONE)
    solution = solve(METHODS[name], problem, target.budget)
    for mask, w in zip(solution.masks, solution.weights, strict=True):
        groups = target.patterns[0].split(mask)
        assert (groups.sum(-1) == 1).all()
        assert not np.any(np.asarray(w)[~np.asarray(mask)])


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", ["greedy", "columns"])
def test_patterns_within_masks(name):
    """A group with less room than the pattern leaves keeps less."""
    problem, target = setting(sparsity=None, pattern=NM(1, 2), **ONE)
    allowed = tuple(jnp.arange(w.shape[0])[:, None] % 4 > 1 for w in problem.weights)
    allowed = tuple(
        jnp.broadcast_to(a, w.shape)
        for a, w in zip(allowed, problem.weights, strict=True)
    )
    problem = dataclasses.replace(problem, within=allowed)
    solution = solve(METHODS[name], problem, target.budget)
    for mask, inside in zip(solution.masks, allowed, strict=True):
        pairs = np.asarray(inside).reshape(-1, 2, mask.shape[1]).any(1)
        kept = np.asarray(mask).reshape(-1, 2, mask.shape[1]).sum(1)
        assert (kept == pairs).all()
        assert not np.any(mask & ~inside)


@pytest.mark.usefixtures("x64")
class TestGreedy:
    @pytest.mark.parametrize("inputs", [1, 9])
    @hypothesis.given(seed=st.integers(0, 10**6))
    @hypothesis.settings(max_examples=15)
    def test_the_order_is_that_of_an_explicit_loop(self, inputs, seed):
        _, hessian, weights = single(inputs, 3, seed)
        alive = np.ones((1, *weights.shape), bool)
        scores = path(hessian[None], weights[None], alive, np.ones((1, 1, 3)))
        for o in range(3):
            order, rises = obc(hessian, weights[:, o])
            got = np.asarray(scores)[0, :, o]
            assert list(np.argsort(got)) == order
            expected = np.maximum.accumulate(rises)
            np.testing.assert_allclose(got[order], expected, rtol=1e-6)

    def test_one_removal_is_the_best_there_is(self):
        inputs = 6
        moment, hessian, weights = single(inputs, 2)
        problem = problem_of(moment, weights)
        budget = plan({"kernel": weights}, 1 / (2 * inputs)).budget
        solution = solve(METHODS["greedy"], problem, budget)
        best = min(
            rise(hessian, dense(hessian, wbar, np.delete(np.arange(inputs), q)), wbar)
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
            rise(hessian, dense(hessian, weights[:, 0], np.array(kept)), weights[:, 0])
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
                w = dense(hessian, weights[:, o], np.array(left))
                inverse = np.linalg.inv(hessian[np.ix_(left, left)])
                costs = w[left] ** 2 / np.diag(inverse)
                full = [sum(g // 4 == q // 4 for g in gone) == 2 for q in left]
                gone.append(left.pop(int(np.argmin(np.where(full, np.inf, costs)))))
            assert set(np.flatnonzero(~np.asarray(solution.masks[0])[:, o])) == set(
                gone
            )

    def test_what_is_not_alive_goes_first(self):
        _, hessian, weights = single(9, 3, 8)
        alive = np.arange(9) % 3 > 0
        living = np.broadcast_to(alive[None, :, None], (1, 9, 3))
        scores = path(hessian[None], weights[None], living, np.ones((1, 1, 3)))
        assert (np.asarray(scores)[0, ~alive, 0] == -1).all()
        left, wbar = list(np.flatnonzero(alive)), weights[:, 0]
        for q in np.argsort(np.asarray(scores)[0, :, 0])[3:]:
            w = dense(hessian, wbar, np.array(left))
            costs = w[left] ** 2 / np.diag(np.linalg.inv(hessian[np.ix_(left, left)]))
            assert q == left.pop(int(np.argmin(costs)))

    def test_a_factor_scales_the_rises(self):
        _, hessian, weights = single(9)
        h, w, alive = hessian[None], weights[None], np.ones((1, 9, 3), bool)
        plain = path(h, w, alive, np.ones((1, 1, 3)))
        scaled = path(h, w, alive, np.array([[[2.0, 3.0, 4.0]]]))
        np.testing.assert_allclose(
            scaled, plain * jnp.array([2.0, 3.0, 4.0]), rtol=1e-12
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

    def test_the_block_makes_no_difference_to_a_fixed_support(self):
        moment, _, weights = single(10, 4)
        root = layer_quadratic.damp(jnp.asarray(moment)[None], 0.01).root
        support = jnp.asarray(np.random.default_rng(0).random((1, 10, 4)) < 0.5)
        results = [
            sparsegpt_order.sweep(
                root, jnp.asarray(weights)[None], jnp.zeros((1, 10, 4), jnp.int32),
                support, block=block, adapt=False,
            )
            for block in (1, 3, 10)
        ]  # fmt: skip
        for w, kept in results:
            assert (kept == support).all()
            np.testing.assert_allclose(w, results[0][0], rtol=1e-9, atol=1e-12)


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
                expected = dense(hessian, np.asarray(wbar)[:, o], kept)
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

    def test_the_factor_of_the_inverse(self):
        moment, hessian, _ = single(7)
        system = layer_quadratic.damp(jnp.asarray(moment)[None], 0.01)
        np.testing.assert_allclose(system.hessian[0], hessian, rtol=1e-12)
        root = np.asarray(system.root[0])
        assert not np.tril(root, -1).any()
        for j in range(7):
            np.testing.assert_allclose(
                root[j:, j:].T @ root[j:, j:], np.linalg.inv(hessian[j:, j:]), rtol=1e-7
            )

    def test_removing_one_costs_its_saliency(self):
        moment, hessian, weights = single(5, 2)
        root = layer_quadratic.damp(jnp.asarray(moment)[None], 0.01).root
        saliency = layer_quadratic.saliency(root, jnp.asarray(weights)[None])[0]
        for q, o in itertools.product(range(5), range(2)):
            wbar = weights[:, o]
            w = dense(hessian, wbar, np.delete(np.arange(5), q))
            np.testing.assert_allclose(saliency[q, o], rise(hessian, w, wbar))

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
class TestWanda:
    def test_the_score_is_the_formula(self):
        problem, target = setting(sparsity=0.5, allocation="uniform")
        solution = solve(wanda(), problem, target.budget)
        params, (x, _) = network()
        hidden = jnp.tanh(x @ params["a"]["kernel"] + params["a"]["bias"])
        for mask, w, read, before in zip(
            solution.masks, solution.weights, (x, hidden), problem.weights, strict=True
        ):
            norms = np.sqrt(np.mean(np.square(read), axis=0))
            scores = np.abs(before) * norms[:, None]
            kept = np.asarray(mask)
            assert scores[kept].min() > scores[~kept].max()
            assert (np.asarray(w)[kept] == np.asarray(before)[kept]).all()

    def test_by_output_each_keeps_its_share(self):
        problem, target = setting(sparsity=0.5, allocation="uniform")
        solution = solve(wanda(per_output=True), problem, target.budget)
        for mask in solution.masks:
            assert (mask.sum(axis=0) == mask.shape[0] // 2).all()


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
    ("name", "rule"),
    [("greedy", (None, NM(2, 4))), ("columns", (0.6, None)), ("wanda", (0.6, None))],
)
def test_a_convolution_is_a_product_with_patches(name, rule):
    keys = jax.random.split(jax.random.key(3), 2)
    kernel = jax.random.normal(keys[0], (3, 3, 4, 5))
    images = jax.random.normal(keys[1], (12, 6, 6, 4))

    def convolve(params, x):
        return jnp.mean(
            jax.lax.conv_general_dilated(
                x, params["kernel"], (1, 1), "SAME",
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
        )  # fmt: skip

    def patches(x):
        x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        windows = [x[:, i : i + 6, j : j + 6] for i in range(3) for j in range(3)]
        return jnp.concatenate(windows, axis=-1)

    def product(params, x):
        return jnp.mean(x @ params["kernel"])

    sparsity, pattern = rule
    results = []
    for loss, w, x in (
        (convolve, kernel, images),
        (product, kernel.reshape(36, 5), patches(images)),
    ):
        pruned = swapjax.prune(
            loss, {"kernel": w}, x, method=METHODS[name], samples=12,
            plan=plan({"kernel": w}, sparsity, pattern=pattern), key=keys[0],
        )  # fmt: skip
        results.append(np.asarray(pruned.params["kernel"]).reshape(36, 5))
    np.testing.assert_allclose(*results, rtol=1e-7, atol=1e-10)


@pytest.mark.usefixtures("x64")
def test_layers_side_by_side_are_layers_of_their_own():
    x = jax.random.normal(jax.random.key(0), (30, 3, 4))
    kernel = jax.random.normal(jax.random.key(1), (3, 4, 2))
    method = layerwise_obs()

    def prune(loss_fn, params, x, rule):
        return swapjax.prune(
            loss_fn, params, x, method=method, samples=30, key=jax.random.key(2),
            plan=rule,
        ).params  # fmt: skip

    def batched(p, x):
        return jnp.sum(jnp.einsum("bgi,gio->bgo", x, p["kernel"]))

    def apart(p, x):
        return sum(jnp.sum(x[:, g] @ p[str(g)]["kernel"]) for g in range(3))

    params = {str(g): {"kernel": kernel[g]} for g in range(3)}
    # No leaf may keep less than none of its entries here: groups compete freely.
    rule = functools.partial(plan, sparsity=0.5, min_keep=0)
    one = prune(batched, {"kernel": kernel}, x, rule({"kernel": kernel}))
    several = prune(apart, params, x, rule(params))
    stacked = jnp.stack([several[str(g)]["kernel"] for g in range(3)])
    np.testing.assert_allclose(one["kernel"], stacked, rtol=1e-8, atol=1e-12)


@pytest.mark.usefixtures("x64")
class TestStages:
    @pytest.mark.parametrize(
        ("order", "reference"), [("greedy", "current"), ("columns", "initial")]
    )
    def test_stages_climb_to_the_sparsity(self, order, reference):
        params, data = network()
        method = layerwise_obs(order=order, reference=reference)
        pruned = swapjax.prune(
            loss_fn, params, data, sparsity=0.6, method=method, stages=3, samples=40,
            key=jax.random.key(0),
        )  # fmt: skip
        assert swapjax.density(pruned.masks) == pytest.approx(0.4)
        assert all(s.status is Status.CONVERGED for s in pruned.history)
        assert all(s.objective[1] <= s.objective[0] for s in pruned.history)

    def test_patterns_go_by_stages(self):
        params, data = network()
        rule = plan(params, pattern=NM(2, 4), exclude="a/kernel")
        pruned = swapjax.prune(
            loss_fn, params, data, plan=rule, method=layerwise_obs(), stages=2,
            samples=40, key=jax.random.key(0),
        )  # fmt: skip
        groups = np.asarray(pruned.masks["b"]["kernel"]).reshape(2, 4, 4).sum(1)
        assert (groups == 2).all()

    def test_moments_are_those_of_the_current_weights(self):
        """The second stage reads what the pruned first layer makes."""
        params, data = network()
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
    monkeypatch.setattr(layerwise, "_GREEDY_WORK", 6**3 * 8)
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


@pytest.mark.parametrize("method", [layerwise_obs(), wanda()])
def test_a_problem_without_layers_is_an_error(method):
    problem, target = setting(jnp.float32)
    with pytest.raises(ValueError, match="needs layers"):
        method(dataclasses.replace(problem, layers=None), target.budget)


def test_fisher_needs_rows():
    problem, target = setting(jnp.float32)
    with pytest.raises(ValueError, match="needs gradient rows"):
        METHODS["fisher"](dataclasses.replace(problem, rows=None), target.budget)


def test_methods_of_the_same_settings_are_equal():
    assert layerwise_obs() == layerwise_obs(order="auto")
    assert layerwise_obs() != layerwise_obs(block=64)
    assert str(wanda()) == "wanda(per_output=False)"
