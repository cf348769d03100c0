"""Operations scored by a loss, against differences."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_spaces import CLASSES, SHAPE

from swapjax import search
from swapjax.search import nasbench201


@pytest.fixture(scope="module")
def tiny():
    """Three edges and two operations in one stage of one cell."""
    ops = {name: nasbench201.OPS[name] for name in ("none", "nor_conv_1x1")}
    return search.cell_space("mini", ops, nodes=3, channels=2, cells=1, stages=1)


@pytest.fixture(scope="module")
def theta(tiny):
    return tiny.init(jax.random.key(0), SHAPE, CLASSES)


@pytest.fixture(scope="module")
def batch():
    x = jax.random.normal(jax.random.key(2), (4, *SHAPE))
    return x, jnp.arange(4) % CLASSES


@pytest.fixture(scope="module")
def gradient(tiny, theta, batch):
    x, y = batch

    def loss(alpha):
        logits = tiny.apply(theta, {"cell": alpha}, x, norm="train")
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    return jax.jit(jax.grad(loss))


@pytest.fixture(scope="module")
def alpha():
    return 0.5 + np.random.default_rng(0).random((3, 2), np.float32)


def test_snip_is_the_change_of_the_loss(tiny, theta, batch, gradient, alpha):
    found = search.snip_ops(tiny, batch)(theta, {"cell": alpha})["cell"]
    np.testing.assert_allclose(found, np.abs(alpha * gradient(alpha)), atol=1e-5)
    assert found.dtype == np.float64
    assert not found[:, 0].any()


def test_grasp_is_the_change_of_the_gradient(tiny, theta, batch, gradient, alpha):
    found = search.grasp_ops(tiny, batch)(theta, {"cell": alpha})["cell"]
    g, step = gradient(alpha), 1e-2
    product = (gradient(alpha + step * g) - gradient(alpha - step * g)) / (2 * step)
    largest = np.abs(found).max()
    np.testing.assert_allclose(found, alpha * product, atol=0.02 * largest)


@pytest.mark.parametrize("label", [-1, CLASSES])
def test_labels_of_no_class_are_told(tiny, theta, batch, label):
    x, y = batch
    y = y.at[0].set(label)
    with pytest.raises(ValueError, match="labels must be from 0 to 2, got"):
        search.snip_ops(tiny, (x, y))(theta, tiny.alpha())
    told = {"shape": SHAPE, "classes": CLASSES, "images": x, "labels": y}
    cell = tiny.decode({"cell": np.ones(3, int)})
    with pytest.raises(ValueError, match="labels must be from 0 to 2, got"):
        search.score_architectures(tiny, [cell], "snip", jax.random.key(0), **told)


def test_bad_batches_are_told(tiny, batch):
    x, y = batch
    for wrong, match in (
        (x, "batch must be images"),
        ((x, y[:3]), r"shapes \(4, 8, 8, 1\) and \(3,\)"),
        ((x, y / 2), "float32"),
    ):
        with pytest.raises(ValueError, match=match):
            search.snip_ops(tiny, wrong)
    with pytest.raises(ValueError, match="norm must be one of"):
        search.grasp_ops(tiny, batch, norm="layer")
