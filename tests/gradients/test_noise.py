"""Noise in rows: which entries it hits, and that all products see the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from gradient_rows import STORAGES, by_grad, directions, make, products
from network import loss_fn
from problems import explicit
from trees import flat

from swapjax.gradients.build import per_example_gradients
from swapjax.gradients.noise import GradientNoise


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("unit", ["coordinate", "row"])
def test_every_product_sees_the_same_noise(x64, storage, unit):
    params, data, target = make(10)
    noise = GradientNoise(3.0, 0.4, unit)
    options = {"corruption": noise, "key": jax.random.key(5), "chunk": 4}
    stored = per_example_gradients(
        loss_fn, params, data, target, storage="stored", **options
    )
    g = explicit(stored)
    rows = per_example_gradients(
        loss_fn, params, data, target, storage=storage, **options
    )
    v, r = directions(target, jnp.float64), jax.random.normal(jax.random.key(3), (10,))
    got = products(rows, v, r, tuple(d > 0.3 for d in v))
    np.testing.assert_allclose(got["project"], g @ flat(v), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(flat(got["pull_back"]), r @ g, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(got["gram"], g @ g.T, rtol=1e-10, atol=1e-12)


def test_coordinate_noise_hits_its_share_of_every_row(x64):
    params, data, target = make(200)
    clean = by_grad(params, data)
    rows = per_example_gradients(
        loss_fn, params, data, target,
        corruption=GradientNoise(3.0, 0.4), key=jax.random.key(0), storage="stored",
    )  # fmt: skip
    noisy = explicit(rows)
    hit = ~np.isclose(noisy, clean, rtol=1e-9, atol=1e-12)
    assert set(hit.sum(axis=1)) == {int(0.4 * target.layout.total)}
    assert len({row.tobytes() for row in hit}) > 190
    scale = 3.0 * np.std(clean, axis=1, ddof=1, keepdims=True)
    standardised = ((noisy - clean) / scale)[hit]
    assert abs(standardised.mean()) < 0.05
    assert abs(standardised.std() - 1) < 0.05


def test_row_noise_hits_its_share_of_the_rows(x64):
    params, data, target = make(50)
    clean = by_grad(params, data)
    rows = per_example_gradients(
        loss_fn, params, data, target,
        corruption=GradientNoise(1.0, 0.3, "row"), key=jax.random.key(0),
        storage="stored",
    )  # fmt: skip
    noisy = explicit(rows)
    hit = ~np.isclose(noisy, clean, rtol=1e-9, atol=1e-12)
    assert sorted(hit.sum(axis=1)) == [0] * 35 + [target.layout.total] * 15


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("degrees", [1, 2.0, 3, 10.5])
def test_tails_are_those_of_students_t(degrees, dtype):
    shapes = (200, 300), (40_000,)
    row = tuple(jnp.zeros(shape, dtype).at[0].set(1) for shape in shapes)
    noise = GradientNoise(1.0, 1.0, degrees=degrees)
    keys = jax.random.split(jax.random.key(1))
    noisy = noise(*keys, jnp.asarray(0), 1, row)
    assert [leaf.dtype for leaf in noisy] == [dtype, dtype]
    drawn = flat(noisy).astype(np.float64) - flat(row).astype(np.float64)
    drawn /= np.std(flat(row).astype(np.float64), ddof=1)
    if degrees > 2:
        drawn *= np.sqrt(degrees / (degrees - 2))
    # Rounding to bfloat16 makes steps, smaller than what is allowed.
    levels = np.array([0.001, 0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98, 0.999])
    found = np.mean(drawn[:, None] <= scipy.stats.t.ppf(levels, degrees), axis=0)
    allowed = 5 * np.sqrt(levels * (1 - levels) / drawn.size)
    allowed += 0.002 if dtype == "bfloat16" else 0
    np.testing.assert_array_less(np.abs(found - levels), allowed)


def test_gaussian_noise_is_as_it_was_drawn_before_there_were_tails():
    row = (jnp.arange(6.0).reshape(2, 3), jnp.ones(2))
    keys = jax.random.split(jax.random.key(7))
    noisy = GradientNoise(2.0, 0.5)(*keys, jnp.asarray(3), 10, row)
    before = [4.242911, 1, -3.774987, 3, 6.6199646, 5, -0.71936846, 1]
    np.testing.assert_allclose(flat(noisy), before, rtol=1e-6)


@pytest.mark.parametrize(("scale", "proportion"), [(0.0, 0.5), (2.0, 0.0)])
def test_noise_of_nothing_changes_nothing(x64, scale, proportion):
    params, data, target = make(6)
    rows = per_example_gradients(
        loss_fn, params, data, target,
        corruption=GradientNoise(scale, proportion), key=jax.random.key(0),
    )  # fmt: skip
    v = directions(target, jnp.float64)
    np.testing.assert_allclose(
        rows.project(v), by_grad(params, data) @ flat(v), rtol=1e-10
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1.0, 0.5), "noise scale must be 0 or more"),
        ((float("nan"), 0.5), "noise scale must be 0 or more"),
        ((1.0, 1.5), r"noise proportion must be in \[0, 1\]"),
        ((1.0, 0.5, "column"), "noise unit must be"),
        ((1.0, 0.5, "row", 0.5), "noise degrees must be None or a number from 1"),
        ((1.0, 0.5, "row", float("inf")), "noise degrees must be"),
    ],
)
def test_bad_noise_is_an_error(arguments, message):
    with pytest.raises(ValueError, match=message):
        GradientNoise(*arguments)
