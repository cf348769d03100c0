"""Rows of gradients of the small network, and all that is asked of them."""

import jax
import jax.numpy as jnp
import network
import numpy as np

from swapjax.gradients.operator import Columns
from swapjax.sparsity.planning import plan

STORAGES = ("stored", "matrix-free")
grad = jax.jit(jax.grad(network.loss_fn))

# The second leaf has 21 entries: 21 and 30 are beyond its end.
BLOCKS = (
    Columns(0, jnp.asarray([[0, 30, 7], [1, 2, 3]])),
    Columns(1, jnp.asarray([[20, 5, 21], [8, 30, 9]])),
    Columns(0, jnp.asarray([[34, 9], [33, 35], [2, 0]])),
)
FACTORS = (jnp.asarray([1.0, 2.0]), jnp.asarray([3.0, 4.0]), jnp.asarray([5.0, 6, 7]))


def make(n, batch=1, dtype=jnp.float64, seed=0):
    """Params, data for n rows, and a plan."""
    params = network.make(seed, dtype, inputs=5, hidden=7, outputs=3)
    data = network.data(n * batch, seed, dtype, inputs=5, outputs=3)
    return params, data, plan(params, 0.5)


def by_grad(params, data, batch=1):
    """G as an array, [n, p]: one call of jax.grad a row."""
    n = len(data[0]) // batch
    rows = []
    for i in range(n):
        part = jax.tree.map(lambda a, i=i: a[i * batch : (i + 1) * batch], data)
        grads = grad(params, part)
        kernels = (grads["fc1"]["kernel"], grads["fc2"]["kernel"])
        rows.append(np.concatenate([np.ravel(g).astype(np.float64) for g in kernels]))
    return np.stack(rows)


@jax.jit
def products(rows, v, r, support):
    """All that rows offer, in one program."""
    return {
        "project": rows.project(v),
        "pull_back": rows.pull_back(r),
        "gram": rows.gram(),
        "gram on support": rows.gram(support),
        "mean_squares": rows.mean_squares(),
        "energies": rows.energies(jnp.outer(r, r) + jnp.eye(rows.n)),
        "columns": rows.columns(jnp.asarray([3, 40, 55, 56, 0, 999])),
        "blocks": rows.map_blocks(lambda f, x: f * x, BLOCKS, FACTORS),
        "elsewhere": rows.at(v).pull_back(r),
        "loss": rows.loss(v),
    }


def directions(target, dtype, seed=9):
    """An array for each prunable leaf."""
    keys = jax.random.split(jax.random.key(seed), len(target.layout.shapes))
    return tuple(
        jax.random.normal(k, shape, dtype)
        for k, shape in zip(keys, target.layout.shapes, strict=True)
    )
