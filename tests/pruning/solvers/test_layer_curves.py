"""Scores by how fast the error of a layer rises, against sweeps one after the other."""

import jax.numpy as jnp
import layer_problems
import numpy as np
import pytest
from layer_problems import problem_of, single

from swapjax import layerwise_obs, plan
from swapjax.activations.layer import Layer
from swapjax.pruning import Problem
from swapjax.pruning.solvers import layer_curves
from swapjax.pruning.solvers.layer_parts import make_parts

DAMPING = 0.01


def part_of(problem, *, along=True, weigh="equal"):
    budget = plan({"kernel": problem.weights[0]}, 0.5).budget
    (part,) = make_parts(problem, problem.weights, budget, DAMPING, weigh)
    return part._replace(along=jnp.asarray(along))


def expected(hessian, weights, factor, compete):
    """The same by explicit sweeps that keep to their supports."""
    alone = np.square(weights) / np.diag(np.linalg.inv(hessian))[:, None]
    places = np.flatnonzero(compete)
    places = places[np.argsort((factor * alone).ravel()[places], kind="stable")]
    place = np.full(weights.size, -1.0)
    place[places] = (np.arange(len(places)) + 0.5) / len(places)
    errors, removed = [], []
    for share in layer_curves._SHARES:
        mask = compete & (place.reshape(weights.shape) > share)
        change = layer_problems.sparse_gpt(hessian, weights, mask) - weights
        errors.append(np.sum(factor * change * (hessian @ change)))
        removed.append(len(places) - mask.sum())
    removed = np.array(removed)
    rises, last = [], 0.0
    for error, count in zip(np.diff(errors), np.diff(removed), strict=True):
        last = max(error / count if count else 0.0, last * 1.001)
        rises.append(last)
    known = [0, *(removed[1:] + removed[:-1]) / 2 / len(places), 1]
    found = np.interp(place, known, [0, *rises, 2 * rises[-1]])
    return np.where(compete.ravel(), found, -1).reshape(weights.shape)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(("inputs", "outputs"), [(8, 3), (5, 7), (1, 4), (8, 1)])
@pytest.mark.parametrize("weigh", ["equal", "output"])
def test_scores_are_the_rises_of_sweeps(inputs, outputs, weigh):
    moment, hessian, weights = single(inputs, outputs, damping=DAMPING)
    weights[0, 0] = 0  # does not compete
    factor = np.ones((1, outputs))
    if weigh == "output":
        energy = np.sum(weights * (moment @ weights), axis=0, keepdims=True)
        factor = np.where(energy > 0, 1 / np.where(energy > 0, energy, 1), 0)
    problem = problem_of(moment, weights)
    part = part_of(problem, along=False)._replace(factor=jnp.asarray(factor)[None])
    found = layer_curves.scores(part, block=3)
    wanted = expected(hessian, weights, factor, weights != 0)
    np.testing.assert_allclose(found[0], wanted, rtol=1e-6, atol=1e-12)


@pytest.mark.usefixtures("x64")
def test_the_order_within_a_layer_is_that_of_what_weights_are_worth_alone():
    moment, _, weights = single(16, 8)
    part = part_of(problem_of(moment, weights))
    found = np.asarray(layer_curves.scores(part, block=4)).ravel()
    order = np.argsort(np.asarray(part.saliency()).ravel())
    assert (np.diff(found[order]) > 0).all()


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (5, 6), (40, 50)])
def test_where_inputs_are_apart_scores_are_about_squares(shape):
    """However few there are, they compete with those of larger layers."""
    weights = np.random.default_rng(0).normal(size=shape)
    part = part_of(problem_of(np.eye(shape[0]), weights))
    found = np.asarray(layer_curves.scores(part, block=4))[0]
    squares = (1 + DAMPING) * np.square(weights)
    # A knot stands for all that leave between two trials.
    assert np.sum(found) == pytest.approx(np.sum(squares), rel=0.35)
    some = np.median(squares)
    kept = squares > some
    assert (found[kept] / squares[kept] < 2.1).all()
    assert (found[kept] / squares[kept] > 0.3).all()


@pytest.mark.usefixtures("x64")
def test_layers_of_a_stack_have_curves_of_their_own():
    problems = [single(6, 4, seed, DAMPING) for seed in (0, 1)]
    moments, _, weights = (np.stack(x) for x in zip(*problems, strict=True))
    index = jnp.arange(weights.size, dtype=jnp.int32).reshape(weights.shape)
    layer = Layer(jnp.asarray(moments), index, layers=2)
    leaf = jnp.asarray(weights)
    for weigh in ("equal", "layer"):
        both = Problem((leaf,), (leaf,), layers=(layer,))
        found = layer_curves.scores(part_of(both, weigh=weigh), block=3)
        for i in range(2):
            alone = part_of(problem_of(moments[i], weights[i]), weigh=weigh)
            wanted = layer_curves.scores(alone, block=3)[0]
            np.testing.assert_allclose(found[i], wanted, rtol=1e-9)


def test_weights_that_do_not_compete_go_first():
    moment, _, weights = single(6, 4)
    problem = problem_of(moment, np.zeros_like(weights))
    assert (layer_curves.scores(part_of(problem), block=4) == -1).all()


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("order", ["columns", "greedy"])
def test_a_layer_whose_inputs_say_the_same_is_not_emptied(order):
    """Each of its weights is worth nothing alone, since seven others replace it."""
    rng = np.random.default_rng(0)
    apart = np.eye(16)
    copies = rng.normal(size=(200, 2)) @ np.repeat(np.eye(2), 8, axis=1)
    copies += 1e-3 * rng.normal(size=copies.shape)
    weights = [rng.normal(size=(16, 8)) for _ in range(2)]
    # As much goes through either layer.
    weights[1] /= np.sqrt(np.sum(weights[1] * (copies.T @ copies @ weights[1])) / 25600)
    index = jnp.arange(128, dtype=jnp.int32).reshape(1, 16, 8)
    layers = tuple(
        Layer(jnp.asarray(moment)[None], index)
        for moment in (apart, copies.T @ copies / 200)
    )
    leaves = tuple(jnp.asarray(w) for w in weights)
    target = plan([{"kernel": leaf} for leaf in leaves], 0.8)
    method = layerwise_obs(order=order, block=4, damping=1e-5)
    solution = method(Problem(leaves, leaves, layers=layers), target.budget)
    left = [
        np.trace(w.T @ h @ w) / np.trace(v.T @ h @ v)
        for w, v, h in zip(
            solution.weights, leaves, (apart, copies.T @ copies), strict=True
        )
    ]
    assert left[1] > 0.8
