"""Published weights on real MNIST: the figures that others are held against."""

import jax
import numpy as np
import pytest

import swapjax
from swapjax.experiments import runner

MAGNITUDE = {
    0.5: 93.93, 0.6: 93.78, 0.7: 93.62, 0.8: 92.88, 0.9: 90.28, 0.95: 83.64,
    0.98: 32.25,
}  # fmt: skip


@pytest.mark.parametrize("sparsity", MAGNITUDE)
def test_global_magnitude_has_the_known_accuracy(mnist, sparsity):
    row, _ = runner.run(mnist, swapjax.magnitude(), sparsity=sparsity, seed=0)
    assert row.accuracy == pytest.approx(MAGNITUDE[sparsity], abs=0.02)
    assert row.nonzeros == round(row.total * (1 - sparsity))


@pytest.mark.parametrize(
    ("damping", "known"),
    [(1e-2, (93.96, 93.78, 93.48, 92.28)), (1e-3, (93.97, 93.83, 93.47, 92.62))],
)
def test_one_re_fit_has_the_known_accuracy(mnist, damping, known):
    """One stage of 1,000 examples on magnitude's support; known from a prototype.

    Its dampings are of rows as they are, whose root mean square norm is 13.6.
    """
    method = swapjax.linear_regression(
        damping=damping / 13.6**2, support="magnitude", first_order=False
    )
    for sparsity, accuracy in zip((0.5, 0.7, 0.8, 0.9), known, strict=True):
        row, _ = runner.run(mnist, method, sparsity=sparsity, seed=0)
        assert row.accuracy == pytest.approx(accuracy, abs=0.3)


def test_matrix_free_and_stored_write_the_same_network(mnist):
    # The greedy orders of its other supports take a minute each without optimisation.
    method = swapjax.kfac_regression(support="magnitude")
    results = [
        swapjax.prune(
            mnist.model.loss_fn,
            mnist.params,
            mnist.data.train,
            method=method,
            sparsity=0.9,
            samples=100,
            key=jax.random.key(0),
            storage=storage,
        )
        for storage in ("stored", "matrix-free")
    ]
    stored, free = (jax.tree.leaves(result.params) for result in results)
    assert swapjax.churn(results[0].masks, results[1].masks) == 0
    difference = sum(np.sum((a - b) ** 2) for a, b in zip(stored, free, strict=True))
    size = sum(np.sum(a**2) for a in stored)
    assert np.sqrt(difference / size) < 1e-4
