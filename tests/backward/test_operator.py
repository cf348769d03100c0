"""The operator against its formula, in float64 NumPy."""

import functools
import math

import hypothesis
import hypothesis.extra.numpy as arrays
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from swapjax import backward
from swapjax.backward.operator import Pruning, prune, random_bits

KEY = jax.random.key(3)


@functools.partial(jax.jit, static_argnums=0)
def compiled(pruning, g, level, key):
    return prune(pruning, g, level, key)


def run(g, tau, key=KEY, **settings):
    """Prune a gradient with a given threshold; also return the statistics."""
    level = jnp.asarray(tau, jnp.float32)
    numbers = jax.random.key_data(key)
    return compiled(Pruning(**settings), jnp.asarray(g), level, numbers)


def reference(g, tau, r):
    """Do entry by entry what the paper says, in float64."""
    out = []
    for x, u in zip(np.asarray(g, np.float64).ravel(), r.ravel(), strict=True):
        if abs(x) >= tau:
            out.append(x)
        elif abs(x) > tau * u:
            out.append(math.copysign(tau, x))
        else:
            out.append(0.0)
    return np.reshape(out, np.shape(g))


def uniforms(shape, key=KEY):
    bits = random_bits("threefry2x32", jax.random.key_data(key), shape)
    return (np.asarray(bits, np.int64) // 256 + 0.5) * 2.0**-24


@pytest.mark.parametrize(
    ("rate", "zeros", "variance"),
    [
        (0.5, 0.259, 0.038),
        (0.7, 0.380, 0.127),
        (0.8, 0.451, 0.223),
        (0.9, 0.540, 0.412),
        (0.95, 0.603, 0.614),
        (0.99, 0.692, 1.065),
    ],
)
def test_zeros_and_variance_of_normal_gradients(rate, zeros, variance):
    g = np.random.default_rng(0).normal(size=10**6).astype(np.float32)
    pull = jax.vjp(lambda x: backward.prune_gradient(x, rate, key=KEY), g)[1]
    (pruned,) = pull(jnp.asarray(g))
    assert backward.expected_zeros(rate) == pytest.approx(zeros, abs=6e-4)
    assert backward.added_variance(rate) == pytest.approx(variance, abs=6e-4)
    assert np.mean(pruned == 0) == pytest.approx(zeros, abs=0.003)
    assert np.mean((pruned - g) ** 2) == pytest.approx(variance, abs=0.003)


@hypothesis.given(
    g=arrays.arrays(
        np.float32,
        st.sampled_from([(), (1,), (7,), (3, 1, 5)]),
        elements=st.floats(-2, 2, width=32, allow_subnormal=False),
    ),
    tau=st.sampled_from([0.0, 0.25, 1.0, 3.0]),
)
def test_it_is_what_the_formula_says(g, tau):
    pruned, told = run(g, tau)
    np.testing.assert_array_equal(pruned, reference(g, tau, uniforms(g.shape)))
    wanted = [np.abs(g).sum(), g.size, (g == 0).sum(), (np.asarray(pruned) == 0).sum()]
    np.testing.assert_allclose(told, wanted, rtol=1e-6)


@pytest.mark.parametrize("shape", [(), (1,), (7,), (3, 1), (5, 3, 3)])
def test_bits_are_uniform_words_of_their_own(shape):
    bits = np.asarray(random_bits("threefry2x32", jax.random.key_data(KEY), shape))
    assert bits.shape == shape
    assert bits.dtype == np.uint32
    assert len(np.unique(bits)) == bits.size
    other = random_bits(
        "rbg", jax.random.key_data(jax.random.key(3, impl="rbg")), shape
    )
    assert other.shape == shape


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_without_bias_and_with_the_variance_of_the_formula(dtype):
    tau, count = 0.3, 2000
    g = jnp.asarray([0.0, 1e-3, -0.02, 0.1, -0.15, 0.2, 0.29, -0.3, 0.8], dtype)
    keys = jax.random.split(jax.random.key(7), count)
    pruned = jax.vmap(lambda key: run(g, tau, key)[0])(keys)
    assert pruned.dtype == dtype
    seen = np.asarray(pruned, np.float64)
    wanted, held = np.asarray(g, np.float64), float(jnp.asarray(tau, dtype))
    size = np.abs(wanted)
    variance = np.where(size < held, size * held - wanted**2, 0)
    off = np.abs(seen.mean(axis=0) - wanted)
    assert np.all(off <= 5 * np.sqrt(variance / count) + 1e-7)
    assert np.isin(seen[:, 1], [0, held]).all()
    # Of a variance, whose own comes of the fourth moment, at most held^4 / 4.
    np.testing.assert_allclose(
        seen.var(axis=0), variance, atol=5 * held**2 / 2 / math.sqrt(count)
    )


def test_entries_of_a_word_are_independent():
    keys = jax.random.split(jax.random.key(8), 4000)
    g = jnp.full(6, 0.5)
    kept = np.asarray(jax.vmap(lambda key: run(g, 1.0, key)[0])(keys)) != 0
    correlation = np.corrcoef(kept.T) - np.eye(6)
    assert np.abs(correlation).max() < 5 / math.sqrt(4000)


def test_homogeneous():
    g = jax.random.normal(KEY, (50,))
    pruned, _ = run(g, 0.7)
    for c in (2.0**-20, 1024.0):
        np.testing.assert_array_equal(run(c * g, c * 0.7)[0], c * pruned)


def test_the_exact_threshold_is_found_in_float32():
    g = 1e-6 * jax.random.normal(KEY, (4096,)).astype(jnp.float16)  # subnormal
    tau = 1.6448536 * math.sqrt(math.pi / 2) * np.abs(np.float64(g)).mean()
    pruned, told = run(g, 1.6448536, exact=True)
    assert told[0] == pytest.approx(np.abs(np.float64(g)).sum(), rel=1e-5)
    held = np.float64(np.float16(tau))
    assert set(np.abs(np.float64(pruned))) <= {0, *np.abs(np.float64(g))} | {held}


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_what_is_not_finite_stays(bad):
    g = jnp.asarray([0.1, bad, -0.2])
    np.testing.assert_array_equal(run(g, 1.6, exact=True)[0], g)
    pruned, _ = run(g, 0.15)
    np.testing.assert_array_equal(pruned[1:], g[1:])
    np.testing.assert_array_equal(run(g, bad)[0], g)


@pytest.mark.parametrize("tau", [0.2, 1.0, 5.0])
def test_the_control_has_as_many_zeros_and_they_are_the_smallest(tau):
    g = jax.random.normal(KEY, (40, 25))
    size = np.abs(np.float64(g))
    count = round(np.clip(1 - size / tau, 0, None).sum())
    pruned, told = run(g, tau, hard=True)
    wanted = np.where(size.argsort(axis=None).argsort().reshape(40, 25) < count, 0, g)
    np.testing.assert_array_equal(pruned, wanted)
    assert told[3] == count


def test_off_and_branch_do_the_same_as_thresholds_of_zero():
    g = jax.random.normal(KEY, (33,))
    np.testing.assert_array_equal(run(g, 1.0, off=True)[0], g)
    np.testing.assert_array_equal(run(g, 0.0)[0], g)
    for tau in (0.0, 0.6):
        np.testing.assert_array_equal(run(g, tau, branch=True)[0], run(g, tau)[0])


def test_members_and_examples_draw_their_own():
    g = jnp.full((3, 40), 0.5)
    pull = lambda g: run(g, 1.0)[0]  # noqa: E731
    rows = np.asarray(jax.vmap(pull)(g))
    assert not np.array_equal(rows[0], rows[1])


def test_devices_share_a_threshold_and_draw_their_own():
    mesh = jax.make_mesh((2,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("d")
    row = jax.random.normal(KEY, (1, 512))
    g = jnp.concatenate([row, 3 * row])
    apart = lambda g: run(g, 1.0, exact=True, axis_name="d")  # noqa: E731
    own = jax.shard_map(
        apart, mesh=mesh, in_specs=spec, out_specs=(spec, jax.sharding.PartitionSpec())
    )
    pruned, told = jax.jit(own)(g)
    whole, wanted = run(g, 1.0, exact=True)
    np.testing.assert_allclose(told[:3], wanted[:3], rtol=1e-6)
    tau = float(jnp.sqrt(jnp.pi / 2) * jnp.mean(jnp.abs(g)))
    changed = np.asarray((pruned != g) & (pruned != 0))
    np.testing.assert_allclose(np.abs(pruned)[changed], tau, rtol=1e-6)
    assert np.any((pruned[0] == 0) != (pruned[1] == 0))
    sharded = jax.device_put(g, jax.sharding.NamedSharding(mesh, spec))
    for got, single in zip(jax.jit(run)(sharded, 1.0), run(g, 1.0), strict=True):
        np.testing.assert_allclose(got, single, rtol=1e-6)
    del whole


def test_second_and_forward_derivatives_are_refused():
    pruned = lambda x: jnp.sum(  # noqa: E731
        backward.prune_gradient(x, 0.5, key=KEY) ** 2
    )
    x = jnp.ones(3)
    for asked in (
        lambda: jax.grad(lambda x: jnp.sum(jax.grad(pruned)(x)))(x),
        lambda: jax.jvp(jax.grad(pruned), (x,), (x,)),
        lambda: jax.jvp(pruned, (x,), (x,)),
        lambda: jax.hessian(pruned)(x),
    ):
        with pytest.raises(ValueError, match="do not pass where gradients are pruned"):
            asked()


def test_bad_input():
    x = jnp.ones(3)
    for rate in (1.0, -0.1, jnp.nan):
        with pytest.raises(ValueError, match=r"rate must be in \[0, 1\)"):
            backward.prune_gradient(x, rate, key=KEY)
    with pytest.raises(ValueError, match=r"rate must be in \[0, 1\)"):
        backward.expected_zeros(1.0)
    with pytest.raises(ValueError, match="give one of them"):
        backward.prune_gradient(x, key=KEY)
    with pytest.raises(ValueError, match="key must be one PRNG key"):
        backward.prune_gradient(x, 0.5, key=jax.random.split(KEY))
    for x, rest, said in (
        (jnp.arange(3), {"rate": 0.5}, "floats wanted, got an array of int32"),
        ("x", {"rate": 0.5}, "floats wanted, got str"),
        (jnp.ones(3), {"threshold": "a"}, "threshold must be a number, got 'a'"),
        (jnp.ones(3), {"threshold": jnp.ones(3)}, "threshold must be one number, got"),
    ):
        with pytest.raises(ValueError, match=said):
            backward.prune_gradient(x, key=KEY, **rest)
