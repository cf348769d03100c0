"""Newton's method by products, on functions with a Hessian that is at hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from swapjax.pruning.solvers.newton import minimise

pytestmark = pytest.mark.usefixtures("x64")
SETTINGS = {"steps": 5, "products": 50, "damping": 0.0, "tolerance": 1e-10}


def run(function, start, support, **settings):
    """Minimise a function of a vector, with its exact Hessian."""
    hessian = jax.hessian(function)
    return minimise(
        lambda w: float(function(w)),
        lambda w: (float(function(w)), jax.grad(function)(w)),
        lambda w, v: hessian(w) @ v,
        jnp.asarray(start),
        jnp.asarray(support),
        **{**SETTINGS, **settings},
    )


def quadratic(seed=0, size=6):
    rng = np.random.default_rng(seed)
    root, aim = rng.normal(size=(size + 2, size)), rng.normal(size=size)
    hessian = root.T @ root
    return hessian, aim, lambda w: 0.5 * (w - aim) @ hessian @ (w - aim)


def test_one_step_solves_a_quadratic_on_a_support():
    hessian, aim, function = quadratic()
    support = np.array([True, False, True, True, False, True])
    found = run(function, np.where(support, aim + 1, 0), support, steps=1)
    inside = hessian[np.ix_(support, support)]
    expected = np.linalg.solve(inside, hessian[support] @ aim)
    np.testing.assert_allclose(found.weights[support], expected, rtol=1e-8)
    assert not np.any(found.weights[~support])
    assert found.products <= 6


def test_damping_is_in_units_of_the_curvature_along_the_gradient():
    hessian, aim, function = quadratic()
    start = np.zeros(6)
    slope = hessian @ (start - aim)
    unit = slope @ hessian @ slope / (slope @ slope)
    expected = -np.linalg.solve(hessian + 0.3 * unit * np.eye(6), slope)
    found = run(function, start, start == 0, steps=1, damping=0.3)
    np.testing.assert_allclose(found.weights, expected, rtol=1e-7)


def test_a_step_that_is_too_long_is_halved():
    """Of log cosh, Newton's method runs away from 1.1 on."""
    found = run(lambda w: jnp.sum(jnp.log(jnp.cosh(w))), [2.0], [True], steps=20)
    np.testing.assert_allclose(found.weights, 0, atol=1e-6)
    assert (np.diff(found.objective) < 0).all()


def test_where_it_is_not_convex_it_goes_downhill():
    """From the top of a hill almost, to one of the valleys beside it."""
    function = lambda w: jnp.sum((w**2 - 1) ** 2)  # noqa: E731
    found = run(function, [0.1, -0.1], [True, True], steps=20)
    np.testing.assert_allclose(np.abs(found.weights), 1, atol=1e-5)
    assert (np.diff(found.objective) < 0).all()


def test_at_the_minimum_nothing_moves():
    _, aim, function = quadratic()
    found = run(function, aim, aim == aim)
    np.testing.assert_array_equal(found.weights, aim)
    assert found.objective == (0.0,)
    assert found.products == 0


def test_what_is_not_finite_is_not_taken():
    found = run(lambda w: jnp.sum(jnp.log(w)), [-1.0], [True])
    np.testing.assert_array_equal(found.weights, [-1.0])
