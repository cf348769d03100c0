"""What the way back costs, counted by hand and in NumPy."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from swapjax import backward
from swapjax.core.objective import Objective

KEY = jax.random.key(3)


def convolved(x, kernel, groups=1, strides=(1, 1)):
    return jax.lax.conv_general_dilated(
        x, kernel, strides, "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )  # fmt: skip


def test_multiplications_are_those_of_the_loops_one_would_write():
    shapes = {
        "conv": (3, 3, 4, 6), "depth": (2, 2, 1, 6), "heads": (6, 2, 5),
        "stack": (7, 10, 10), "table": (9, 4),
    }  # fmt: skip
    params = {k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in shapes.items()}

    def loss_fn(params, ids):
        x = params["table"][ids]
        x = convolved(x, params["conv"], strides=(2, 2))
        x = convolved(x, params["depth"], groups=6)
        x = jnp.einsum("nhwc,cde->nhwde", x, params["heads"]).reshape(3, -1, 10)
        x, _ = jax.lax.scan(lambda x, w: (x @ w, None), x, params["stack"])
        return jnp.sum(x)

    ids = jax.ShapeDtypeStruct((3, 9, 7), jnp.int32)
    layers = backward.find_layers(loss_fn, params, ids)
    # Examples, pixels of the output and of the kernel, channels in and out.
    assert {layer.name: layer.macs for layer in layers} == {
        "conv": 3 * (4 * 3) * (3 * 3) * 4 * 6,
        "depth": 3 * (3 * 2) * (2 * 2) * 1 * 6,
        "heads": 3 * (3 * 2) * 6 * 10,
        "stack": 7 * 3 * (3 * 2) * 10 * 10,
    }
    assert all(layer.backward_macs == 2 * layer.macs for layer in layers)
    assert layers[-1].site.levels == (7,)


def forward(params, x):
    h = jax.nn.relu(x @ params["a"])
    h = jax.nn.relu(h @ params["b"])
    return h @ params["c"]


def loss_fn(params, x):
    return jnp.mean(forward(params, x) ** 2)


@pytest.fixture(scope="module")
def params():
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = {"a": (8, 32), "b": (32, 64), "c": (64, 4)}
    return {
        name: jax.random.normal(key, shape) / shape[0] ** 0.5
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


@pytest.fixture(scope="module")
def x():
    return jax.random.normal(jax.random.key(1), (256, 8))


def test_zeros_by_layer_and_by_site(params, x):
    pruned = backward.prune_backward(
        loss_fn,
        rate=0.9,
        threshold="exact",
        axis_name="d",  # measured without
    )
    cost = backward.measure(pruned, params, pruned.init(params, x), x, KEY)
    # In NumPy, where nothing is pruned; ReLU alone makes zeros.
    a, b = (np.asarray(params[name], np.float64) for name in "ab")
    first = np.asarray(x, np.float64) @ a
    second = np.maximum(first, 0) @ b
    natural = {"a": np.mean(first <= 0), "b": np.mean(second <= 0), "c": 0.0}
    macs = {"a": 256 * 8 * 32, "b": 2 * 256 * 32 * 64, "c": 2 * 256 * 64 * 4}
    for layer in cost.layers:
        assert layer.macs == macs[layer.name]
        assert layer.zeros_before == pytest.approx(natural[layer.name], abs=1e-6)
    # Of the way back behind "b" nothing is pruned; before, half survive the ReLU.
    after = {layer.name: layer.zeros_after for layer in cost.layers}
    assert (after["b"], after["c"]) == pytest.approx((natural["b"], 0.0), abs=1e-6)
    (site,) = cost.sites
    assert (site.name, site.rate, site.zeros_before) == ("b:input", 0.9, 0.0)
    assert site.expected == pytest.approx(0.540, abs=1e-3)
    assert site.zeros_after == pytest.approx(site.expected, abs=0.05)
    kept = (1 - natural["a"]) * (1 - site.zeros_after)
    assert after["a"] == pytest.approx(1 - kept, abs=0.02)
    total = sum(macs.values())
    assert cost.ratio == pytest.approx(
        sum(macs[k] * (1 - after[k]) for k in macs) / total
    )
    assert cost.gain == pytest.approx(cost.natural_ratio * cost.speedup)
    told = json.loads(json.dumps(cost.as_dict()))
    assert told["speedup"] == cost.speedup
    assert [row["name"] for row in told["layers"]] == ["a", "b", "c"]
    assert "ideal speed-up" in cost.table()
    assert len(cost.table().splitlines()) == 5


def test_targets_and_attacks_cost_nothing_on_the_way_back(params, x):
    def loss_fn(params, x):
        target = jax.lax.stop_gradient(forward(params, x))
        moved = x + jax.lax.stop_gradient(
            jax.grad(lambda x: forward(params, x).sum())(x)
        )
        return jnp.mean((forward(params, moved) - target) ** 2)

    layers = backward.find_layers(loss_fn, params, x)
    assert [(layer.name, layer.passes_on) for layer in layers] == [
        ("a", False), ("b", True), ("c", True)
    ]  # fmt: skip
    (site,) = backward.find_sites(loss_fn, params, x)
    assert site.name == "b:input"


def test_loops_count_all_their_steps():
    params = {"stack": jnp.stack([jnp.eye(4)] * 3), "out": jnp.eye(4)}

    def loss_fn(params, x):
        step = lambda x, w: (x @ w, None)  # noqa: E731
        return jnp.sum(jax.lax.scan(step, x, params["stack"])[0] @ params["out"] * x)

    x = jnp.asarray([[0.0, 1.0, 2.0, 0.0]])
    pruned = backward.prune_backward(loss_fn, rate={"stack": lambda step: 0.0 * step})
    cost = backward.measure(pruned, params, pruned.init(params, x), x, KEY)
    assert [layer.zeros_after for layer in cost.layers] == [0.5, 0.5]
    assert cost.sites[0].rate == 0
    assert cost.gain == 1


def test_noise_is_the_variance_of_the_operator(params):
    """Of a loss whose dY is known: each entry adds ``|g| tau - g^2`` times its input's.

    The products of two matrices, so that the first one's output is a site.
    """
    x = jax.random.normal(jax.random.key(2), (64, 8))
    loss_fn = lambda p, x: jnp.mean((x @ p["a"] @ p["b"]) ** 2)  # noqa: E731
    params = {name: params[name] for name in "ab"}
    for kind in ("stochastic", "hard"):
        pruned = backward.prune_backward(
            loss_fn, rate=0.9, threshold="exact", pruning=kind
        )
        state = pruned.init(params, x)
        noise = backward.gradient_noise(pruned, params, state, x, KEY, draws=40)
        inputs, a, b = (np.asarray(v, np.float64) for v in (x, *params.values()))
        outputs = inputs @ a @ b
        g = 2 / outputs.size * outputs @ b.T
        size = np.abs(g)
        tau = 1.6448536 * math.sqrt(math.pi / 2) * size.mean()
        variances = np.where(size < tau, size * tau - g**2, 0)
        variance = np.sum(variances * (inputs**2).sum(1, keepdims=True))
        exact = inputs.T @ g, 2 / outputs.size * (inputs @ a).T @ outputs
        signal = sum(np.sum(part**2) for part in exact)
        if kind == "hard":
            assert noise.snr > 1e6  # all draws agree
            assert noise.bias > 0.05
        else:
            assert noise.snr == pytest.approx(signal / variance, rel=0.1)
            assert noise.cosine > 0.99
            assert noise.bias == pytest.approx((40 * noise.snr) ** -0.5, rel=0.2)
        assert noise.as_dict()["draws"] == 40


def test_what_a_loss_draws_is_no_noise_of_pruning(params, x):
    def noisy(params, state, x, key):
        return loss_fn(params, x + jax.random.normal(key, x.shape)), state, {}

    pruned = backward.prune_backward(Objective(noisy), rate=0.0)
    noise = backward.gradient_noise(
        pruned, params, pruned.init(params, x), x, KEY, draws=2
    )
    assert noise.bias == 0


def test_bad_input(params, x):
    with pytest.raises(ValueError, match="an objective of prune_backward wanted"):
        backward.measure(Objective(loss_fn), params, (), x, KEY)
    pruned = backward.prune_backward(loss_fn)
    state = pruned.init(params, x)
    with pytest.raises(ValueError, match="draws"):
        backward.gradient_noise(pruned, params, state, x, KEY, draws=1)
    with pytest.raises(ValueError, match="one for each of 2 layers wanted, got 1"):
        backward.mac_ratio([3, 4], [0.5])
    with pytest.raises(ValueError, match=r"each must be in \[0, 1\], got 1.5"):
        backward.mac_ratio([3], [1.5])
    assert backward.mac_ratio([3, 1], [0.5, 1.0]) == 0.625
