"""Poisson counts against the distribution of SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from swapjax.corruptions.poisson import poisson

draw = jax.jit(poisson, static_argnums=2)
KEY = jax.random.key(0)


@pytest.mark.parametrize("mean", [0.0, 0.3, 1.0, 7.99, 24.5, 50.0])
def test_counts_are_those_of_their_mean(mean):
    drawn = np.asarray(draw(KEY, jnp.full((100_000,), mean), 50))
    counts = np.arange(drawn.max() + 1)
    wanted = scipy.stats.poisson.cdf(counts, mean)
    found = np.mean(drawn[:, None] <= counts, axis=0)
    allowed = 5 * np.sqrt(wanted * (1 - wanted) / drawn.size) + 1e-6
    np.testing.assert_array_less(np.abs(found - wanted), allowed)


def test_many_means_at_once_have_their_moments():
    means = jnp.linspace(0, 500, 40)
    drawn = np.asarray(draw(KEY, jnp.tile(means, (20_000, 1)), 500))
    assert drawn.dtype == np.int32
    error = np.sqrt(np.asarray(means) / 20_000) + 1e-9
    assert np.all(np.abs(drawn.mean(axis=0) - means) < 5 * error)
    ratio = drawn[:, 1:].var(axis=0) / np.asarray(means)[1:]
    assert np.abs(ratio - 1).max() < 0.06
    assert abs(np.corrcoef(drawn[:, 10], drawn[:, 20])[0, 1]) < 0.03
