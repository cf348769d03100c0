"""Draws without bias, beside NumPy in float64 and beside what is drawn on average."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swapjax.backward.sampling import draw, draw_fixed, keep_probabilities


def by_bisection(norms, count):
    """The c of min(1, c norm) in float64, by halving."""
    norms = np.asarray(norms, np.float64)
    if count >= np.sum(norms > 0):
        return (norms > 0).astype(float)
    low, high = 0.0, count / norms[norms > 0].min()
    for _ in range(200):
        middle = (low + high) / 2
        enough = np.minimum(1, middle * norms).sum() >= count
        low, high = (low, middle) if enough else (middle, high)
    return np.minimum(1, high * norms)


lists = st.lists(
    st.one_of(st.just(0.0), st.floats(2**-20, 1e3, width=32)), min_size=12, max_size=12
)


@settings(max_examples=40, deadline=None)
@given(lists, st.floats(0.05, 12))
def test_probabilities_are_those_of_the_least_variance(norms, count):
    found = jax.jit(keep_probabilities)(jnp.asarray(norms, jnp.float32), count)
    np.testing.assert_allclose(found, by_bisection(norms, count), rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_what_is_not_finite_is_kept_to_be_seen(bad):
    assert keep_probabilities(jnp.array([1.0, bad, 0.5]), 1.0)[1] == 1

    # A fixed number may have no room for all of them: then all that is drawn tells.
    for norms in (jnp.ones(64).at[5].set(bad), jnp.full(64, bad)):
        index, weights = draw_fixed(jnp.uint32(7), norms, 3)
        assert list(np.sort(index)) == list(index)
        assert index[-1] < 64
        assert np.all(np.isnan(weights))


def test_one_of_rate_one_keeps_all_as_they_are():
    norms = jax.random.uniform(jax.random.key(0), (50,))
    np.testing.assert_array_equal(draw(norms, jnp.ones(50)), np.ones(50))
    index, weights = draw_fixed(jnp.uint32(7), norms, 50)
    np.testing.assert_array_equal(index, np.arange(50))
    np.testing.assert_array_equal(weights, np.ones(50))


NORMS = jnp.array([5.0, 0.0, 1.0, 1e-12, 0.2, 3.0, 0.3, 0.9, 0.0, 2.0])


def dense(key, count):
    """What each part is multiplied with under `draw_fixed`."""
    index, weights = draw_fixed(jax.random.bits(key), NORMS, count)
    return jnp.zeros(NORMS.size).at[index].add(weights)


@pytest.mark.parametrize("how", ["each on its own", "a fixed number"])
def test_draws_are_without_bias(how):
    keys = jax.random.split(jax.random.key(3), 4000)
    p = keep_probabilities(NORMS, 3.0)
    if how == "a fixed number":
        found = jax.vmap(lambda key: dense(key, 3))(keys)
        assert np.all(np.count_nonzero(found, axis=1) <= 3)
    else:
        found = jax.vmap(lambda key: draw(jax.random.uniform(key, p.shape), p))(keys)
    found, p = np.asarray(found, np.float64), np.asarray(p, np.float64)
    likely = p > 1e-3  # the others are hardly ever seen
    error = np.sqrt((1 / p[likely] - 1) / len(keys))
    assert np.all(abs(found.mean(0)[likely] - 1) <= 5 * error + 1e-6)
    assert np.all(found[:, np.asarray(NORMS) == 0] == 0)


def test_the_weights_are_one_over_the_chance_exactly():
    """Over all offsets of the comb, told from a small line."""
    _, weights = draw_fixed(jnp.uint32(9), NORMS, 4)
    chances = 1 / np.asarray(weights, np.float64)
    units = chances * 2**28  # 2 bits of 30 are for the count
    np.testing.assert_allclose(units, np.round(units), rtol=1e-6)


def test_fewer_parts_than_are_to_be_kept_are_all_kept():
    norms = jnp.array([0.0, 2.0, 0.0, 1e-20, 0.0])
    bits = jax.random.bits(jax.random.key(0), (20,))
    index, weights = jax.vmap(lambda one: draw_fixed(one, norms, 3))(bits)
    assert np.all(weights == jnp.array([1, 1, 0]))
    assert np.all(index == jnp.array([1, 3, 5]))


def test_a_fixed_number_varies_less_than_draws_on_their_own():
    keys = jax.random.split(jax.random.key(5), 2000)
    p = keep_probabilities(NORMS, 3.0)
    fixed = jax.vmap(lambda key: dense(key, 3) @ NORMS)(keys)
    free = jax.vmap(lambda key: draw(jax.random.uniform(key, p.shape), p) @ NORMS)(keys)
    assert np.std(fixed) < np.std(free)
