"""VCAS as an objective: exact at first, without bias later, variances as they are."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from residual_loop import loss_fn, weights

from swapjax import backward
from swapjax.backward.vcas_control import Budget
from swapjax.backward.vcas_run import layout_for, run
from swapjax.training import Objective, fit

KEY = jax.random.key(0)
EXAMPLES = 12


@pytest.fixture(scope="module")
def params():
    return weights(KEY)


@pytest.fixture(scope="module")
def batch():
    x = jax.random.normal(jax.random.fold_in(KEY, 7), (EXAMPLES, 3))
    return x, jax.random.randint(KEY, (EXAMPLES,), 0, 3)


@pytest.fixture(scope="module")
def objective():
    return backward.vcas(loss_fn, every=2)


@pytest.fixture(scope="module")
def step(objective):
    return jax.jit(objective.gradient)


def test_the_first_state_keeps_all_and_gradients_are_exact(
    objective, step, params, batch
):
    state = objective.init(params, batch)
    assert {name: x.shape for name, x in state.activations.items()} == {
        "after in": (), "after blocks": (2,), "after out": ()
    }  # fmt: skip
    assert {name: x.shape for name, x in state.weights.items()} == {
        "in": (), "blocks": (2,), "out": ()
    }  # fmt: skip
    gradients, loss, new, told = step(params, state, batch, KEY)
    wanted, exact = jax.value_and_grad(loss_fn)(params, batch)
    assert float(loss) == pytest.approx(float(wanted), rel=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
        gradients,
        exact,
    )
    assert (new.step, new.adapted, told["backward"]) == (1, 0, 1)


def half_of(batch, first):
    """Half of the examples."""
    return jax.tree.map(lambda x: x[first : first + 6], batch)


def rates(state, examples, rows):
    """The state with other rates, and no adaptation next."""
    return state._replace(
        step=jnp.int32(0),
        activations=jax.tree.map(lambda x: 0 * x + examples, state.activations),
        weights=jax.tree.map(lambda x: 0 * x + rows, state.weights),
    )


def sampled(objective, params, batch, examples, rows):
    """Gradients of many draws, and what is left of the backward pass."""
    settings = objective.gradient.args[0]
    state = rates(objective.init(params, batch), examples, rows)
    layout = layout_for(settings, params, (), batch, KEY)

    def one(key):
        data = ((), batch, KEY)
        found = run(settings, layout, params, data, state, key=key)
        return found.gradients, layout.left(found.told)

    gradients, left = jax.jit(jax.vmap(one))(jax.random.split(KEY, 1000))
    return {n: np.asarray(x, np.float64) for n, x in gradients.items()}, left.mean()


def test_gradients_are_without_bias(objective, params, batch):
    found, left = sampled(objective, params, batch, 0.5, 0.6)
    exact = jax.grad(loss_fn)(params, batch)
    for name, draws in found.items():
        error = draws.std(axis=0) / np.sqrt(len(draws))
        assert np.all(abs(draws.mean(axis=0) - exact[name]) <= 5 * error + 1e-7), name
    # The last cut keeps half, those before it no more; rows are 0.6 of those.
    assert 0.35 < float(left) < 0.42


def test_an_adaptation_measures_variances(params, batch, monkeypatch):
    """Those of SGD as between halves of the batch, those of sampling as they come."""
    from swapjax.backward import vcas_adapt

    seen = []
    monkeypatch.setattr(
        vcas_adapt, "control", lambda state, x, *rest: seen.append(x) or state
    )
    objective = backward.vcas(loss_fn, every=1, repeats=2)
    begun = rates(objective.init(params, batch), 0.5, 0.5)
    settings = objective.gradient.args[0]
    assert settings.budget == Budget(0.025, 0.025, 0.01, 0.95, 0.6)

    def measured(key):
        vcas_adapt.adapt(settings, params, begun, batch, KEY, key)
        return seen.pop()

    found = jax.jit(jax.vmap(measured))(jax.random.split(KEY, 300))
    halves = [
        jax.grad(loss_fn)(params, jax.tree.map(lambda x, i=i: x[i : i + 6], batch))
        for i in (0, 6)
    ]
    apart = {
        name: np.asarray(halves[0][name] - halves[1][name], np.float64)
        for name in params
    }
    own = {name: np.sum(x**2) / 2 for name, x in apart.items()}
    np.testing.assert_allclose(found.sgd, sum(own.values()), rtol=1e-5)
    np.testing.assert_allclose(found.layers["in"], own["in"], rtol=1e-5)
    by_block = np.sum(apart["blocks"] ** 2, axis=(1, 2)) / 2
    np.testing.assert_allclose(found.layers["blocks"][0], by_block, rtol=1e-5)

    # The variance of sampled gradients of a half, at the same rates.
    spreads = [
        sum(np.var(x, axis=0).sum() for x in draws.values())
        for part in (0, 6)
        for draws in [sampled(objective, params, half_of(batch, part), 0.5, 1.0)[0]]
    ]
    whole = np.mean(spreads)
    assert float(found.activations.mean()) == pytest.approx(whole, rel=0.15)


def test_fit_resumes_and_tells_what_is_left(objective, params, batch, tmp_path):
    data = jax.tree.map(lambda x: jnp.concatenate([x, x]), batch)

    def run(epochs, **more):
        return fit(
            objective,
            params,
            optax.sgd(0.1),
            data,
            epochs=epochs,
            batch=EXAMPLES,
            key=KEY,
            **more,
        )

    whole = run(3)
    told = whole.history[-1].told
    assert set(told) == {"backward", "norm share", "added variance"}
    assert 0 < told["backward"] < 1
    assert told["norm share"] == pytest.approx(0.975)

    def stop(epoch):
        if epoch.epoch == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(3, checkpoint=tmp_path / "run", callback=stop)
    resumed = run(3, checkpoint=tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, resumed.params, whole.params)


def test_members_draw_apart_and_devices_are_refused(objective, params, batch):
    state = rates(objective.init(params, batch), 0.5, 0.5)
    two = jax.tree.map(lambda x: jnp.stack([x, x]), params)
    step = lambda params, batch: objective.gradient(params, state, batch, KEY)[0]  # noqa: E731
    for gradient in jax.tree.leaves(jax.jit(jax.vmap(step, (0, None)))(two, batch)):
        assert not np.array_equal(gradient[0], gradient[1])
    mesh = jax.make_mesh((1,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    rows, whole = (jax.sharding.PartitionSpec(*axes) for axes in (("d",), ()))
    with pytest.raises(ValueError, match="each device of a shard_map would set rates"):
        jax.eval_shape(
            jax.shard_map(step, mesh=mesh, in_specs=(whole, rows), out_specs=whole),
            params,
            batch,
        )


def test_keys_used_twice_are_counted(step, objective, params, batch):
    state = objective.init(params, batch)
    for _ in range(3):
        _, _, state, _ = step(params, state, batch, KEY)
    with pytest.raises(ValueError, match="key: 2 of 3 steps had the key"):
        backward.require_fresh_keys(state)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"activations": -0.1}, "activations must be a number, 0 or more, got -0.1"),
        ({"weights": "much"}, "weights must be a number, 0 or more, got 'much'"),
        ({"every": 0}, "every must be 1 or more, got 0"),
        ({"repeats": 1}, "repeats must be 2 or more, got 1"),
        ({"step": 0}, r"step must be in \(0, 1\], got 0"),
        ({"factor": 1}, r"factor must be in \(0, 1\), got 1"),
        ({"smoothing": 1}, r"smoothing must be in \[0, 1\), got 1"),
    ],
)
def test_arguments_out_of_range(options, said):
    with pytest.raises(ValueError, match=said):
        backward.vcas(loss_fn, **options)


def test_bad_input(objective, params, batch):
    with pytest.raises(ValueError, match="must multiply a leaf of params with data"):
        backward.vcas(lambda p, b: jnp.mean(p["in"])).init(params, batch)
    with pytest.raises(ValueError, match="batch: 2 parts of two examples or more"):
        objective.init(params, jax.tree.map(lambda x: x[:3], batch))
    state = objective.init(params, batch)._replace(activations={})
    with pytest.raises(ValueError, match="state: it is of another network"):
        objective.gradient(params, state, batch, KEY)
    own = Objective(lambda *_: None, gradient=lambda *_: None)
    with pytest.raises(ValueError, match="an objective with a gradient of its own"):
        backward.vcas(own)
