"""ALPS against a loop in NumPy, all masks, and what it is to be better than."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
from layer_problems import fitted, problem_of, rise, single
from problems import solve
from trees import flat

from swapjax import Status, alps, plan
from swapjax.activations.layer import Layer
from swapjax.pruning import Problem
from swapjax.pruning.solvers import alps_support
from swapjax.pruning.solvers.layer_parts import make_parts
from swapjax.sparsity.patterns import NM


def largest(scores, count):
    """The support of the largest, ties to the lower index."""
    mask = np.zeros(scores.size, bool)
    mask[np.argsort(-scores.ravel(), kind="stable")[:count]] = True
    return mask.reshape(scores.shape)


def admm(hessians, weights, project, penalty=0.1, steps=300):
    """The iterations of ALPS, with an inverse at every one and the dual itself."""
    scale = [np.sqrt(np.diag(h))[:, None] for h in hessians]
    hessians = [h / s / s.T for h, s in zip(hessians, scale, strict=True)]
    wbar = np.stack([s * w for s, w in zip(scale, weights, strict=True)])
    rho, sparse, dual = penalty, wbar, np.zeros_like(wbar)
    before, i = np.zeros(wbar.shape, bool), 0
    while i < steps:
        count = min(3, steps - i)
        for _ in range(count):
            wanted = np.stack(
                [
                    np.linalg.solve(h + rho * np.eye(len(h)), h @ w - v + rho * d)
                    for h, w, v, d in zip(hessians, wbar, dual, sparse, strict=True)
                ]
            )
            mask = project((wanted + dual / rho) ** 2)
            sparse = np.where(mask, wanted + dual / rho, 0)
            dual = dual + rho * (wanted - sparse)
        i, moved, before = i + count, (mask & ~before).sum(), mask
        share = moved / mask.sum()
        rho *= 1.3 if share >= 0.1 else 1.2 if share >= 0.005 else 1.1
        if not moved:
            break
    return mask, sparse / np.stack(scale), rho, i


def two_of_four(scores):
    groups = scores.reshape(-1, 4, scores.shape[-1])
    place = (-groups).argsort(axis=1, kind="stable").argsort(axis=1)
    return (place < 2).reshape(scores.shape)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("pattern", "steps"), [(None, 300), (NM(2, 4), 4)])
def test_iterations_are_those_of_an_explicit_loop(pattern, steps):
    """Of a stack of two layers, which share one budget where there is no pattern."""
    moments, hessians, weights = zip(*(single(12, 5, s) for s in (1, 2)), strict=True)
    leaf = jnp.asarray(np.stack(weights))
    index = jnp.arange(leaf.size, dtype=jnp.int32).reshape(leaf.shape)
    layer = Layer(jnp.asarray(np.stack(moments)), index, layers=2)
    problem = Problem((leaf,), (leaf,), layers=(layer,))
    sparsity = 0.6 if pattern is None else None
    budget = plan({"kernel": leaf}, sparsity, pattern=pattern, min_keep=0).budget
    parts = make_parts(problem, problem.weights, budget, 0.01, "equal")
    found = alps_support.search(
        parts, [leaf.shape], budget, None, penalty=0.1, steps=steps
    )
    free = functools.partial(largest, count=int(budget.keep[0]))
    mask, sparse, rho, iterations = admm(
        hessians, weights, free if pattern is None else two_of_four, steps=steps
    )
    assert (found.masks[0] == mask).all()
    assert mask[0].sum() != mask[1].sum() or pattern is not None
    np.testing.assert_allclose(found.weights[0], sparse, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(found.penalty, rho, rtol=1e-6)
    assert found.iterations == iterations


def saliency_error(hessian, weights, count):
    """The support that single saliencies choose, and the least error on it."""
    first = largest(weights**2 / np.diag(np.linalg.inv(hessian))[:, None], count)
    columns = zip(weights.T, first.T, strict=True)
    errors = (
        rise(hessian, fitted(hessian, w, np.flatnonzero(m)), w) for w, m in columns
    )
    return first, sum(errors)


def test_its_error_is_far_below_that_of_saliency():
    moment, hessian, weights = single(96, 48, seed=4)
    problem = problem_of(np.float32(moment), np.float32(weights))
    solution = solve(alps(), problem, plan({"kernel": weights}, 0.7).budget)
    assert Status(int(solution.status)) is Status.CONVERGED
    _, error = saliency_error(hessian, weights, int(solution.masks[0].sum()))
    assert solution.objective[1] < 0.8 * error
    assert int(solution.details["support_swaps"]) > 0
    assert float(solution.details["penalty"]) > 0.1
    assert 3 <= int(solution.iterations) < 300


FIRM = alps(penalty=1e6, steps=3)
"""So firm that nothing moves: sizes choose the support."""


@pytest.mark.usefixtures("x64")
def test_the_first_support_is_taken_where_it_is_better():
    kept = []
    for seed in range(8):
        moment, hessian, weights = single(8, 3, seed)
        budget = plan({"kernel": weights}, 0.5).budget
        solution = solve(FIRM, problem_of(moment, weights), budget)
        first, error = saliency_error(hessian, weights, 12)
        assert solution.objective[1] <= error * (1 + 1e-6)
        kept.append(int(solution.details["support_swaps"]) == 0)
        assert kept[-1] == (np.asarray(solution.masks[0]) == first).all()
    assert any(kept)
    assert not all(kept)


@pytest.mark.usefixtures("x64")
def test_what_no_damping_mends_is_reported():
    moment, _, weights = single()
    problem = problem_of(moment * np.nan, weights)
    solution = solve(FIRM, problem, plan({"kernel": weights}, 0.5).budget)
    assert Status(int(solution.status)) is Status.NOT_FINITE
    mask = np.asarray(solution.masks[0])
    assert mask.sum() == 12
    assert (np.asarray(solution.weights[0]) == weights * mask).all()


@pytest.mark.usefixtures("x64")
def test_an_output_that_counts_nothing_keeps_nothing():
    moment, _, weights = single(8, 4)
    weights = jnp.asarray(weights).at[:, 3].set(0)
    budget = plan({"kernel": weights}, 0.6).budget
    solution = solve(alps(weigh="output"), problem_of(moment, weights), budget)
    assert not np.asarray(solution.masks[0])[:, 3].any()
    assert np.isfinite(flat(solution.weights)).all()


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
