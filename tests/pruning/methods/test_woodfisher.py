"""WoodFisher and WoodTaylor against dense inverses and brute force."""

import jax.numpy as jnp
import numpy as np
import pytest
from problems import N, bend, dense, on_support, setting, small, solve, supports
from trees import flat

from swapjax import (
    NM,
    Status,
    cbs,
    chita,
    obd,
    plan,
    select,
    woodfisher,
)
from swapjax.gradients.build import per_example_gradients
from swapjax.pruning import Problem
from swapjax.pruning.solvers import fisher_blocks

pytestmark = pytest.mark.usefixtures("x64")


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
            for of, offset in zip(cut, (0, 54), strict=True):
                size = 54 if offset == 0 else 18
                for row in np.asarray(of.places):
                    places = row[row < size] + offset
                    same[np.ix_(places, places)] = True
            h = np.where(same, h, 0)
        inverse = np.linalg.inv(h)
        w = flat(problem.weights)
        if first_order:
            largest = select(
                tuple(jnp.abs(leaf) for leaf in problem.weights), target.budget
            )
            w = w - inverse @ g.mean(axis=0) / bend(problem, largest)
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
        one = Problem(target.layout.split(params), target.layout.split(params), rows)
        for method in (woodfisher(), chita(), obd()):
            (mask,) = solve(method, one, target.budget).masks
            assert np.all(np.asarray(mask).reshape(3, 2, 9).sum(1) == 1)
        with pytest.raises(ValueError, match="a pattern is reached in one round"):
            woodfisher(rounds=2)(one, target.budget)
        with pytest.raises(ValueError, match="cbs does not exchange within N:M"):
            cbs()(one, target.budget)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (woodfisher, {"block": 0}, "block must be 1 or more, got 0"),
        (woodfisher, {"damping": -1.0}, "damping must be 0 or more, got -1.0"),
        (woodfisher, {"update": "all"}, "update must be 'joint', 'independent'"),
        (woodfisher, {"rounds": 0}, "rounds must be 1 or more, got 0"),
        (woodfisher, {"rounds": 1.5}, "rounds must be a whole number, got 1.5"),
    ],
)
def test_bad_settings_are_named(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)
