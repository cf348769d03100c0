"""The n x n system of a support and its factors, against dense algebra in float64."""

import jax.numpy as jnp
import numpy as np
import pytest
from small_systems import N, P, dense, metrics, problem

from swapjax.pruning.solvers import cholesky, dual_system, least_squares

pytestmark = pytest.mark.usefixtures("x64")


@pytest.mark.parametrize("kind", ["identity", "diagonal", "plan"])
@pytest.mark.parametrize("damping", [1e-6, 1e-2, 1.0])
def test_solve_equals_least_squares(kind, damping):
    """One n x n system, the k x k normal equations, and lstsq on stacked rows."""
    (g, wbar), metric = problem(), metrics()[kind]
    rng = np.random.default_rng(6)
    t, support = rng.normal(size=N), rng.uniform(size=P) < 0.6
    gs, ws = np.asarray(g)[:, support], np.asarray(wbar)[support]
    fit = least_squares.Fit(jnp.asarray(t), metric, jnp.zeros(()))

    system = dual_system.damp(
        dual_system.diagonalise(jnp.asarray(gs @ gs.T), metric), damping
    )
    c = dual_system.solve(system, fit, jnp.asarray(gs @ ws))
    got = ws + gs.T @ np.asarray(c)

    m = dense(metric)
    normal = np.linalg.solve(
        gs.T @ m @ gs + N * damping * np.eye(len(ws)), gs.T @ m @ t + N * damping * ws
    )
    values, vectors = np.linalg.eigh(m)
    root = (vectors * np.sqrt(np.maximum(values, 0))).T
    stacked = np.vstack([root @ gs, np.sqrt(N * damping) * np.eye(len(ws))])
    right = np.concatenate([root @ t, np.sqrt(N * damping) * ws])
    stacked_solution = np.linalg.lstsq(stacked, right)[0]
    np.testing.assert_allclose(got, stacked_solution, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(got, normal, rtol=1e-5, atol=1e-7)
    assert not bool(system.deficient)


def test_solve_equals_the_update_of_the_surgeon():
    """CBS: the same weights from the inverse Fisher, entries removed jointly."""
    g, wbar = (np.asarray(v) for v in problem())
    removed, damping = np.asarray([0, 3, 4, 9]), 0.05
    kept = np.setdiff1d(np.arange(P), removed)
    inverse = np.linalg.inv(g.T @ g / N + damping * np.eye(P))
    block = inverse[np.ix_(removed, removed)]
    expected = wbar - inverse[:, removed] @ np.linalg.solve(block, wbar[removed])

    gs = g[:, kept]
    fit = least_squares.Fit(jnp.asarray(g @ wbar), None, jnp.zeros(()))
    system = dual_system.damp(dual_system.diagonalise(jnp.asarray(gs @ gs.T)), damping)
    c = dual_system.solve(system, fit, jnp.asarray(gs @ wbar[kept]))
    np.testing.assert_allclose(wbar[kept] + gs.T @ np.asarray(c), expected[kept])
    np.testing.assert_allclose(expected[removed], 0, atol=1e-12)


def test_float32_keeps_four_digits_at_tiny_damping():
    rng = np.random.default_rng(7)
    g, w = rng.normal(size=(50, 200)), rng.normal(size=200)
    t = g @ w + rng.normal(size=50)

    def solution(dtype):
        gs = jnp.asarray(g, dtype)
        fit = least_squares.Fit(jnp.asarray(t, dtype), None, jnp.zeros((), dtype))
        system = dual_system.damp(dual_system.diagonalise(gs @ gs.T), 1e-6)
        return np.asarray(gs.T @ dual_system.solve(system, fit, jnp.zeros(50, dtype)))

    wide, narrow = solution(jnp.float64), solution(jnp.float32)
    assert narrow.dtype == np.float32
    assert np.linalg.norm(narrow - wide) < 1e-4 * np.linalg.norm(wide)


def test_no_damping_takes_the_smallest_change_that_fits():
    g, wbar = problem()
    doubled = jnp.concatenate([g, g])  # rank N, 2 N rows
    t = jnp.concatenate([g @ wbar, g @ wbar]) + 1.0
    system = dual_system.damp(dual_system.diagonalise(doubled @ doubled.T), 0.0)
    fit = least_squares.Fit(t, None, jnp.zeros(()))
    c = dual_system.solve(system, fit, doubled @ wbar)
    expected = np.linalg.pinv(np.asarray(doubled)) @ np.asarray(t - doubled @ wbar)
    assert bool(system.deficient)
    np.testing.assert_allclose(doubled.T @ c, expected, atol=1e-9)


def test_a_linear_term_is_a_shift_of_the_targets():
    """Adding s 1^T G w to Q moves every target by -s (spec: the first-order term)."""
    (g, wbar), s, damping = problem(), 0.3, 0.1
    y = g @ wbar
    shifted = least_squares.Fit(y - s, None, jnp.zeros(()))
    system = dual_system.damp(dual_system.diagonalise(g @ g.T), damping)
    got = wbar + g.T @ dual_system.solve(system, shifted, y)
    hessian = g.T @ g + N * damping * jnp.eye(P)
    expected = wbar - jnp.linalg.solve(hessian, s * g.T @ jnp.ones(N))
    np.testing.assert_allclose(got, expected, rtol=1e-9)


def test_rows_that_are_zero_change_nothing():
    g, wbar = problem()
    fit = least_squares.Fit(g @ wbar + 0.1, None, jnp.zeros(()))
    small = dual_system.damp(dual_system.diagonalise(g @ g.T), 0.1 * 8 / 9)
    want = dual_system.solve(small, fit, g @ wbar)
    padded = jnp.concatenate([g, jnp.zeros((1, P))])
    fit = least_squares.Fit(padded @ wbar + 0.1, None, jnp.zeros(()))
    # n counts the empty row, so damping shrinks to hold n lambda where it was.
    system = dual_system.damp(
        dual_system.diagonalise(padded @ padded.T), 0.1 * 8 / 9 * 8 / 9
    )
    got = dual_system.solve(system, fit, padded @ wbar)
    np.testing.assert_allclose(padded.T @ got, g.T @ want, rtol=1e-9)


@pytest.mark.parametrize("kind", ["identity", "diagonal", "plan"])
@pytest.mark.parametrize("least", [0.0, 1e-3])
def test_a_system_is_its_dense_matrices(kind, least):
    """By eigenvalues and by a Cholesky factor: inverse, rest and its diagonal."""
    (g, _), metric, damping = problem(), metrics()[kind], 2e-3
    gram, m = np.asarray(g @ g.T), dense(metric)
    spectrum = dual_system.diagonalise(jnp.asarray(gram), metric, least)
    assert bool(spectrum.factored) == (least > 0 and metric is None)
    system = dual_system.damp(spectrum, damping)
    # (M K + n lambda I)^-1 M, which needs no root of M.
    inverse = np.linalg.solve(m @ gram + N * damping * np.eye(N), m)
    rest = np.eye(N) - gram @ inverse
    v = np.random.default_rng(8).normal(size=N)
    np.testing.assert_allclose(system.inverse(jnp.asarray(v)), inverse @ v, rtol=1e-8)
    np.testing.assert_allclose(system.rest(jnp.asarray(v)), rest @ v, atol=1e-10)
    np.testing.assert_allclose(system.rest_diagonal(), np.diag(rest), atol=1e-10)


def test_a_cholesky_factor_is_as_good_as_eigenvalues_in_float32():
    """Of a system with the spectrum and the smallest damping that stages have."""
    rng = np.random.default_rng(9)
    g = rng.normal(size=(60, 90)) * np.geomspace(1, 1e-3, 60)[:, None]
    gram, t = g @ g.T * 60 / np.sum(np.square(g)), rng.normal(size=60)
    want = np.linalg.solve(gram + 60 * 1e-4 * np.eye(60), t)
    narrow = jnp.asarray(gram, jnp.float32), jnp.asarray(t, jnp.float32)

    def error(least):
        spectrum = dual_system.diagonalise(narrow[0], None, least)
        assert bool(spectrum.factored) == (least > 0)
        system = dual_system.damp(spectrum, 1e-4)
        assert not bool(system.raised)
        return np.linalg.norm(system.inverse(narrow[1]) - want) / np.linalg.norm(want)

    assert error(1e-4) < 1e-4
    assert error(1e-4) < 3 * error(0.0)


def test_dampings_near_rounding_take_eigenvalues():
    gram = jnp.diag(jnp.asarray([1.0, 1e-3, 0.0], jnp.float32))
    assert not bool(dual_system.diagonalise(gram, None, 1e-6).factored)
    assert bool(dual_system.diagonalise(gram, None, 1e-4).factored)


def test_a_factor_is_inverted_by_halves(monkeypatch):
    monkeypatch.setattr(cholesky, "_SMALL", 3)
    g, _ = problem()
    matrix = (g @ g.T)[:7, :7]
    root = cholesky.factor(matrix, 0.1).inverse_root()
    np.testing.assert_allclose(root, np.tril(root))
    want = np.linalg.inv(np.asarray(matrix) + 0.1 * np.eye(7))
    np.testing.assert_allclose(root.T @ root, want, rtol=1e-10)
