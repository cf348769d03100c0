"""The greedy order of removals, against an explicit loop."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_problems import fitted, obc, single

from swapjax.pruning.solvers import obc_order

pytestmark = pytest.mark.usefixtures("x64")


@jax.jit
def path(hessian, weights, alive, factor):
    (scores,) = obc_order.order([hessian], [weights], [alive], [factor])
    return scores


@pytest.mark.parametrize("inputs", [1, 9])
@hypothesis.given(seed=st.integers(0, 10**6))
@hypothesis.settings(max_examples=15)
def test_the_order_is_that_of_an_explicit_loop(inputs, seed):
    _, hessian, weights = single(inputs, 3, seed)
    alive = np.ones((1, *weights.shape), bool)
    scores = path(hessian[None], weights[None], alive, np.ones((1, 1, 3)))
    for o in range(3):
        order, rises = obc(hessian, weights[:, o])
        got = np.asarray(scores)[0, :, o]
        assert list(np.argsort(got)) == order
        expected = np.maximum.accumulate(rises)
        np.testing.assert_allclose(got[order], expected, rtol=1e-6)


def test_what_is_not_alive_goes_first():
    _, hessian, weights = single(9, 3, 8)
    alive = np.arange(9) % 3 > 0
    living = np.broadcast_to(alive[None, :, None], (1, 9, 3))
    scores = path(hessian[None], weights[None], living, np.ones((1, 1, 3)))
    assert (np.asarray(scores)[0, ~alive, 0] == -1).all()
    left, wbar = list(np.flatnonzero(alive)), weights[:, 0]
    for q in np.argsort(np.asarray(scores)[0, :, 0])[3:]:
        w = fitted(hessian, wbar, np.array(left))
        costs = w[left] ** 2 / np.diag(np.linalg.inv(hessian[np.ix_(left, left)]))
        assert q == left.pop(int(np.argmin(costs)))


def test_a_factor_scales_the_rises():
    _, hessian, weights = single(9)
    h, w, alive = hessian[None], weights[None], np.ones((1, 9, 3), bool)
    plain = path(h, w, alive, np.ones((1, 1, 3)))
    scaled = path(h, w, alive, np.array([[[2.0, 3.0, 4.0]]]))
    np.testing.assert_allclose(scaled, plain * jnp.array([2.0, 3.0, 4.0]), rtol=1e-12)
