"""The re-fit by conjugate gradients against dense solutions of every output."""

import hypothesis
import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest
from layer_problems import fitted, rise, single

from swapjax.pruning.solvers import layer_cg


def refit(hessian, weights, support, start=None, **options):
    """Of one group, by arrays of NumPy."""
    start = np.where(support, weights, 0) if start is None else start
    arrays = (jnp.asarray(x)[None] for x in (hessian, weights, support, start))
    return np.asarray(layer_cg.refit(*arrays, **options)[0])


@pytest.mark.usefixtures("x64")
@hypothesis.given(seed=st.integers(0, 10**6), density=st.floats(0, 1))
@hypothesis.settings(max_examples=20)
def test_it_finds_the_least_squares_weights(seed, density):
    _, hessian, weights = single(9, 5, seed)
    support = np.random.default_rng(seed).uniform(size=weights.shape) < density
    found = refit(hessian, weights, support, tolerance=1e-12)
    for o in range(5):
        kept = np.flatnonzero(support[:, o])
        expected = fitted(hessian, weights[:, o], kept)
        np.testing.assert_allclose(found[:, o], expected, rtol=1e-7, atol=1e-9)


@pytest.mark.usefixtures("x64")
def test_groups_have_their_own_hessians():
    problems = [single(9, 5, seed) for seed in (1, 2)]
    support = np.random.default_rng(0).uniform(size=(2, 9, 5)) < 0.5
    hessians, weights = (np.stack([p[i] for p in problems]) for i in (1, 2))
    arrays = map(jnp.asarray, (hessians, weights, support, weights * support))
    both = layer_cg.refit(*arrays)
    for i in range(2):
        alone = refit(hessians[i], weights[i], support[i])
        np.testing.assert_array_equal(both[i], alone)


def test_an_output_does_not_depend_on_the_others():
    _, hessian, weights = (np.float32(x) for x in single(9, 5))
    support = np.random.default_rng(0).uniform(size=(9, 5)) < 0.6
    together = refit(hessian, weights, support)
    harder = weights.copy()
    harder[:, 1:] *= 100
    other = refit(hessian, harder, support)
    np.testing.assert_allclose(together[:, 0], other[:, 0], rtol=1e-6)


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_stopped_early_it_is_no_worse_than_its_start(steps):
    _, hessian, weights = (np.float32(x) for x in single(9, 5))
    support = np.random.default_rng(0).uniform(size=(9, 5)) < 0.6
    start = np.where(support, weights, 0)
    found = refit(hessian, weights, support, start, steps=steps)
    assert not found[~support].any()
    for o in range(5):
        before, after = (rise(hessian, w[:, o], weights[:, o]) for w in (start, found))
        assert after < before if steps else after == before


def test_float32_is_as_exact_as_its_rounding():
    _, hessian, weights = single(64, 3, damping=0.001)
    support = np.random.default_rng(0).uniform(size=(64, 3)) < 0.5
    arrays = (np.float32(hessian), np.float32(weights), support)
    found = np.float64(refit(*arrays, tolerance=1e-7))
    for o in range(3):
        kept = np.flatnonzero(support[:, o])
        best = rise(hessian, fitted(hessian, weights[:, o], kept), weights[:, o])
        error = rise(hessian, found[:, o], weights[:, o])
        np.testing.assert_allclose(error, best, rtol=1e-4)
