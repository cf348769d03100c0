"""Analog memory: its formula, its zeros, and gradients at the weights as read."""

import jax
import jax.numpy as jnp
import network
import numpy as np
import pytest
from gradient_rows import grad, make

import swapjax
from swapjax.corruptions import AnalogMemory, in_analog_memory
from swapjax.gradients.build import per_example_gradients
from swapjax.gradients.noise import GradientNoise

KEY = jax.random.key(0)
KERNEL = jax.random.normal(jax.random.key(1), (300, 200))
ALL = AnalogMemory(
    levels=9, multiplicative=0.1, additive=0.05, drift=0.05, drift_deviation=0.02,
    time=100.0,
)  # fmt: skip
SHORT = AnalogMemory(levels=9, additive=0.05)


def read(kernel=KERNEL, key=KEY, **options):
    return np.asarray(AnalogMemory(**options).read(key, {"kernel": kernel})["kernel"])


def test_a_memory_of_nothing_changes_nothing():
    np.testing.assert_array_equal(read(), KERNEL)
    np.testing.assert_array_equal(read(drift=0.1, drift_deviation=0.1), KERNEL)


@pytest.mark.parametrize(("levels", "size"), [(2, 1), (9, 1e-35), (300, 1e30)])
def test_levels_are_the_nearest(levels, size):
    kernel = KERNEL[:20] * size
    exact = np.asarray(kernel, np.float64)
    gap = np.abs(exact).max() / (levels - 1)
    got = read(kernel, levels=levels)
    assert np.abs(got - exact).max() <= gap * (0.5 + 1e-4)
    assert len(np.unique(np.round(got / gap))) <= 2 * levels - 1
    np.testing.assert_allclose(got / gap, np.round(got / gap), atol=1e-4)


def test_read_noise_is_in_its_units():
    exact = np.asarray(KERNEL)
    share = (read(multiplicative=0.1) / exact - 1).ravel()
    assert abs(share.mean()) < 0.002
    assert abs(share.std() / 0.1 - 1) < 0.02
    noise = (read(additive=0.05) - exact) / np.abs(exact).max()
    assert abs(noise.mean()) < 0.001
    assert abs(noise.std() / 0.05 - 1) < 0.02
    assert abs(np.corrcoef(noise.ravel(), exact.ravel())[0, 1]) < 0.02


def test_each_weight_drifts_by_a_power_of_time_of_its_own():
    exact = np.asarray(KERNEL)
    options = {"drift": 0.05, "drift_deviation": 0.02}
    nu = -np.log(read(time=100.0, **options) / exact) / np.log(100)
    assert nu.min() > -1e-6
    assert abs(np.median(nu) - 0.05) < 0.001
    # Quartiles, which those cut off at 0 leave where they are.
    quartiles = np.percentile(nu, [25, 75])
    assert abs(np.diff(quartiles)[0] / (1.349 * 0.02) - 1) < 0.03
    later = -np.log(read(time=1e6, **options) / exact) / np.log(1e6)
    np.testing.assert_allclose(later, nu, atol=1e-5)
    np.testing.assert_allclose(read(time=10, drift=0.1), exact * 10**-0.1, rtol=1e-5)


def test_pruned_weights_stay_zero_unless_asked():
    kernel = jnp.where(KERNEL > 0, KERNEL, 0)
    got = ALL.read(KEY, {"kernel": kernel})["kernel"]
    assert not bool(jnp.any((kernel == 0) & (got != 0)))
    noisy = read(kernel, additive=0.05, noisy_zeros=True)
    assert np.mean(noisy[np.asarray(kernel) == 0] != 0) > 0.99
    assert not read(jnp.zeros((3, 3)), levels=4, additive=0.1, noisy_zeros=True).any()


def test_leaves_are_stored_that_should_be():
    params = {
        "kernel": KERNEL.astype(jnp.bfloat16), "bias": jnp.ones(5), "key": KEY,
        "steps": jnp.ones((2, 2), jnp.int32),
    }  # fmt: skip
    got = ALL.read(KEY, params)
    assert got["kernel"].dtype == jnp.bfloat16
    assert bool(jnp.any(got["kernel"] != params["kernel"]))
    assert all(got[name] is params[name] for name in ("bias", "key", "steps"))
    got = ALL.read(KEY, params, leaves=lambda path: path == "bias")
    assert got["kernel"] is params["kernel"]
    assert bool(jnp.all(got["bias"] != params["bias"]))


def test_jit_reads_the_same_and_keys_differ():
    params = network.make()
    eager, again = ALL.read(KEY, params), jax.jit(ALL.read)(KEY, params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), eager, again)
    other = ALL.read(jax.random.key(1), params)
    assert bool(jnp.all(eager["fc2"]["kernel"] != other["fc2"]["kernel"]))


def test_gradients_are_those_at_the_weights_as_read():
    params, batch = network.make(), network.data(30)
    loss = in_analog_memory(network.loss_fn, SHORT, KEY)
    as_read = SHORT.read(KEY, params)
    value, got = jax.jit(jax.value_and_grad(loss))(params, batch)
    wanted = jax.jit(jax.grad(network.loss_fn))(as_read, batch)
    assert abs(value - network.loss_fn(as_read, batch)) < 1e-6
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), got, wanted)
    ahead = jax.jit(lambda p: jax.jvp(lambda p: loss(p, batch), (p,), (p,)))(params)[1]
    backward = sum(map(jnp.vdot, jax.tree.leaves(got), jax.tree.leaves(params)))
    assert abs(ahead - backward) < 1e-5


def test_each_row_may_be_read_with_a_key_of_its_own():
    params, (x, y) = network.make(), network.data(30)
    keys = jax.random.split(jax.random.key(2), 30)
    loss = in_analog_memory(network.loss_fn, SHORT)
    plan = swapjax.plan(params, 0.5)
    g = per_example_gradients(loss, params, (x, y, keys), plan, storage="stored")
    for i in (0, 17):
        one = grad(SHORT.read(keys[i], params), (x[i : i + 1], y[i : i + 1]))
        np.testing.assert_allclose(g.matrices[0][i], one["fc1"]["kernel"], atol=1e-5)
    with pytest.raises(ValueError, match="batch must end with a PRNG key an example"):
        loss(params, (x, y))


@pytest.mark.parametrize(
    "corruption", [SHORT, GradientNoise(3.0, 0.4, degrees=3)], ids=["memory", "tails"]
)
def test_rows_that_are_stored_and_recomputed_are_corrupted_alike(corruption):
    params, data, target = make(10, dtype=jnp.float32)
    v = jax.random.normal(KEY, (10,))

    def rows(storage, key=KEY):
        return per_example_gradients(
            network.loss_fn, params, data, target,
            corruption=corruption, key=key, storage=storage, chunk=4,
        ).pull_back(v)  # fmt: skip

    stored = rows("stored")
    assert bool(jnp.any(stored[0] != rows("stored", jax.random.key(1))[0]))
    for a, b in zip(stored, rows("matrix-free"), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"multiplicative": -0.1}, "multiplicative must be a number, 0 or more"),
        ({"additive": float("nan")}, "additive must be a number, 0 or more, got nan"),
        ({"levels": 1}, "levels must be 2 or more, got 1"),
        ({"levels": 2**16 + 1}, "levels must be 65536 or less"),
        ({"levels": 4.5}, "levels must be a whole number"),
        ({"drift": "fast"}, "drift must be a number, 0 or more, got 'fast'"),
        ({"drift_deviation": -1}, "drift_deviation must be a number, 0 or more"),
        ({"time": 0.5}, "time must be a number, 1 or more"),
    ],
)
def test_bad_memory_is_an_error(arguments, message):
    with pytest.raises(ValueError, match=message):
        AnalogMemory(**arguments)
