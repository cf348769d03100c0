"""Losses that return more than a number, and that draw at random."""

import jax
import jax.numpy as jnp
import network
import numpy as np
import optax
import pytest
from prune_runs import KEY, setting
from trees import equal

import swapjax
from swapjax import FineTune, Loss
from swapjax.training import fit

PARAMS, DATA = setting()
STORED = {"storage": "stored", "method": swapjax.obd()}


def plain(params, batch):
    return network.loss_fn(params, batch)


def with_aux(params, batch):
    return plain(params, batch), {"size": jnp.sum(batch[0] ** 2), "shape": batch[0]}


def dropped(params, batch, key):
    x, y = batch
    kept = jax.random.bernoulli(key, 0.5, x.shape)
    return plain(params, (jnp.where(kept, 2 * x, 0), y))


def run(loss, **options):
    given = {"sparsity": 0.8, "samples": 60, "key": KEY, "method": swapjax.obd()}
    return swapjax.prune(loss, PARAMS, DATA, **{**given, **options})


def test_an_aux_changes_nothing_in_prune():
    assert equal(run(Loss(with_aux, has_aux=True)).params, run(plain).params)
    target = swapjax.plan(PARAMS, 0.5, loss_fn=Loss(with_aux, has_aux=True), batch=DATA)
    assert target.paths == ("fc1/kernel", "fc2/kernel")


@pytest.mark.parametrize("where", ["arrays", "batches"])
def test_a_row_has_a_key_of_its_own_in_every_pass(where):
    loss = Loss(dropped, has_key=True)
    data = DATA if where == "arrays" else [tuple(x[:90] for x in DATA)]
    pruned = swapjax.prune(loss, PARAMS, data, sparsity=0.8, samples=30, batch=2,
                           key=KEY, **STORED)  # fmt: skip
    again = swapjax.prune(loss, PARAMS, data, sparsity=0.8, samples=30, batch=2,
                          key=KEY, **{**STORED, "storage": "matrix-free"})  # fmt: skip
    assert equal(pruned.masks, again.masks)
    assert pruned.history[0].loss_before == again.history[0].loss_before
    # By hand: the examples of the stage, and the keys that are split from its key.
    draw = jax.random.split(jax.random.fold_in(KEY, 0), 3)[0]
    keys = jax.random.split(jax.random.fold_in(draw, np.uint32(2**32 - 1)), 60)
    index = jnp.arange(60)
    if where == "arrays":
        index = jax.random.choice(draw, 200, (60,), replace=False)
    rows = [x[index].reshape(30, 2, *x.shape[1:]) for x in map(jnp.asarray, DATA)]
    losses = [
        dropped(PARAMS, (x, y), k) for x, y, k in zip(*rows, keys[::2], strict=True)
    ]
    np.testing.assert_allclose(
        pruned.history[0].loss_before, np.mean(losses), rtol=1e-5
    )
    other = swapjax.prune(loss, PARAMS, data, sparsity=0.8, samples=30, batch=2,
                          key=jax.random.key(5), **STORED)  # fmt: skip
    assert other.history[0].loss_before != pruned.history[0].loss_before


def test_layers_validation_criterion_and_fine_tuning_take_keys():
    loss, tune = Loss(dropped, has_key=True), FineTune(optax.sgd(1e-2), 5, batch=20)
    pruned = run(
        loss, method=swapjax.wanda(), finetune=tune, validation=0.25, criterion=plain
    )
    assert swapjax.density(pruned.masks) == pytest.approx(0.2)
    options = {"levels": (0.5,), "samples": 60, "key": KEY}
    own = tuple(x[:50] for x in DATA)
    table = swapjax.sensitivity(loss, PARAMS, DATA, validation=own, **options)
    assert np.isfinite(table.losses).all()


def test_fit_tells_what_is_beside_the_loss_and_gives_steps_keys():
    options = {"epochs": 2, "batch": 50, "key": KEY}
    told = fit(Loss(with_aux, has_aux=True), PARAMS, optax.sgd(0.1), DATA, **options)
    silent = fit(plain, PARAMS, optax.sgd(0.1), DATA, **options)
    assert equal(told.params, silent.params)
    assert told.history[0].told.keys() == {"size"}
    # What batches are is another question than in which order they come.
    sizes = [float(jnp.sum(x**2)) for x in np.split(np.asarray(DATA[0]), 4)]
    assert told.history[0].told["size"] == pytest.approx(np.mean(sizes), rel=1e-4)

    loss, drawn = Loss(dropped, has_key=True), []
    for key in (KEY, KEY, jax.random.key(1)):
        given = {**options, "key": key}
        drawn.append(fit(loss, PARAMS, optax.sgd(0.1), DATA, **given))
    assert equal(drawn[0].params, drawn[1].params)
    assert not equal(drawn[0].params, drawn[2].params)
    losses = [epoch.loss for epoch in drawn[0].history]
    assert losses[0] > silent.history[0].loss


@pytest.mark.parametrize(
    ("call", "saying"),
    [
        (
            lambda: run(Loss(dropped, has_key=True), key=None),
            "key: loss_fn draws with one, got None",
        ),
        (lambda: run(with_aux), "a tuple of 2; return the loss alone, or hand over"),
        (lambda: run(Loss(plain, has_aux=True)), r"a pair \(loss, aux\), as has_aux"),
        (lambda: run(Loss(lambda p, b, k: b[0], has_key=True)), "one scalar, the mean"),
        (
            lambda: run(
                Loss(dropped, has_key=True), method=swapjax.wanda(), sequential=True
            ),
            "loss_fn: draws with a key, which sequential does not",
        ),
        (lambda: Loss(3), "function must be one of params, got 3"),
        (
            lambda: swapjax.plan(
                PARAMS, 0.5, loss_fn=Loss(dropped, has_key=True), batch=DATA
            ),
            "loss_fn: draws with a key, which prune and fit hand over",
        ),
    ],
)
def test_what_such_a_loss_cannot_be_is_an_error(call, saying):
    with pytest.raises(ValueError, match=saying):
        call()
