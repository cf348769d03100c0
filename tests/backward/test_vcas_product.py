"""Sampled products beside what all their rows come to, one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from swapjax.backward.vcas_product import (
    CutRate,
    RowProduct,
    RowRate,
    cut,
    examples_axis,
    sampled,
)

BATCH = 6


def dense(x, w):
    return x @ w


def turned(x, w):
    """The weight first, its output axes split from each other by the contracted one."""
    return lax.dot_general(w, x, (((1,), (2,)), ((), ())))


def experts(x, w):
    """A matrix for each of some groups of positions."""
    return jnp.einsum("bec,ecd->bed", x, w)


def convolved(x, w):
    return lax.conv_general_dilated(
        x, w, (2, 1), ((1, 1), (0, 1)), rhs_dilation=(1, 2),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip


CASES = {
    "dense": (dense, (BATCH, 3, 4), (4, 5), 0),
    "turned": (turned, (BATCH, 3, 4), (5, 4, 2), 1),
    "experts": (experts, (BATCH, 3, 4), (3, 4, 5), 0),
    "convolution": (convolved, (BATCH, 5, 6, 2), (3, 2, 2, 4), 0),
}


def problem(name):
    """The product, its operands in the order of the equation, and a gradient."""
    function, shape, kernel, data = CASES[name]
    x, w = (
        jax.random.normal(jax.random.key(i), s) for i, s in enumerate([shape, kernel])
    )
    (equation,) = [
        eqn
        for eqn in jax.make_jaxpr(function)(x, w).eqns
        if eqn.primitive.name in ("dot_general", "conv_general_dilated")
    ]
    operands = (x, w) if data == 0 else (w, x)
    if name == "experts":
        # einsum may turn its operands around.
        data = [v.aval.shape for v in equation.invars].index(x.shape)
        operands = (x, w) if data == 0 else (w, x)
    product = RowProduct(equation, data, BATCH, True)
    y = product(*operands)
    scale = jnp.exp(2 * jax.random.normal(jax.random.key(3), y.shape))
    slope = scale * jax.random.normal(jax.random.key(2), y.shape)
    return product, operands, slope


def rate_of(product, rate, uniforms):
    return RowRate(jnp.float32(rate), uniforms, jnp.zeros(4))


@pytest.mark.parametrize("name", CASES)
def test_rows_are_those_of_the_outer_products(name):
    product, operands, slope = problem(name)
    weight = operands[1 - product.data]
    of_data, of_slope = product.rows(operands[product.data], slope)
    assert of_data.size == of_slope.size == product.count_rows()
    # The gradient of the weight by one row alone has the norm of both together.
    for number in range(0, of_slope.size, 5):
        place = np.unravel_index(number, of_slope.shape)
        one = jnp.zeros(of_slope.shape).at[place].set(1)

        def by_weight(w, one=one):
            both = [w, w]
            both[product.data] = operands[product.data]
            return jnp.vdot(product(*both), slope * one)

        norm = jnp.sum(jnp.square(jax.grad(by_weight)(weight)))
        both = of_data[place] * of_slope[place]
        np.testing.assert_allclose(norm, both, rtol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_the_gradient_of_the_weight_is_without_bias_and_its_variance_is_told(name):
    product, operands, slope = problem(name)

    def both(uniforms, rate):
        _, back = jax.vjp(
            lambda *args: sampled(product, *args),
            *operands,
            rate_of(product, rate, uniforms),
        )
        left, right, told = back(slope)
        gradients = (left, right) if product.data == 0 else (right, left)
        return *gradients, told.probe

    exact_data, exact, told = jax.jit(both)(jnp.zeros(0), 0.5)
    variance = float(told[2])
    draws = jax.random.uniform(jax.random.key(5), (1500, product.count_rows()))
    by_data, by_weight, told = jax.jit(jax.vmap(both, (0, None)))(draws, 0.5)
    np.testing.assert_allclose(
        by_data, np.broadcast_to(exact_data, by_data.shape), rtol=1e-5, atol=1e-4
    )
    found = np.asarray(by_weight, np.float64)
    error = found.std(axis=0) / np.sqrt(len(draws))
    assert np.all(abs(found.mean(axis=0) - exact) <= 5 * error + 1e-5)
    spread = found.var(axis=0).sum()
    assert abs(spread / variance - 1) < 0.15
    assert np.asarray(told[:, 1]).mean() == pytest.approx(0.5, abs=0.02)
    whole = both(draws[0], 1.0)[1]
    np.testing.assert_allclose(whole, exact, rtol=1e-5)


def thinned(slope, rate, uniforms, shares=(0.5, 1.0)):
    """What a cut makes of a gradient, and what it tells."""
    how = CutRate(jnp.float32(rate), uniforms, jnp.asarray(shares), jnp.zeros(4))
    _, back = jax.vjp(lambda x, how: cut(BATCH, True, x, how), slope, how)
    new, told = back(slope)
    return new, told.probe


def test_a_cut_keeps_whole_examples_without_bias():
    sizes = jnp.array([4.0, 1.0, 0.5, 0.0, 2.0, 1.0])
    slope = jnp.repeat(sizes, 2)[:, None] * jax.random.normal(
        jax.random.key(0), (12, 3)
    )
    draws = jax.random.uniform(jax.random.key(1), (1500, BATCH))
    new, told = jax.jit(jax.vmap(lambda u: thinned(slope, 0.5, u)))(draws)
    kept = np.asarray(jnp.any(new != 0, axis=-1)).reshape(-1, BATCH, 2)
    assert np.all(kept[..., 0] == kept[..., 1])
    assert not kept[:, 3].any()
    assert told[:, 0].mean() == pytest.approx(0.5, abs=0.02)
    error = np.asarray(new, np.float64).std(0) / np.sqrt(len(draws))
    assert np.all(abs(np.mean(new, axis=0) - slope) <= 5 * error + 1e-5)
    np.testing.assert_allclose(told[:, 2], 5 / 6, rtol=1e-6)
    assert np.all(told[:, 1] <= 0.5)


def test_a_cut_leaves_what_is_thin_enough_and_what_has_no_examples():
    slope = jnp.zeros((BATCH, 3)).at[jnp.array([0, 4])].set(1.5)
    np.testing.assert_array_equal(
        thinned(slope, 2 / 6, jnp.full(BATCH, 0.99))[0], slope
    )
    odd = jnp.ones((5, 7))
    new, told = thinned(odd, 0.1, jnp.full(BATCH, 0.99))
    np.testing.assert_array_equal(new, odd)
    assert list(told) == [1, 1, 1, 1]


def test_examples_are_found_by_the_length_of_an_axis():
    assert examples_axis((6, 3), 6) == 0
    assert examples_axis((4, 18), 6) == 1
    assert examples_axis((4, 5), 6) is None
    assert examples_axis((), 6) is None
