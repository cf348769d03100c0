"""A block of the Fisher in its two forms, against dense algebra in float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from swapjax.pruning.solvers.block_forms import ByColumns, ByMoment

N, C = 6, 15


def columns():
    rng = np.random.default_rng(0)
    return rng.normal(size=(N, C)), rng.normal(size=C), rng.uniform(size=C) < 0.4


def form(kind, g, dtype):
    g = jnp.asarray(g, dtype)
    if kind == "columns":
        return ByColumns.of(g)
    return ByMoment(g.T @ g / len(g), jnp.ones(g.shape[1], bool))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("kind", ["moment", "columns"])
@pytest.mark.parametrize("damping", [1e-4, 0.1])
def test_both_forms_are_the_dense_matrix(kind, damping):
    g, w, keep = columns()
    block, gone = form(kind, g, jnp.float64), np.where(keep, 0, w)
    h = g.T @ g / N + damping * np.eye(C)
    found = block.invert(jnp.asarray(damping))
    np.testing.assert_allclose(found.diagonal(), np.diag(np.linalg.inv(h)), rtol=1e-8)
    np.testing.assert_allclose(found.solve(w), np.linalg.solve(h, w), rtol=1e-8)
    np.testing.assert_allclose(block.curved(w), w @ g.T @ g @ w / N, rtol=1e-10)
    assert not bool(found.raised)
    change, used, raised = block.make_up(keep, gone, jnp.asarray(damping))
    want = np.linalg.solve(h[np.ix_(keep, keep)], (h @ gone)[keep])
    np.testing.assert_allclose(change[keep], want, rtol=1e-8)
    np.testing.assert_allclose(used, damping)
    assert not bool(raised)


def test_columns_are_as_good_as_the_moment_in_float32():
    """The diagonal of the inverse, where dampings are small."""
    rng = np.random.default_rng(1)
    g = rng.normal(size=(30, 120)) * np.geomspace(1, 1e-2, 30)[:, None]
    damping = 1e-5 * np.mean(np.square(g).sum(axis=1))
    want = np.diag(np.linalg.inv(g.T @ g / 30 + damping * np.eye(120)))

    def error(kind):
        found = form(kind, g, jnp.float32).invert(jnp.asarray(damping, jnp.float32))
        return np.max(np.abs(found.diagonal() - want) / want)

    assert error("columns") < 2e-3
    assert error("columns") < 3 * error("moment")


@pytest.mark.parametrize("kind", ["moment", "columns"])
def test_a_block_without_damping_is_damped(kind):
    g, w, _ = columns()
    found = form(kind, g, jnp.float32).invert(jnp.zeros(()))
    assert bool(found.raised)
    assert float(found.damping) > 0
    assert np.isfinite(found.diagonal()).all()
    zero = form(kind, 0 * g, jnp.float32).invert(jnp.asarray(0.5))
    np.testing.assert_allclose(zero.diagonal(), 2)
    np.testing.assert_allclose(
        zero.solve(jnp.asarray(w, jnp.float32)), 2 * w, rtol=1e-6
    )
