"""The small network of the tests: two dense layers with a tanh between them."""

import jax
import jax.numpy as jnp
import numpy as np


def _keys(key):
    return jax.random.split(jax.random.key(key) if isinstance(key, int) else key, 5)


def make(key=0, dtype="float32", inputs=6, hidden=9, outputs=2):
    """Its params, drawn from a key or the seed of one."""
    keys = _keys(key)
    return {
        "fc1": {
            "kernel": jax.random.normal(keys[0], (inputs, hidden), dtype),
            "bias": jax.random.normal(keys[1], (hidden,), dtype),
        },
        "fc2": {"kernel": jax.random.normal(keys[2], (hidden, outputs), dtype)},
    }


def data(n, key=0, dtype="float32", inputs=6, outputs=2):
    """Inputs and targets of n examples, drawn beside the params of the same key."""
    keys = _keys(key)
    x = jax.random.normal(keys[3], (n, inputs), dtype)
    return x, jax.random.normal(keys[4], (n, outputs), dtype)


def to_shard(dtype="float32"):
    """Params of sizes that meshes divide, and 64 examples."""
    params = make(0, dtype, inputs=8, hidden=24, outputs=4)
    return params, data(64, 0, dtype, inputs=8, outputs=4)


def hidden(params, x):
    """What its second layer reads."""
    return jnp.tanh(x @ params["fc1"]["kernel"] + params["fc1"]["bias"])


def apply(params, x):
    """Its outputs."""
    return hidden(params, x) @ params["fc2"]["kernel"]


def loss_fn(params, batch):
    """The mean squared error of a batch."""
    x, y = batch
    return jnp.mean(jnp.square(apply(params, x) - y))


def kernels(tree):
    """What a tree of its structure has for the two kernels, in NumPy."""
    return [np.asarray(tree["fc1"]["kernel"]), np.asarray(tree["fc2"]["kernel"])]
