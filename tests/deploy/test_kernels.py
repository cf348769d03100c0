"""Each way that the benchmark of kernels measures multiplies by its weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kernels_ways import pallas_blocks, ways

WAYS = ways(128, 4, 0.5)


@pytest.mark.parametrize("name", [*WAYS, "Pallas, interpreted"])
def test_a_way_multiplies_by_its_weights(name):
    way = WAYS.get(name)
    if way is None:
        blocks = WAYS["blocks of 32"]
        way = blocks._replace(run=lambda s, x: pallas_blocks(s, x, interpret=True))
    x = np.random.default_rng(1).normal(size=(4, 128)).astype(np.float32)
    with jax.default_matmul_precision("highest"):
        found = jax.jit(way.run)(way.stored, jnp.asarray(x))
    wanted = x.astype(np.float64) @ way.weights.astype(np.float64)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    left = (way.weights != 0).mean() * way.weights.shape[1] / 128
    assert left == (1.0 if name == "dense" else 0.5)
