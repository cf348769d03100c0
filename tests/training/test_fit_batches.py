"""Training from batches as data loaders give them, and from arrays on the host."""

import itertools

import jax
import jax.numpy as jnp
import network
import numpy as np
import optax
import pytest
from interrupts import stop_at
from network import loss_fn
from trees import equal

import swapjax
from swapjax.training import Objective, fit

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (26, 6))
DATA = (X, jnp.tanh(X[:, :2]))
ARRAYS = tuple(map(np.asarray, DATA))
PARAMS = network.make(2, inputs=6, hidden=9, outputs=2)
TX = swapjax.sparse(
    optax.adam(1e-2), swapjax.granet(), sparsity=0.75, key=jax.random.key(3),
    schedule=swapjax.cubic(0, 9, every=2),
)  # fmt: skip
ADAM = optax.adam(1e-2)


def told(history):
    """All but the time it took."""
    return [{**epoch.to_dict(), "seconds": 0} for epoch in history]


def epoch_batches(epoch):
    order = jax.random.permutation(jax.random.fold_in(KEY, epoch), 26)
    rows = np.asarray(order)[:24].reshape(3, 8)
    return [tuple(x[r] for x in ARRAYS) for r in rows]


def shuffled():
    """Make a loader of the order that arrays are taken in: another each epoch."""
    numbers = itertools.count()
    return lambda: iter(epoch_batches(next(numbers)))


@pytest.fixture(scope="module")
def on_device():
    return fit(loss_fn, PARAMS, TX, DATA, epochs=4, batch=8, key=KEY)


@pytest.mark.parametrize("kind", ["host", "function", "iterator", "list"])
def test_where_examples_come_from_changes_no_bit(kind, on_device):
    options = {"epochs": 4, "key": KEY}
    every = [batch for epoch in range(4) for batch in epoch_batches(epoch)]
    if kind == "host":
        data, options = ARRAYS, {**options, "batch": 8, "on_host": True}
    elif kind == "function":
        again = shuffled()
        data, options = again, {**options, "steps_per_epoch": 3}
    else:
        data = iter(every) if kind == "iterator" else every
        options = {**options, "steps_per_epoch": 3}
    fitted = fit(loss_fn, PARAMS, TX, data, **options)
    assert equal(fitted[:2], on_device[:2])
    assert told(fitted.history) == told(on_device.history)


def test_an_epoch_is_a_pass_and_a_last_batch_may_be_smaller():
    batches = [tuple(x[i : i + 8] for x in ARRAYS) for i in (0, 8, 16, 24)]
    fitted = fit(loss_fn, PARAMS, optax.sgd(0.1), batches, epochs=2, key=KEY)
    assert [epoch.steps for epoch in fitted.history] == [4, 8]
    params = PARAMS
    for batch in batches * 2:
        grads = jax.grad(loss_fn)(params, batch)
        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)  # noqa: E731
    jax.tree.map(close, fitted.params, params)


@pytest.mark.parametrize("goes_on", [False, True])
def test_a_run_on_batches_goes_on_bit_for_bit(goes_on, tmp_path):
    batches = epoch_batches(0) + epoch_batches(1)
    options = {"epochs": 3, "key": KEY, "checkpoint": tmp_path / "run.safetensors"}
    if goes_on:
        options["steps_per_epoch"] = 4
    whole = fit(loss_fn, PARAMS, ADAM, batches, **{**options, "checkpoint": None})
    with pytest.raises(KeyboardInterrupt):
        fit(
            loss_fn,
            PARAMS,
            optax.adam(1e-2),
            batches,
            callback=stop_at(epoch=2),
            **options,
        )
    resumed = fit(loss_fn, PARAMS, optax.adam(1e-2), batches, **options)
    assert equal(resumed[:2], whole[:2])
    assert told(resumed.history) == told(whole.history)


def test_an_objective_looks_at_each_batch_of_the_first_epoch():
    seen = []
    objective = Objective(
        lambda p, s, b, k: (loss_fn(p, b), s, {}),
        check=lambda p, b: seen.append(len(b[0])),
    )
    batches = [tuple(x[:n] for x in ARRAYS) for n in (8, 8, 4)]
    fit(objective, PARAMS, optax.sgd(0.1), batches, epochs=2, key=KEY)
    assert seen == [8, 8, 4]


@pytest.mark.parametrize(
    ("change", "saying"),
    [
        ({"data": iter([DATA])}, "data: an iterator .* steps_per_epoch=, or give"),
        ({"data": lambda: iter([])}, "data: there are no batches in it"),
        ({"data": []}, "data: there are no batches in it"),
        ({"data": iter([DATA] * 3), "steps_per_epoch": 2}, "after 1 of 2 batches"),
        ({"batch": 8}, "batch: data are batches, which say how large they are; got 8"),
        ({"on_host": True}, "on_host: is for arrays, and data are batches"),
        ({"steps_per_epoch": 0}, "steps_per_epoch must be 1 or more, got 0"),
        ({"data": DATA, "batch": 8, "steps_per_epoch": 2}, "steps_per_epoch: is for"),
        ({"data": DATA, "batch": 8, "on_host": True}, "on_host: arrays of NumPy can"),
        ({"data": DATA}, "batch: data are arrays; say how many"),
    ],
)
def test_what_batches_cannot_be_is_an_error(change, saying):
    given = {"data": [DATA], "epochs": 2, "key": KEY, **change}
    data = given.pop("data")
    with pytest.raises(ValueError, match=saying):
        fit(loss_fn, PARAMS, optax.sgd(0.1), data, **given)


@pytest.mark.parametrize(
    ("length", "saying"),
    [
        (5, "the iterable ended after 3 of 5 batches"),
        (2, "the iterable goes on after 2 batches, .*; steps_per_epoch= takes so"),
    ],
)
def test_a_loader_that_says_otherwise_than_it_gives_is_an_error(length, saying):
    class Loader:
        def __len__(self):
            return length

        def __iter__(self):
            return iter([DATA] * 3)

    with pytest.raises(ValueError, match=saying):
        fit(loss_fn, PARAMS, optax.sgd(0.1), Loader(), epochs=1, key=KEY)
