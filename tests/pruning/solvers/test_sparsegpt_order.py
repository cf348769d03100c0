"""The sweep over columns."""

import jax.numpy as jnp
import numpy as np
import pytest
from layer_problems import single

from swapjax.pruning.solvers import layer_quadratic, sparsegpt_order

pytestmark = pytest.mark.usefixtures("x64")


def test_the_block_makes_no_difference_to_a_fixed_support():
    moment, _, weights = single(10, 4)
    root = layer_quadratic.damp(jnp.asarray(moment)[None], 0.01).root
    support = jnp.asarray(np.random.default_rng(0).random((1, 10, 4)) < 0.5)
    results = [
        sparsegpt_order.sweep(
            root, jnp.asarray(weights)[None], jnp.zeros((1, 10, 4), jnp.int32),
            support, block=block, adapt=False,
        )
        for block in (1, 3, 10)
    ]  # fmt: skip
    for w, kept in results:
        assert (kept == support).all()
        np.testing.assert_allclose(w, results[0][0], rtol=1e-9, atol=1e-12)
