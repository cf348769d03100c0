"""ALPS against a loop in NumPy, all masks, and what it is to be better than."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_problems import METHODS, draw, fitted, problem_of, rise, setting, single
from network import loss_fn
from problems import solve
from trees import flat

import swapjax
from swapjax import Status, alps, layerwise_obs, plan
from swapjax.pruning.solvers import alps_support
from swapjax.pruning.solvers.layer_parts import make_parts
from swapjax.sparsity.patterns import NM


def largest(scores, count):
    """The support of the largest, ties to the lower index."""
    mask = np.zeros(scores.size, bool)
    mask[np.argsort(-scores.ravel(), kind="stable")[:count]] = True
    return mask.reshape(scores.shape)


def admm(hessian, weights, project, penalty=0.1, steps=300):
    """The iterations of ALPS, with an inverse at every one and the dual itself."""
    scale = np.sqrt(np.diag(hessian))[:, None]
    hessian, wbar = hessian / scale / scale.T, scale * weights
    rho, sparse, dual = penalty, wbar, np.zeros_like(wbar)
    before, i = np.zeros(wbar.shape, bool), 0
    while i < steps:
        for _ in range(3):
            system = hessian + rho * np.eye(len(hessian))
            w = np.linalg.solve(system, hessian @ wbar - dual + rho * sparse)
            mask = project((w + dual / rho) ** 2)
            sparse = np.where(mask, w + dual / rho, 0)
            dual = dual + rho * (w - sparse)
        i, moved, before = i + 3, (mask & ~before).sum(), mask
        share = moved / mask.sum()
        rho *= 1.3 if share >= 0.1 else 1.2 if share >= 0.005 else 1.1
        if not moved:
            break
    return mask, sparse / scale, rho, i


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("pattern", [None, NM(2, 4)])
def test_iterations_are_those_of_an_explicit_loop(pattern):
    moment, hessian, weights = single(12, 5, seed=1)
    problem = problem_of(moment, weights)
    sparsity = 0.6 if pattern is None else None
    budget = plan({"kernel": weights}, sparsity, pattern=pattern).budget

    def project(scores):
        if pattern is None:
            return largest(scores, int(budget.keep[0]))
        groups = scores.reshape(3, 4, 5)
        place = (-groups).argsort(axis=1, kind="stable").argsort(axis=1)
        return (place < 2).reshape(12, 5)

    parts = make_parts(problem, problem.weights, budget, 0.01, "equal")
    found = alps_support.search(
        parts, [weights.shape], budget, None, penalty=0.1, steps=300
    )
    mask, sparse, rho, iterations = admm(hessian, weights, project)
    assert (found.masks[0] == mask).all()
    np.testing.assert_allclose(found.weights[0][0], sparse, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(found.penalty, rho, rtol=1e-6)
    assert found.iterations == iterations


@pytest.mark.usefixtures("x64")
def test_few_supports_of_the_same_size_are_better():
    moment, hessian, weights = single(8, 1, 3)
    budget = plan({"kernel": weights}, 0.5).budget
    solution = solve(METHODS["alps"], problem_of(moment, weights), budget)
    every = [
        rise(hessian, fitted(hessian, weights[:, 0], np.array(kept)), weights[:, 0])
        for kept in itertools.combinations(range(8), 4)
    ]
    error = float(solution.objective[-1])
    np.testing.assert_allclose(min(abs(np.array(every) - error)), 0, atol=1e-6)
    assert np.sum(np.array(every) < error * (1 - 1e-6)) <= 3


def error_of(method, sizes=(96, 48), sparsity=0.7):
    """Of a layer whose inputs depend on each other, and whether it converged."""
    moment, _, weights = (np.float32(x) for x in single(*sizes, seed=4))
    budget = plan({"kernel": weights}, sparsity).budget
    solution = solve(method, problem_of(moment, weights), budget)
    assert Status(int(solution.status)) is Status.CONVERGED
    return float(solution.objective[-1]), solution


def test_its_error_is_far_below_that_of_the_column_order():
    alone = layerwise_obs(order="columns", refit=False)
    (error, solution), (columns, _) = error_of(alps()), error_of(alone)
    assert error < 0.8 * columns
    assert int(solution.details["support_swaps"]) > 0
    assert float(solution.details["penalty"]) > 0.1
    assert 3 <= int(solution.iterations) < 300


@pytest.mark.usefixtures("x64")
def test_the_first_support_is_taken_where_it_is_better():
    """With a penalty so firm that nothing moves, sizes alone choose the other."""
    method, kept = alps(penalty=1e6, steps=3), []
    for seed in range(8):
        moment, hessian, weights = single(8, 3, seed)
        budget = plan({"kernel": weights}, 0.5).budget
        solution = solve(method, problem_of(moment, weights), budget)
        saliency = weights**2 / np.diag(np.linalg.inv(hessian))[:, None]
        first = largest(saliency, 12)
        error = sum(
            rise(hessian, fitted(hessian, w, np.flatnonzero(m)), w)
            for w, m in zip(weights.T, first.T, strict=True)
        )
        assert solution.objective[1] <= error * (1 + 1e-6)
        kept.append(int(solution.details["support_swaps"]) == 0)
        assert kept[-1] == (np.asarray(solution.masks[0]) == first).all()
    assert any(kept)
    assert not all(kept)


@pytest.mark.usefixtures("x64")
def test_layers_compete_for_one_budget():
    problem, target = setting(sparsity=0.6)
    together = solve(METHODS["alps"], problem, target.budget)
    assert flat(together.masks).sum() == target.kept
    apart, uniform = setting(sparsity=0.6, allocation="uniform")
    alone = solve(METHODS["alps"], apart, uniform.budget)
    counts = [int(m.sum()) for m in alone.masks]
    assert counts != [int(m.sum()) for m in together.masks]
    assert together.objective[1] < alone.objective[1]


@pytest.mark.usefixtures("x64")
def test_an_output_that_counts_nothing_keeps_nothing():
    moment, _, weights = single(8, 4)
    weights = jnp.asarray(weights).at[:, 3].set(0)
    budget = plan({"kernel": weights}, 0.6).budget
    solution = solve(alps(weigh="output"), problem_of(moment, weights), budget)
    assert not np.asarray(solution.masks[0])[:, 3].any()
    assert np.isfinite(flat(solution.weights)).all()


def test_what_no_damping_mends_is_reported():
    moment, _, weights = single()
    problem = problem_of(moment * np.nan, weights)
    budget = plan({"kernel": weights}, 0.5).budget
    solution = solve(alps(), problem, budget)
    assert Status(int(solution.status)) is Status.NOT_FINITE
    mask = np.asarray(solution.masks[0])
    assert mask.sum() == 12
    assert (np.asarray(solution.weights[0]) == np.float32(weights) * mask).all()


@pytest.mark.usefixtures("x64")
def test_stages_of_the_whole_network():
    params, data = draw()
    pruned = swapjax.prune(
        loss_fn, params, data, sparsity=0.6, method=alps(reference="initial"), stages=2,
        samples=40, key=jax.random.key(0),
    )  # fmt: skip
    assert swapjax.density(pruned.masks) == pytest.approx(0.4)
    assert all(s.objective[1] <= s.objective[0] for s in pruned.history)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"damping": -1.0}, "damping"),
        ({"damping": [0.1, 0.2]}, "damping must be one number here"),
        ({"penalty": 0.0}, "penalty must be a number above 0"),
        ({"penalty": float("nan")}, "penalty"),
        ({"steps": 0}, "steps"),
        ({"weigh": "energy"}, "weigh"),
        ({"reference": "last"}, "reference"),
    ],
)
def test_arguments_out_of_range_are_named(options, word):
    with pytest.raises(ValueError, match=word):
        alps(**options)
