"""What training loops say of data that an objective cannot take, wherever they are."""

import jax
import jax.numpy as jnp
import network
import optax
import pytest

from swapjax import robust
from swapjax.training import fit, sharpness_aware

KEY = jax.random.key(0)
PARAMS = network.make(outputs=5)
X = jax.random.uniform(jax.random.key(1), (24, 6))
Y = jnp.arange(24) % 5
ATTACK = {"epsilon": 0.1, "step": 0.04, "steps": 1}
SPARSE = {"tau": 0.5, "p": 0.1, "weight": 1.0}

FRAMEWORKS = {
    "pgd_at": robust.pgd_at(network.apply, **ATTACK),
    "trades": robust.trades(network.apply, **ATTACK),
    "free_at": robust.free_at(network.apply, epsilon=0.1),
    "sharp": sharpness_aware(robust.mart(network.apply, **ATTACK), 0.1),
}
OF_LABELS = {
    "supervised": robust.supervised(network.apply, robust.LABEL_LOSSES["gce"]()),
    "nlnl": robust.label_objective("nlnl", network.apply, counts=[5] * 5),
    "sr": robust.sparse_regularized(
        network.apply, robust.LABEL_LOSSES["ce"](), **SPARSE
    ),
}
OBJECTIVES = FRAMEWORKS | OF_LABELS


def train(objective, images, labels):
    options = {"epochs": 1, "batch": 8, "key": KEY}
    return fit(objective, PARAMS, optax.sgd(0.1), (images, labels), **options)


@pytest.mark.parametrize("label", [-1, 7])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_labels_after_the_first_batch_are_looked_at(name, label):
    with pytest.raises(ValueError, match=rf"labels must be from 0 to 4.*{label}"):
        train(OBJECTIVES[name], X, Y.at[20].set(label))


@pytest.mark.parametrize("value", [3.0, float("nan")])
@pytest.mark.parametrize("name", FRAMEWORKS)
def test_images_after_the_first_batch_are_looked_at(name, value):
    with pytest.raises(ValueError, match="images must lie in the box from 0 to 1"):
        train(FRAMEWORKS[name], X.at[20, 0].set(value), Y)


@pytest.mark.parametrize("name", OF_LABELS)
def test_data_are_images_and_labels(name):
    with pytest.raises(ValueError, match=r"data must be \(images, labels\), got a t"):
        fit(OBJECTIVES[name], PARAMS, optax.sgd(0.1), (X, Y, Y), epochs=1, batch=8,
            key=KEY)  # fmt: skip


def test_a_loss_that_is_nan_at_once_is_not_put_down_to_the_learning_rate():
    ce = robust.LABEL_LOSSES["ce"]()

    def loss_fn(params, batch):
        images, labels = batch
        return jnp.mean(ce(network.apply(params, images), labels))

    with pytest.raises(ValueError, match=r"is nan before the first update.*labels out"):
        train(loss_fn, X, jnp.full(24, 7))
    with pytest.raises(ValueError, match="smaller learning rate, or look at the data"):
        fit(
            loss_fn, PARAMS, optax.sgd(float("inf")), (X, Y), epochs=1, batch=8, key=KEY
        )
    with pytest.raises(ValueError, match=r"in epoch 2; take a smaller learning rate$"):
        fit(
            loss_fn,
            PARAMS,
            optax.sgd(float("inf")),
            (X, Y),
            epochs=2,
            batch=24,
            key=KEY,
        )
