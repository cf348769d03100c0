"""The training loop with losses that have a state and a key."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from interrupts import stop_at
from trees import equal

import swapjax
from swapjax.core.objective import value_and_grad
from swapjax.loops import steps
from swapjax.training import Objective, fit

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (26, 6))
PARAMS = {"kernel": jax.random.normal(jax.random.key(2), (6, 4)), "counter": 3}
QUICK = {"epochs": 4, "batch": 8, "key": KEY}  # three batches an epoch


def plain(params, x):
    return jnp.mean((x @ params["kernel"] - x[:, :4]) ** 2)


def noisy(params, state, x, key):
    """Noise on what it reads, less of it at each step."""
    noise = jax.random.normal(key, x.shape) / (1 + state["step"])
    value = plain(params, x + noise)
    seen = {"step": state["step"], "noise": jnp.mean(noise**2)}
    return value, {"step": state["step"] + 1, "last": noise}, seen


def start(params, batch):
    del params
    return {"step": 0, "last": jnp.zeros_like(batch)}


NOISY = Objective(noisy, init=start)


def own_gradient(params, state, batch, key):
    def loss(params):
        value, new, aux = noisy(params, state, batch, key)
        return value, (new, aux)

    (value, (new, aux)), slopes = value_and_grad(loss, params)
    return jax.tree.map(lambda g: 2 * g, slopes), value, new, aux


OBJECTIVES = {
    "noisy": NOISY,
    "own gradient": Objective(noisy, init=start, gradient=own_gradient),
    "replays": Objective(noisy, init=start, replays=3),
}


def sparse(every, last):
    return swapjax.sparse(
        optax.adam(0.01), swapjax.rigl(), sparsity=0.5, key=jax.random.key(3),
        schedule=swapjax.constant(0, last, every=every),
    )  # fmt: skip


def told(history):
    return [{**epoch.to_dict(), "seconds": 0} for epoch in history]


def accuracy(params):
    return {"accuracy": -float(plain(params, X)), "norm": jnp.sum(params["kernel"])}


def by_hand(objective, optimizer, epochs):
    """The loop as its words say it."""
    params = jax.tree.map(jnp.asarray, PARAMS)
    floats = lambda p: {**p, "counter": jnp.zeros(())}  # noqa: E731
    state, memory = optimizer.init(floats(params)), start(params, X[:8])
    slopes_of, update = jax.jit(objective.value_and_grad), jax.jit(optimizer.update)
    losses, seen, keys = [], [], iter(steps.step_keys(KEY, 0, 100))
    for epoch in range(epochs):
        order = jax.random.permutation(jax.random.fold_in(KEY, epoch), 26)
        for rows in order[:24].reshape(3, 8):
            for _ in range(objective.replays):
                slopes, loss, memory, aux = slopes_of(
                    params, memory, X[rows], next(keys)
                )
                updates, state = update(slopes, state, floats(params))
                kernel = params["kernel"] + updates["kernel"]
                params = {**params, "kernel": kernel}
                losses.append(float(loss))
                seen.append([float(aux["step"]), float(aux["noise"])])
    shape = (epochs, 3 * objective.replays)
    return params, np.reshape(losses, shape), np.reshape(seen, (*shape, 2))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_takes_the_steps_of_a_loop_by_hand(name):
    objective, optimizer = OBJECTIVES[name], optax.adam(0.01)
    fitted = fit(objective, PARAMS, optimizer, X, **QUICK, evaluate=accuracy)
    params, losses, seen = by_hand(objective, optimizer, 4)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4)  # noqa: E731
    close(fitted.params["kernel"], params["kernel"])
    assert int(fitted.params["counter"]) == 3
    history = fitted.history
    close([e.loss for e in history], losses.mean(1))
    close([e.told["step"] for e in history], seen[..., 0].mean(1))
    close([e.told["noise"] for e in history], seen[..., 1].mean(1))
    each = 3 * objective.replays
    assert [e.steps for e in history] == [each, 2 * each, 3 * each, 4 * each]
    assert history[-1].accuracy == accuracy(fitted.params)["accuracy"]
    assert history[-1].told["norm"] == accuracy(fitted.params)["norm"]


@pytest.mark.parametrize("every", [2, 10])  # in one program, in two
def test_a_run_that_was_stopped_ends_bit_by_bit_as_one_that_was_not(every, tmp_path):
    path, optimizer = tmp_path / "run.safetensors", sparse(every, 12)
    objective = Objective(noisy, init=start, gradient=own_gradient, replays=2)
    options = {**QUICK, "evaluate": accuracy}
    whole = fit(objective, PARAMS, optimizer, X, **options)
    with pytest.raises(KeyboardInterrupt):
        fit(objective, PARAMS, optimizer, X, **options, checkpoint=path,
            callback=stop_at(epoch=2))  # fmt: skip
    again = fit(objective, PARAMS, optimizer, X, **options, checkpoint=path)
    assert equal(again[:2], whole[:2])
    assert told(again.history) == told(whole.history)
    assert whole.history[-1].sparsity == 0.5


def test_one_program_and_two_are_the_same_bit_for_bit(monkeypatch):
    from swapjax.training import two_programs

    objective, optimizer = OBJECTIVES["replays"], sparse(10, 30)
    two = fit(objective, PARAMS, optimizer, X, **QUICK)
    monkeypatch.setattr(two_programs, "mask_steps_every", lambda state: 0)
    one = fit(objective, PARAMS, optimizer, X, **QUICK)
    assert equal(two[:2], one[:2])
    assert told(two.history) == told(one.history)


def test_a_run_compiles_its_steps_once():
    traces = []

    def counted(params, state, batch, key):
        traces.append(1)
        return noisy(params, state, batch, key)

    fit(Objective(counted, init=start), PARAMS, optax.sgd(0.1), X, **QUICK)
    assert len(traces) == 1


def test_keys_of_steps_are_no_keys_of_orders_and_follow_the_number_of_the_step():
    keys = jax.random.key_data(steps.step_keys(KEY, 0, 300)).tolist()
    later = jax.random.key_data(steps.step_keys(KEY, 100, 5)).tolist()
    assert later == keys[100:105]
    orders = [jax.random.fold_in(KEY, i) for i in range(300)]
    orders = jax.random.key_data(jnp.stack(orders)).tolist()
    assert len({tuple(k) for k in keys + orders}) == 600


def test_the_run_of_another_objective_is_refused(tmp_path):
    path = tmp_path / "run.safetensors"
    options = {**QUICK, "epochs": 1, "checkpoint": path}
    fit(NOISY, PARAMS, optax.sgd(0.1), X, **options)
    with pytest.raises(ValueError, match=r"another run \(objective"):
        fit(OBJECTIVES["own gradient"], PARAMS, optax.sgd(0.1), X, **options)


def test_a_callback_ends_training():
    def end(epoch):
        if epoch.epoch == 2:
            raise StopIteration

    fitted = fit(plain, PARAMS, optax.sgd(0.1), X, **QUICK, callback=end)
    assert [epoch.epoch for epoch in fitted.history] == [1, 2]
    with pytest.warns(UserWarning, match="not as sparse as they should be"):
        fit(plain, PARAMS, sparse(2, 12), X, **QUICK, callback=end)


def test_a_run_that_a_callback_ended_stays_ended(tmp_path):
    def end(epoch):
        if epoch.epoch == 2:
            raise StopIteration("it is flat")

    options = {**QUICK, "checkpoint": tmp_path / "run.safetensors"}
    with pytest.warns(UserWarning, match="^fit: a callback ended training: it is flat"):
        first = fit(plain, PARAMS, optax.sgd(0.1), X, **options, callback=end)
    assert first.history[-1].status == "a callback ended training: it is flat"
    with pytest.warns(UserWarning, match="^fit: a callback ended training: it is flat"):
        again = fit(plain, PARAMS, optax.sgd(0.1), X, **options)
    assert told(again.history) == told(first.history)
    assert equal(again[:2], first[:2])


@pytest.mark.parametrize(
    ("change", "saying"),
    [
        ({"loss": lambda p, s, b, k: (b, s, {})}, "objective must return one scalar"),
        ({"loss": lambda p, s, b, k: (plain(p, b), (), {})}, "must keep its tree"),
        (
            {"loss": lambda p, s, b, k: (plain(p, b), {**s, "step": 0.5}, {})},
            "shapes and dtypes",
        ),
        (
            {"loss": lambda p, s, b, k: (plain(p, b), s, {"all": b})},
            r"aux must be a dict of scalars by name, got \{'all': \(8, 6\)\}",
        ),
        ({"replays": 0}, "replays of the objective must be 1 or more, got 0"),
    ],
)
def test_what_cannot_be_minimised_is_an_error(change, saying):
    objective = Objective(**{"loss": noisy, "init": start, **change})
    with pytest.raises(ValueError, match=saying):
        fit(objective, PARAMS, optax.sgd(0.1), X, **QUICK)


@pytest.mark.parametrize("found", [{"norm": 1.0}, {"accuracy": 1.0, "step": 2.0}])
def test_an_evaluation_without_accuracy_or_with_names_in_use_is_an_error(found):
    with pytest.raises(ValueError, match="evaluate must return an accuracy"):
        fit(NOISY, PARAMS, optax.sgd(0.1), X, **QUICK, evaluate=lambda params: found)
