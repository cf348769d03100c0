"""How noisy rows are, against NumPy and against noise that is known."""

import jax
import jax.numpy as jnp
import network
import numpy as np
import pytest

from swapjax import GradientNoise, plan
from swapjax.gradients import noise_level, per_example_gradients

KEY = jax.random.key(4)


def rows_of(noise=None, n=200, dead=0, **options):
    """Rows of a wide network, some of whose inputs are dead, and G in NumPy."""
    params = network.make(inputs=30, hidden=40)
    x, y = network.data(n, inputs=30)
    x = x.at[:, :dead].set(0.0)
    rows = per_example_gradients(
        network.loss_fn, params, (x, y), plan(params, 0.5), corruption=noise, key=KEY,
        **options,
    )  # fmt: skip
    g = [np.asarray(m, np.float64).reshape(n, -1) for m in rows.matrices]
    return rows, np.concatenate(g, axis=1)


def test_a_level_is_what_its_names_say():
    rows, g = rows_of(GradientNoise(1.0, 0.5), n=40)
    level = noise_level(rows)
    squares, energies = np.mean(g**2, axis=0), np.sum(g**2, axis=1)
    unit = g / np.sqrt(energies)[:, None]
    values = np.linalg.eigvalsh(unit @ unit.T)
    wanted = (
        np.quantile(squares, 0.02, method="inverted_cdf") / squares.mean(),
        np.median(values),
        energies.max() / np.median(energies),
        np.sort(energies)[-2:].sum() / energies.sum(),
    )
    np.testing.assert_allclose(level, wanted, rtol=1e-4)


def test_weights_that_are_gone_tell_nothing():
    params = network.make()
    params["fc1"]["kernel"] = params["fc1"]["kernel"].at[:3].set(0.0)
    target, data = plan(params, 0.5), network.data(20)
    rows = [
        per_example_gradients(network.loss_fn, params, data, target, storage=storage)
        for storage in ("stored", "matrix-free")
    ]
    g = np.concatenate([np.asarray(m).reshape(20, -1) for m in rows[0].matrices], 1)
    kept = np.concatenate([k.ravel() != 0 for k in network.kernels(params)])
    squares = np.mean(g[:, kept] ** 2, axis=0)
    for each in rows:
        found = jax.jit(noise_level)(each)
        wanted = np.quantile(squares, 0.02, method="inverted_cdf") / squares.mean()
        np.testing.assert_allclose(found.columns, wanted, rtol=1e-4)


@pytest.mark.parametrize("scale", [0.5, 1.0, 4.0])
def test_noise_on_entries_is_measured(scale):
    _, clean = rows_of(dead=3)
    rows, noisy = rows_of(GradientNoise(scale, 1.0), dead=3)
    share = np.sum((noisy - clean) ** 2) / np.sum(noisy**2)
    level = noise_level(rows)
    assert share * 0.7 < level.columns < share + 0.02
    assert share * 0.8 < level.spectrum < 1


def test_noise_on_rows_makes_them_heavy():
    before = noise_level(rows_of(dead=3)[0])
    after = noise_level(rows_of(GradientNoise(9.0, 0.03, "row"), dead=3)[0])
    assert after.heaviest > 3 * before.heaviest
    assert after.heavy > 2 * before.heavy
    assert abs(after.spectrum - before.spectrum) < 0.1


def test_the_unit_of_the_loss_does_not_count():
    rows, _ = rows_of(GradientNoise(1.0, 1.0), n=40)
    scaled = jax.tree.map(lambda m: 1e4 * m, rows.matrices)
    other = type(rows)(scaled, rows.source)
    np.testing.assert_allclose(noise_level(rows), noise_level(other), rtol=1e-4)
    assert all(jnp.isfinite(x) for x in noise_level(rows))
