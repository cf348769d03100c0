"""The training loop: what it trains, what it tells, how it goes on."""

import importlib
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.flax
from interrupts import stop_at
from network import loss_fn
from problems import setting
from trees import equal

import swapjax
from swapjax.sparsity import masks as masking
from swapjax.training import Epoch, fit

KEY = jax.random.key(0)
PROBLEM, TARGET = setting()
X = jax.random.normal(jax.random.key(1), (26, 6))
DATA = (X, jnp.tanh(X[:, :2]))
PARAMS = {
    "fc1": {"kernel": PROBLEM.weights[0], "bias": jnp.zeros(9)},
    "fc2": {"kernel": PROBLEM.weights[1]},
}
TOTAL = 6 * 9 + 9 * 2
# 26 examples make three batches of 8 an epoch.
QUICK = {"epochs": 4, "batch": 8, "key": KEY}


def sparse(rule=None, inner=None, **options):
    given = {
        "sparsity": 0.75,
        "schedule": swapjax.cubic(0, 9, every=2),
        "key": jax.random.key(3),
    }
    return swapjax.sparse(
        inner or optax.adam(1e-2), rule or swapjax.granet(), **{**given, **options}
    )


OPTIMIZERS = {
    "dense": optax.adamw(1e-2),
    "granet": sparse(steps=12),
    "ste": sparse(swapjax.ste()),
    # Its key is one that no file takes as it is.
    "noisy": optax.chain(optax.add_noise(0.1, 0.5, jax.random.key(5)), optax.sgd(0.1)),
}


def told(history):
    """All but the time it took."""
    return [{**epoch.to_dict(), "seconds": 0} for epoch in history]


def accuracy(params):
    return -float(loss_fn(params, DATA))


# What it trains


@pytest.mark.parametrize("name", ["dense", "granet"])
def test_takes_the_steps_of_a_plain_optax_loop(name):
    seen = []
    optimizer = OPTIMIZERS[name]
    fitted = fit(loss_fn, PARAMS, optimizer, DATA, **QUICK)

    state, params = optimizer.init(PARAMS), PARAMS
    if name != "dense":
        params = swapjax.apply_masks(params, swapjax.masks_of(state))

    @jax.jit
    def step(params, state, batch):
        loss, grads = jax.value_and_grad(loss_fn)(params, batch)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    for epoch in range(4):
        order = jax.random.permutation(jax.random.fold_in(KEY, epoch), 26)
        for rows in order[:24].reshape(3, 8):
            batch = jax.tree.map(lambda x, rows=rows: x[rows], DATA)
            params, state, loss = step(params, state, batch)
            seen.append(float(loss))
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)  # noqa: E731
    jax.tree.map(close, fitted.params, params)
    close([e.loss for e in fitted.history], np.reshape(seen, (4, 3)).mean(1))
    assert accuracy(fitted.params) > accuracy(PARAMS)


def test_the_order_goes_on_over_more_steps_than_one_call_takes():
    counting = lambda w, i: -jnp.sum(w[i])  # noqa: E731
    options = {"epochs": 2, "batch": 2, "key": KEY}
    heard = []
    fitted = fit(counting, jnp.zeros(300), optax.sgd(1.0), np.arange(300), **options,
                 progress=lambda *now: heard.append(now))  # fmt: skip
    np.testing.assert_array_equal(fitted.params, np.full(300, 2.0))
    assert heard == [(n, 300) for n in (100, 150, 250, 300)]
    assert [epoch.steps for epoch in fitted.history] == [150, 300]


def test_the_same_key_gives_the_same_result_and_another_does_not():
    runs = [
        fit(loss_fn, PARAMS, OPTIMIZERS["granet"], DATA, **{**QUICK, "key": key})
        for key in (KEY, KEY, jax.random.key(9))
    ]
    assert equal(runs[0][:2], runs[1][:2])
    assert not equal(runs[0].params, runs[2].params)


# What it tells


def test_masks_that_would_change_after_training_are_an_error():
    with pytest.raises(ValueError, match=r"masks change until update 12, .* after 9"):
        fit(loss_fn, PARAMS, OPTIMIZERS["granet"], DATA, **{**QUICK, "epochs": 3})


def test_the_history_of_a_sparse_run_is_that_of_its_masks(monkeypatch):
    # Shorter runs of the same optimizer show where the long one was.
    module = importlib.import_module("swapjax.training.settle")
    monkeypatch.setattr(module, "last_mask_step", lambda state: -1)
    optimizer, masks = OPTIMIZERS["granet"], []
    masks.append(swapjax.masks_of(optimizer.init(PARAMS)))
    for epochs in (1, 2, 3, 4):
        fitted = fit(loss_fn, PARAMS, optimizer, DATA, **{**QUICK, "epochs": epochs},
                     evaluate=accuracy)  # fmt: skip
        masks.append(swapjax.masks_of(fitted.state))
    assert [e.epoch for e in fitted.history] == [1, 2, 3, 4]
    assert [e.steps for e in fitted.history] == [3, 6, 9, 12]
    assert fitted.history[-1].accuracy == accuracy(fitted.params)
    for epoch, (before, after) in zip(
        fitted.history, itertools.pairwise(masks), strict=True
    ):
        assert epoch.sparsity == pytest.approx(1 - swapjax.density(after))
        assert epoch.churn == swapjax.churn(before, after)
        assert epoch.densities == {
            f"{layer}/kernel": np.mean(after[layer]["kernel"], dtype=float)
            for layer in ("fc1", "fc2")
        }
    assert masking.count(masks[-1]) == (TOTAL // 4, TOTAL)
    assert all(epoch.churn > 0 and epoch.seconds > 0 for epoch in fitted.history)
    for leaf, mask in zip(
        jax.tree.leaves(fitted.params), jax.tree.leaves(masks[-1]), strict=True
    ):
        assert not np.any(np.asarray(leaf)[~np.broadcast_to(mask, leaf.shape)])


def test_the_history_of_a_dense_run_counts_zeros_of_kernels():
    fitted = fit(loss_fn, PARAMS, OPTIMIZERS["dense"], DATA, **QUICK)
    assert {e.sparsity for e in fitted.history} == {0.0}
    assert {e.accuracy for e in fitted.history} == {None}
    assert {e.churn for e in fitted.history} == {0}
    assert list(fitted.history[0].densities) == ["fc1/kernel", "fc2/kernel"]
    still = jax.tree.map(jnp.zeros_like, PARAMS)
    fitted = fit(loss_fn, still, optax.sgd(0.0), DATA, **QUICK)
    assert fitted.history[-1].sparsity == 1.0


def test_epochs_are_json_and_back():
    options = {**QUICK, "epochs": 1}
    (epoch,) = fit(loss_fn, PARAMS, OPTIMIZERS["dense"], DATA, **options).history
    assert Epoch(**json.loads(json.dumps(epoch.to_dict()))) == epoch


# Going on


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_run_that_was_stopped_ends_bit_by_bit_as_one_that_was_not(name, tmp_path):
    optimizer, path = OPTIMIZERS[name], tmp_path / "run.safetensors"
    options = {**QUICK, "evaluate": accuracy}
    whole = fit(loss_fn, PARAMS, optimizer, DATA, **options)
    for stop in (1, 3):
        with pytest.raises(KeyboardInterrupt):
            fit(loss_fn, PARAMS, optimizer, DATA, **options, checkpoint=path,
                callback=stop_at(epoch=stop))  # fmt: skip
    heard = []
    again = fit(loss_fn, PARAMS, optimizer, DATA, **options, checkpoint=path,
                callback=heard.append)  # fmt: skip
    assert [epoch.epoch for epoch in heard] == [4]
    assert equal(again[:2], whole[:2])
    assert told(again.history) == told(whole.history)
    # A finished run is read again, and not trained.
    done = fit(loss_fn, PARAMS, optimizer, DATA, **options, checkpoint=path,
               callback=stop_at(epoch=4))  # fmt: skip
    assert equal(done[:2], whole[:2])
    assert done.history == again.history


@pytest.mark.parametrize(
    ("change", "saying"),
    [
        ({"epochs": 5}, "epochs was 4, is 5"),
        ({"batch": 6}, "batch was 8, is 6"),
        ({"key": jax.random.key(7)}, "key was"),
        ({"data": (X, X[:, :2])}, "data was"),
        ({"params": jax.tree.map(jnp.ones_like, PARAMS)}, "params was"),
        ({"optimizer": OPTIMIZERS["ste"]}, "optimizer was"),
        (
            {"optimizer": sparse(schedule=swapjax.cubic(0, 9, every=2, initial=0.1))},
            "optimizer was",
        ),
    ],
)
def test_the_state_of_another_run_is_refused_and_untouched(change, saying, tmp_path):
    path = tmp_path / "run.safetensors"
    given = {"params": PARAMS, "optimizer": sparse(), "data": DATA, **QUICK}
    given |= {"checkpoint": path}
    with pytest.raises(KeyboardInterrupt):
        fit(loss_fn, **given, callback=stop_at(epoch=1))
    before = path.read_bytes()
    with pytest.raises(ValueError, match=rf"another run \({saying}"):
        fit(loss_fn, **{**given, **change})
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("name", "content", "saying"),
    [
        ("x.safetensors", b"not a file of ours", "not a readable safetensors file"),
        ("x.safetensors", None, "is not the state of a run of epochs"),
        ("no/x.safetensors", None, "no is not a folder"),
    ],
)
def test_a_checkpoint_that_is_none_is_refused(name, content, saying, tmp_path):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    elif path.parent.exists():
        safetensors.flax.save_file({"a": jnp.zeros(2)}, path)
    with pytest.raises(ValueError, match=saying):
        fit(loss_fn, PARAMS, optax.sgd(0.1), DATA, **QUICK, checkpoint=path)


# What it refuses


@pytest.mark.parametrize(
    ("change", "saying"),
    [
        ({"epochs": 0}, "epochs must be 1 or more, got 0"),
        ({"epochs": 1.5}, "epochs must be a whole number, got 1.5"),
        ({"batch": 0}, "batch must be 1 or more, got 0"),
        ({"batch": 27}, "batch: 27 examples wanted, data has 26"),
        ({"data": (X, X[:3])}, "data: must be a pytree of arrays with one leading"),
        ({"params": {"kernel": jnp.full((2, 2), jnp.nan)}}, r"params: NaN .*kernel"),
        ({"params": {"kernel": "x"}}, "params: kernel is a str"),
        ({"optimizer": optax.sgd(1e20)}, r"the loss became (nan|inf) in epoch [12];"),
    ],
)
def test_what_cannot_be_trained_on_is_an_error(change, saying):
    given = {"params": PARAMS, "optimizer": optax.sgd(0.1), "data": DATA, **QUICK}
    with pytest.raises(ValueError, match=saying):
        fit(loss_fn, **{**given, **change})


def test_a_loss_that_hides_gradients_from_growth_is_told_and_nothing_is_lost():
    def blind(params, batch):
        here = jax.tree.map(lambda p: p * (p != 0), params)
        return loss_fn(here, batch)

    optimizer = sparse(swapjax.rigl(), schedule=swapjax.constant(2, 9, every=2))
    with pytest.warns(UserWarning, match="Gradients were zero wherever masks are"):
        fitted = fit(blind, PARAMS, optimizer, DATA, **QUICK)
    assert "Gradients were zero" in fitted.history[-1].status
