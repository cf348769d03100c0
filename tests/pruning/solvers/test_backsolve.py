"""The back-solve and the factored systems behind it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import N, explicit, setting
from trees import flat

from swapjax.pruning.solvers.backsolve import backsolve
from swapjax.pruning.solvers.cholesky import factor

pytestmark = pytest.mark.usefixtures("x64")


@pytest.mark.parametrize("ridge", [1e-3, 1.0])
def test_factor_solves(ridge):
    a = np.random.default_rng(0).normal(size=(6, 9))
    h = a @ a.T
    got = jax.jit(factor)(jnp.asarray(h), ridge)
    damped = h + ridge * np.eye(6)
    np.testing.assert_allclose(got.solve(np.eye(6)), np.linalg.inv(damped))
    root = np.asarray(got.inverse_root())
    np.testing.assert_allclose(root.T @ root, np.linalg.inv(damped))
    assert not got.raised
    assert got.ridge == ridge


def test_a_singular_matrix_is_damped_and_told():
    a = np.ones((5, 5))
    got = jax.jit(factor)(jnp.asarray(a), 0.0)
    assert got.raised
    assert 0 < got.ridge < 1e-12
    assert np.isfinite(got.solve(np.ones(5))).all()
    nothing = factor(jnp.zeros((3, 3)), 0.0)
    assert nothing.raised
    assert np.isfinite(nothing.lower).all()
    # NaN is beyond help, but it ends.
    assert factor(jnp.full((2, 2), jnp.nan), 0.1).raised


# Up to 24 rows are solved as n x n alone, unless told that this is many.
@pytest.mark.parametrize("small", [0, 24])
@pytest.mark.parametrize("kept", [0, 1, 5, 17, 18, 24, 25, 72])
def test_backsolve_is_the_augmented_least_squares(kept, small, monkeypatch):
    monkeypatch.setattr("swapjax.pruning.solvers.backsolve._SMALL", small)
    problem, _ = setting(jnp.float64)
    g = explicit(problem.rows)
    rng = np.random.default_rng(kept)
    keep = np.zeros(72, bool)
    keep[rng.permutation(72)[:kept]] = True
    support = tuple(
        jnp.asarray(part.reshape(w.shape))
        for part, w in zip(np.split(keep, [54]), problem.weights, strict=True)
    )
    r, ridge = rng.normal(size=N), 0.3
    got = jax.jit(backsolve)(problem.rows, support, jnp.asarray(r), ridge)
    above = np.concatenate([g[:, keep], np.sqrt(ridge) * np.eye(kept)])
    right = np.concatenate([r, np.zeros(kept)])
    expected, *_ = np.linalg.lstsq(above, right)
    change = flat(got.change)
    np.testing.assert_allclose(change[keep], expected, rtol=1e-9, atol=1e-12)
    assert not change[~keep].any()
    value = 0.5 * np.sum((above @ expected - right) ** 2)
    np.testing.assert_allclose(got.value, value, rtol=1e-9)


def test_backsolve_keeps_its_digits_in_float32():
    problem, _ = setting(jnp.float64)
    narrow = tuple(m.astype(jnp.float32) for m in problem.rows.matrices)
    single = dataclasses.replace(problem.rows, matrices=narrow)
    support = tuple(jnp.abs(w) > 0.5 for w in problem.weights)
    gone = tuple(jnp.where(abs(w) > 0.5, 0, w) for w in problem.weights)
    solve = jax.jit(backsolve)
    for ridge in (1e-1, 1e-3):
        r = problem.rows.project(gone)
        wanted = flat(solve(problem.rows, support, r, ridge).change)
        got = flat(solve(single, support, r.astype(jnp.float32), ridge).change)
        assert np.abs(got - wanted).max() < 1e-3 * np.abs(wanted).max()
