"""Labels drawn from what a network predicts, and the Fisher that they give."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import swapjax
from swapjax.gradients.own_labels import own_labels

KEY = jax.random.key(0)
WEIGHTS = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4)), jnp.float32)


def predict(params, inputs):
    return inputs @ params


def softmax(logits):
    exponents = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return exponents / exponents.sum(axis=-1, keepdims=True)


def test_frequencies_are_the_probabilities_of_the_network():
    x = np.tile(np.random.default_rng(1).normal(size=(2, 3)), (10_000, 1))
    labels = np.asarray(own_labels(KEY, predict, WEIGHTS, x.astype(np.float32)))
    assert labels.dtype == np.int32
    wanted = softmax(x[:2] @ np.asarray(WEIGHTS, float))
    for row in range(2):
        found = np.bincount(labels[row::2], minlength=4) / 10_000
        # Five deviations of a share of 10,000 draws.
        assert np.abs(found - wanted[row]).max() < 5 * 0.5 / 100


def test_rows_have_the_true_fisher():
    rng = np.random.default_rng(2)
    x = rng.normal(size=(40, 3)).astype(np.float32)
    many = np.repeat(x, 500, axis=0)
    labels = own_labels(KEY, predict, WEIGHTS, many, batch=3000)

    def loss_fn(params, batch):
        images, labels = batch
        logs = jax.nn.log_softmax(predict(params, images))
        return -jnp.mean(jnp.take_along_axis(logs, labels[:, None], axis=1))

    rows = swapjax.per_example_gradients(
        loss_fn, WEIGHTS, (many, labels), swapjax.plan(WEIGHTS, 0.5, include=".*")
    )
    (found,) = rows.mean_squares()
    p = softmax(x @ np.asarray(WEIGHTS, float))
    wanted = np.mean(x[:, :, None] ** 2.0 * (p * (1 - p))[:, None, :], axis=0)
    np.testing.assert_allclose(found, wanted, rtol=0.1)


def test_every_example_is_drawn_for_once_with_logits_of_any_rank():
    sure = 1e3 * jax.nn.one_hot(jnp.arange(7 * 5).reshape(7, 5) % 3, 3)
    for batch in (1, 3, 7, 100):
        labels = own_labels(
            KEY, lambda params, x: x["a"] * params, 1.0, {"a": sure}, batch=batch
        )
        np.testing.assert_array_equal(labels, np.arange(35).reshape(7, 5) % 3)


def test_same_key_same_labels():
    x = jnp.zeros((50, 3))
    first, again = (own_labels(KEY, predict, WEIGHTS, x) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    other = own_labels(jax.random.key(1), predict, WEIGHTS, x)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch": 0}, "batch must be"),
        ({"inputs": jnp.zeros((0, 3))}, "no examples"),
        ({"inputs": jnp.full((5, 3), jnp.nan)}, "not finite in examples 0 to 4"),
        ({"predict": lambda p, x: jnp.argmax(x @ p, axis=1)}, "float logits"),
        ({"predict": lambda p, x: jnp.sum(x @ p, axis=0)[None]}, "float logits"),
    ],
)
def test_bad_input(change, message):
    given = {"predict": predict, "params": WEIGHTS, "inputs": jnp.ones((5, 3))}
    with pytest.raises(ValueError, match=message):
        own_labels(KEY, **{**given, **change})
