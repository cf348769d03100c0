"""Pruned back-propagation in training loops."""

import jax
import jax.numpy as jnp
import optax
import pytest

from swapjax import backward
from swapjax.training import fit

KEY = jax.random.key(5)


def loss_fn(params, batch):
    x, y = batch
    h = jax.nn.relu(backward.site(x @ params["in"], "in"))

    def block(h, kernel):
        return jnp.tanh(backward.site(h @ kernel, "stack")), None

    h, _ = jax.lax.scan(block, h, params["stack"])
    return jnp.mean((h @ params["out"] - y) ** 2)


@pytest.fixture(scope="module")
def params():
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = {"in": (6, 16), "out": (16, 2), "stack": (3, 16, 16)}
    return {
        name: 0.3 * jax.random.normal(key, shape)
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


@pytest.fixture(scope="module")
def data():
    x = jax.random.normal(jax.random.key(1), (64, 6))
    return x, x[:, :2] ** 2


def test_fit_trains_with_pruned_gradients(params, data):
    pruned = backward.prune_backward(loss_fn, rate=0.9, sites="marked", per_site=True)
    fitted = fit(pruned, params, optax.adam(1e-2), data, epochs=8, batch=16, key=KEY)
    first, *_, last = fitted.history
    assert last.loss < 0.7 * first.loss
    assert first.told["zeros before"] == first.told["zeros after"] < 0.2  # a FIFO fills
    assert 0.45 < last.told["zeros after stack"] < 0.8
