"""The replicas of released code against explicit arithmetic."""

import jax.numpy as jnp
import numpy as np
import pytest
from problems import N, explicit, setting, solve
from trees import flat

from swapjax.pruning import (
    linear_regression_released,
    swap_released,
)


@pytest.mark.usefixtures("x64")
class TestReleased:
    """The released code's behaviour, from its description, with explicit G."""

    @pytest.mark.parametrize("paired", [True, False])
    def test_equals_an_explicit_reference(self, paired):
        problem, target = setting(jnp.float64)
        method = linear_regression_released() if paired else swap_released(epsilon=0.0)
        solution = solve(method, problem, target.budget)
        # Its constants are meant of rows of this size.
        g, w = 13.6 * explicit(problem.rows), flat(problem.weights)
        start, k = flat(problem.initial), target.kept
        x, y = g @ w, g @ start
        if paired:
            direction = g.T @ (x - y) + N * 0.01 * (w - start)
        else:
            pi = np.zeros((N, N))
            pi[np.argsort(x), np.argsort(y)] = 1 / N
            direction = g.T @ pi.T @ (x - y) + 0.01 * (w - start)
        tau = float(solution.details["tau"])
        stepped = np.abs(w - tau * direction)
        expected = np.zeros(len(w), bool)
        expected[np.argsort(-stepped, kind="stable")[:k]] = True
        np.testing.assert_array_equal(flat(solution.masks).astype(bool), expected)
        # The old values stay.
        np.testing.assert_array_equal(flat(solution.weights), np.where(expected, w, 0))
        assert tau >= 0

    def test_epsilon_may_be_infinite(self):
        problem, target = setting(jnp.float64)
        method = swap_released(epsilon=float("inf"))
        solution = solve(method, problem, target.budget)
        np.testing.assert_allclose(solution.details["perplexity"], N)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (swap_released, {"epsilon": -1.0}, "epsilon must be 0 or more, got -1.0"),
        (swap_released, {"max_sinkhorn": 0}, "max_sinkhorn must be 1 or more"),
    ],
)
def test_bad_settings_are_named(make, options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)
