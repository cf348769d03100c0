"""A small network, its gradients as a problem, and G as an array."""

import jax
import jax.numpy as jnp
import numpy as np

from swapjax import plan
from swapjax.gradients.build import per_example_gradients
from swapjax.pruning import Problem

N = 24


def apply(params, x):
    hidden = jnp.tanh(x @ params["fc1"]["kernel"] + params["fc1"]["bias"])
    return hidden @ params["fc2"]["kernel"]


def loss_fn(params, batch):
    x, y = batch
    return jnp.mean(jnp.square(apply(params, x) - y))


def setting(
    dtype=jnp.float32, sparsity=0.6, storage="stored", allocation="global", **options
):
    keys = jax.random.split(jax.random.key(0), 6)
    params = {
        "fc1": {
            "kernel": jax.random.normal(keys[0], (6, 9), dtype),
            "bias": jax.random.normal(keys[1], (9,), dtype),
        },
        "fc2": {"kernel": jax.random.normal(keys[2], (9, 2), dtype)},
    }
    x = jax.random.normal(keys[3], (N, 6), dtype)
    y = jax.random.normal(keys[4], (N, 2), dtype)
    target = plan(params, sparsity, allocation=allocation)
    rows = per_example_gradients(
        loss_fn, params, (x, y), target, storage=storage, **options
    )
    weights = target.layout.split(params)
    start = tuple(w + 0.1 * jnp.sign(w) for w in weights)
    whole = {"params": params, "layout": target.layout}
    return Problem(weights, start, rows, **whole), target


def flat(leaves):
    return np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in leaves])


def explicit(rows):
    return np.concatenate([np.asarray(m).reshape(N, -1) for m in rows.matrices], axis=1)


solve = jax.jit(lambda method, *args: method(*args), static_argnums=0)
