"""Functions that reckon with sizes, and outputs and arrays of unusual kinds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import swapjax


def draw(**shapes):
    generator = np.random.default_rng(len(shapes))
    return {k: np.float32(generator.normal(size=s)) for k, s in shapes.items()}


def attention(p, x):
    """Divides by the root of the size of a head, which the arrays tell."""
    q, k, v = (jnp.einsum("td,dhe->the", x, p[name]) for name in "qkv")
    scores = jnp.einsum("the,she->hts", q, k) / np.sqrt(p["q"].shape[2])
    return jnp.einsum("hts,she,hed->td", jax.nn.softmax(scores), v, p["out"])


def average(p, x):
    return jnp.mean(jax.nn.relu(x @ p["q"][:, 0]), axis=-1)


@pytest.mark.parametrize("function", [attention, average])
def test_sizes_that_zeros_do_not_show_are_kept(function):
    params = draw(k=(5, 2, 4), out=(2, 4, 5), q=(5, 2, 4), v=(5, 2, 4))
    params["q"][..., 1:3] = params["k"][..., 1:3] = 0
    small = swapjax.shrink(function, params, None, np.zeros((3, 5), np.float32))
    assert small.params["q"].shape == (5, 2, 2)
    x = draw(x=(3, 5))["x"]
    np.testing.assert_allclose(
        small.apply(small.params, x), function(params, x), rtol=1e-5, atol=1e-6
    )


def test_outputs_may_be_infinite_complex_or_keys():
    def apply(p, x, key):
        y = jnp.tanh(x @ p["a"]) @ p["b"]
        return jnp.where(jnp.arange(4) < 3, y, -jnp.inf), y * 1j, jax.random.split(key)

    params = draw(a=(3, 8), b=(8, 4))
    params["a"][:, 4:] = 0
    small = swapjax.shrink(apply, params, None, draw(x=(2, 3))["x"], jax.random.key(0))
    assert small.params["a"].shape == (3, 4)
    assert small.error < 1e-6


def test_arrays_may_be_empty():
    params = draw(a=(3, 0), b=(0, 2), c=(3, 4), d=(4, 2), e=(0, 2))
    params["c"][:, 1:] = 0
    small = swapjax.shrink(
        lambda p, x: x @ p["a"] @ p["b"] + x @ p["c"] @ p["d"] + p["e"].sum(0),
        params, None, draw(x=(2, 3))["x"],
    )  # fmt: skip
    assert small.params["a"].shape == (3, 0)
    assert small.params["c"].shape == (3, 1)


def test_layers_with_constants_of_their_own_lose_units_alike():
    scales = draw(scales=(2, 4))["scales"]

    def stack(p, x):
        step = lambda x, w: (x + jnp.tanh(x @ w[0] * w[2]) @ w[1], None)  # noqa: E731
        return jax.lax.scan(step, x, (p["up"], p["down"], scales))[0]

    params = draw(up=(2, 3, 4), down=(2, 4, 3))
    params["up"][0, :, :2] = params["up"][1, :, 1:3] = 0
    small = swapjax.shrink(stack, params, None, draw(x=(2, 3))["x"])
    assert small.params["up"].shape == (2, 3, 3)  # without the one that both lose
