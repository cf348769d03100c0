"""Functions of many batches."""

import jax
import jax.numpy as jnp
import numpy as np

from swapjax.core.batches import over_batches


def loss(experts, batch):
    rows, sizes = batch
    return jnp.sum(jax.lax.ragged_dot(rows, experts, sizes) ** 2)


def test_what_jax_cannot_batch_is_done_one_after_the_other():
    rng = np.random.default_rng(0)
    experts, rows = rng.normal(size=(3, 4, 2)), rng.normal(size=(5, 6, 4))
    sizes = np.asarray([[2, 3, 1], [6, 0, 0], [0, 2, 4], [1, 1, 4], [3, 3, 0]])
    work = jax.grad(loss)
    found = over_batches(lambda batch: work(experts, batch), (rows, sizes))
    each = [work(experts, batch) for batch in zip(rows, sizes, strict=True)]
    np.testing.assert_allclose(found, jnp.stack(each), rtol=1e-5)
