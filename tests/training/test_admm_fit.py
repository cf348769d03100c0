"""SAFE in the training loop: how it goes on, and what it tells of the cut to come."""

import functools

import jax
import jax.numpy as jnp
import network
import optax
import pytest
from interrupts import stop_at
from sparse_runs import initial
from trees import equal

import swapjax
from swapjax.training import admm, fit, residuals

X = jax.random.normal(jax.random.key(1), (26, 6))
DATA = (X, jnp.tanh(X[:, :2]))
# 26 examples make three batches of 8 an epoch.
SETTINGS = {"epochs": 4, "batch": 8, "key": jax.random.key(0)}


def safe_parts():
    """The objective and the optimizer of SAFE."""
    objective = swapjax.sharpness_aware(network.loss_fn, 0.1)
    return objective, admm(
        optax.sgd(0.05), sparsity=0.7, steps=12, every=5, penalty=0.7
    )


def told(history):
    return [{**epoch.to_dict(), "seconds": 0} for epoch in history]


def test_a_run_that_was_stopped_ends_bit_for_bit_as_one_that_was_not(tmp_path):
    objective, tx = safe_parts()
    params = initial()
    run = functools.partial(fit, objective, params, tx, DATA, **SETTINGS)
    whole = run()
    path = tmp_path / "run.safetensors"
    with pytest.raises(KeyboardInterrupt):
        run(checkpoint=path, callback=stop_at(epoch=2))
    again = run(checkpoint=path)
    assert equal((whole.params, whole.state), (again.params, again.state))
    assert told(whole.history) == told(again.history)
    # What the history tells is of the cut to come, which takes less and less.
    assert [epoch.sparsity for epoch in whole.history] == [pytest.approx(50 / 72)] * 4
    last = whole.history[-1]
    found = residuals(whole.state, whole.params)
    assert (last.told["residual"], last.told["cut"]) == pytest.approx(found)
    assert not last.status
    other = fit(objective, params, tx, DATA, **SETTINGS | {"key": jax.random.key(1)})
    assert not equal(whole.params, other.params)


def test_steps_that_are_not_those_of_the_run_are_refused():
    objective, tx = safe_parts()
    with pytest.raises(ValueError, match="its masks change until update 12"):
        fit(objective, initial(), tx, DATA, **SETTINGS | {"epochs": 3})
