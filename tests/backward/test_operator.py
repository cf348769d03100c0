"""The operator against its formula, in float64 NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from swapjax import backward
from swapjax.backward.operator import Pruning, prune

KEY = jax.random.key(3)


def run(g, tau, key=KEY, **settings):
    """Prune a gradient with a given threshold; also return the statistics."""
    level = jnp.asarray(tau, jnp.float32)
    return prune(Pruning(**settings), g, level, jax.random.key_data(key))


@pytest.mark.parametrize(
    ("rate", "zeros", "variance"),
    [
        (0.5, 0.259, 0.038),
        (0.7, 0.380, 0.127),
        (0.8, 0.451, 0.223),
        (0.9, 0.540, 0.412),
        (0.95, 0.603, 0.614),
        (0.99, 0.692, 1.065),
    ],
)
def test_zeros_and_variance_of_normal_gradients(rate, zeros, variance):
    g = np.random.default_rng(0).normal(size=10**6).astype(np.float32)
    pull = jax.vjp(lambda x: backward.prune_gradient(x, rate, key=KEY), g)[1]
    (pruned,) = pull(jnp.asarray(g))
    assert backward.expected_zeros(rate) == pytest.approx(zeros, abs=6e-4)
    assert backward.added_variance(rate) == pytest.approx(variance, abs=6e-4)
    assert np.mean(pruned == 0) == pytest.approx(zeros, abs=0.003)
    assert np.mean((pruned - g) ** 2) == pytest.approx(variance, abs=0.003)
