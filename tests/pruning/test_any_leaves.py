"""Params and data of any leaves: keys, counters, flags, functions, Python's numbers."""

import typing

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import swapjax

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (32, 6))
DATA = X, X[:, :3]
TUNE = swapjax.FineTune(optax.adamw(1e-2), 2, batch=8)


class Layer(typing.NamedTuple):
    kernel: jax.Array
    extra: dict


class Whole(eqx.Module):
    """An Equinox module whose leaves are arrays, functions, a number and a switch."""

    mlp: eqx.nn.MLP
    dropout: eqx.nn.Dropout

    def __init__(self):
        self.mlp = eqx.nn.MLP(6, 3, 8, 1, key=KEY)
        self.dropout = eqx.nn.Dropout(0.5, inference=True)

    def __call__(self, x):
        return self.dropout(self.mlp(x))


class Net(nnx.Module):
    """Batch norm, dropout with its PRNG key and counter, and a counter."""

    def __init__(self, rngs):
        self.first = nnx.Linear(6, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, use_running_average=True, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, deterministic=True, rngs=rngs)
        self.second = nnx.Linear(8, 3, rngs=rngs)
        self.calls = nnx.Variable(jnp.int32(3))

    def __call__(self, x):
        return self.second(self.dropout(nnx.relu(self.norm(self.first(x)))))


def prune(loss_fn, params, data=DATA, **options):
    options = {"method": swapjax.magnitude(), "samples": 8, "key": KEY, **options}
    return swapjax.prune(loss_fn, params, data, sparsity=0.5, **options)


def squares(outputs, batch):
    return jnp.mean(jnp.square(outputs - batch[1]))


def whole_loss(module, batch):
    return squares(jax.vmap(module)(batch[0]), batch)


def test_leaves_that_are_no_floats_stay_as_they_are():
    extra = {
        "key": jax.random.key(3), "raw": jax.random.PRNGKey(4), "steps": np.int32(5),
        "seen": jnp.ones(3, bool), "scale": 1.5, "shift": np.float32(0.5),
    }  # fmt: skip
    params = [Layer(jax.random.normal(KEY, (6, 3)), extra)]

    def loss_fn(params, batch):
        (layer,) = params
        scale = layer.extra["scale"] * layer.extra["shift"]
        return squares(batch[0] @ layer.kernel * scale, batch)

    pruned = prune(loss_fn, params, finetune=TUNE, recalibrate=lambda p: p)
    (layer,), (masks,) = pruned.params, pruned.masks
    assert int(jnp.sum(masks.kernel)) == 9 == int(jnp.sum(layer.kernel != 0))
    assert bool(layer.extra["key"] == extra["key"])
    assert int(layer.extra["steps"]) == 5
    np.testing.assert_array_equal(layer.extra["raw"], extra["raw"])
    assert layer.extra["shift"] != 0.5  # trained


@pytest.mark.parametrize("method", [swapjax.wanda(), swapjax.obd()], ids=str)
def test_networks_that_nnx_scans_are_pruned(method):
    @nnx.split_rngs(splits=3)
    @nnx.vmap
    def layers(rngs):
        return nnx.Linear(4, 4, rngs=rngs)

    @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
    def run(layer, x):
        return jnp.tanh(layer(x))

    graph, params = nnx.split(layers(nnx.Rngs(0)))
    loss_fn = lambda p, x: jnp.mean(run(nnx.merge(graph, p), x) ** 2)  # noqa: E731
    x = jax.random.normal(jax.random.key(1), (8, 4))
    target = swapjax.plan(params, 0.5, allocation="uniform", loss_fn=loss_fn, batch=x)
    options = {"plan": target, "samples": 8, "key": jax.random.key(0)}
    pruned = swapjax.prune(loss_fn, params, x, method=method, **options)
    assert pruned.history[-1].layers == {f"kernel[{i}]": 8 for i in range(3)}


def test_nnx_networks_are_tuned_and_resumed(tmp_path):
    graph, params = nnx.split(Net(nnx.Rngs(0)))
    labels = jax.tree_util.tree_map_with_path(
        lambda path, _: "train" if "first" in str(path) else "freeze", params
    )
    optimizer = optax.multi_transform(
        {"train": optax.adam(1e-2), "freeze": optax.set_to_zero()}, labels
    )
    settings = swapjax.FineTune(optimizer, 2, batch=8)
    loss_fn = lambda p, b: squares(nnx.merge(graph, p)(b[0]), b)  # noqa: E731
    run = lambda **options: prune(  # noqa: E731
        loss_fn, params, finetune=settings, recalibrate=lambda p: p, stages=2, **options
    )
    first = run(checkpoint=tmp_path / "state")
    again = run(checkpoint=tmp_path / "state")
    assert [s.loss for s in first.history] == [s.loss for s in again.history]
    network = nnx.merge(graph, again.params)
    assert network.calls[...] == 3
    assert network.second.bias[...].tolist() == [0, 0, 0]  # frozen


@pytest.mark.parametrize("method", [swapjax.magnitude(), swapjax.obd()], ids=str)
def test_whole_equinox_modules_are_params(method):
    module = Whole()
    pruned = prune(whole_loss, module, method=method, finetune=TUNE)
    assert pruned.params.dropout.inference is True
    assert pruned.params.mlp.activation is module.mlp.activation
    assert jax.tree.structure(pruned.masks) == jax.tree.structure(module)
    arrays, static = eqx.partition(module, eqx.is_array)
    apart = prune(
        lambda p, b: whole_loss(eqx.combine(p, static), b), arrays, method=method,
        finetune=TUNE,
    )  # fmt: skip
    jax.tree.map(
        np.testing.assert_allclose, eqx.filter(pruned.params, eqx.is_array),
        apart.params,
    )  # fmt: skip
    masks = [swapjax.magnitude_masks(p, 0.5) for p in (module, arrays)]
    first, second = (m.mlp.layers[0].weight for m in masks)
    np.testing.assert_array_equal(first, second)


def test_methods_that_read_the_whole_network_want_arrays():
    method = swapjax.synflow(lambda p, x: p(x), (6,))
    with pytest.raises(ValueError, match=r"^params: functions are among them"):
        prune(whole_loss, Whole(), method=method)


def test_data_may_hold_tokens_flags_and_keys(tmp_path):
    params = {"table": jax.random.normal(KEY, (9, 6)), "kernel": jnp.ones((6, 3))}
    data = {
        "tokens": np.arange(32) % 9, "there": np.arange(32) % 3 > 0, "y": X[:, :3],
        "key": jax.random.split(KEY, 32), "raw": jax.random.split(KEY, 32),
    }  # fmt: skip

    def loss_fn(params, batch):
        noise = jax.vmap(lambda key: jax.random.normal(key, (3,)))(batch["key"])
        out = params["table"][batch["tokens"]] @ params["kernel"] + 0.1 * noise
        return jnp.mean(jnp.square(out - batch["y"]) * batch["there"][:, None])

    options = {"samples": 4, "batch": 3, "method": swapjax.obd(), "finetune": TUNE}
    stored = prune(loss_fn, params, data, checkpoint=tmp_path / "state", **options)
    free = prune(loss_fn, params, data, storage="matrix-free", **options)
    np.testing.assert_array_equal(stored.masks["kernel"], free.masks["kernel"])
    assert prune(loss_fn, params, iter([data] * 9), **options).history[0].kept == 9
