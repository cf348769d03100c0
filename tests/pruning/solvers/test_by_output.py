"""Layers side by side in one program against each by itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import swapjax
from swapjax.activations.layer import Layer
from swapjax.pruning.solvers import by_output, layer_quadratic, obc_order
from swapjax.sparsity.patterns import NM

SHAPES = ((1, 5, 3), (2, 4, 2), (3, 5, 1), (1, 4, 6), (1, 5, 2))  # groups and sides


@pytest.fixture
def layers():
    """Several layers, of five inputs and of four."""
    rng = np.random.default_rng(0)
    found = []
    for groups, inputs, outputs in SHAPES:
        a = rng.normal(size=(groups, 12, inputs))
        index = np.arange(groups * inputs * outputs, dtype=np.int32)
        found.append(
            Layer(
                jnp.asarray(np.einsum("gei,gej->gij", a, a), jnp.float32),
                jnp.asarray(index.reshape(groups, inputs, outputs)),
            )
        )
    return found


@pytest.fixture
def weights():
    rng = np.random.default_rng(1)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in SHAPES]


def test_each_output_has_the_hessian_of_its_group(layers, weights):
    hessians = [layer.moment for layer in layers]
    seen = []

    def product(hessian, group, rows):
        seen.append(hessian.shape)
        return jnp.einsum("oij,oj->oi", hessian[group], rows)

    found = by_output.solve(product, hessians, weights)
    assert seen == [(5, 5, 5), (3, 4, 4)]
    for h, w, x in zip(hessians, weights, found, strict=True):
        np.testing.assert_allclose(x, h @ w, rtol=1e-5)


def test_large_ones_and_other_dtypes_stay_by_themselves(monkeypatch):
    shapes = [((1, 4, 4), "float32"), ((1, 6, 6), "float32"), ((2, 4, 4), "float32")]
    shapes += [((1, 4, 4), "bfloat16"), ((3, 6, 6), "float32")]
    hessians = [jax.ShapeDtypeStruct(*shape) for shape in shapes]
    assert by_output.alike(hessians) == [[0, 2], [1, 4], [3]]
    monkeypatch.setattr(by_output, "_JOINED", 32)
    assert by_output.alike(hessians) == [[0, 2], [1], [3], [4]]  # 32 entries, 36


def test_dampings_are_those_of_each_layer(layers):
    # One reads next to nothing: its unit is not that of the others.
    layers[2] = Layer(1e-4 * layers[2].moment, layers[2].index)
    for layer, got in zip(layers, layer_quadratic.of_layers(layers, 0.01), strict=True):
        alone = layer_quadratic.damp(layer.moment, 0.01)
        for x, y in zip(got, alone, strict=True):
            np.testing.assert_array_equal(x, y)


def test_a_singular_layer_raises_no_damping_of_others(layers):
    layers[0] = Layer(jnp.ones((1, 5, 5)), layers[0].index)
    found = layer_quadratic.of_layers(layers, 0.0)
    assert [bool(system.raised) for system in found] == [True, *[False] * 4]
    assert float(found[0].damping) > 0
    assert float(found[2].damping) == 0


def test_refits_are_those_of_each_layer(layers, weights):
    rng = np.random.default_rng(2)
    hessians = [layer.moment for layer in layers]
    supports = [jnp.asarray(rng.uniform(size=shape) < 0.5) for shape in SHAPES]
    found = layer_quadratic.refit(hessians, weights, supports)
    for h, w, m, x in zip(hessians, weights, supports, found, strict=True):
        (alone,) = layer_quadratic.refit([h], [w], [m])
        np.testing.assert_array_equal(x, alone)


@pytest.mark.parametrize("pattern", [None, NM(2, 4)])
def test_orders_are_those_of_each_layer(layers, weights, pattern):
    picked = range(5) if pattern is None else (1, 3)
    rng = np.random.default_rng(3)
    given = [
        (
            layers[i].moment,
            weights[i],
            jnp.asarray(rng.uniform(size=SHAPES[i]) < 0.8),
            jnp.asarray(
                rng.uniform(1, 2, (SHAPES[i][0], 1, SHAPES[i][2])), jnp.float32
            ),
        )
        for i in picked
    ]
    obey = [jnp.asarray(i != 3) for i in picked]
    found = obc_order.order(*map(list, zip(*given, strict=True)), pattern, obey)
    for arrays, follows, x in zip(given, obey, found, strict=True):
        alone = obc_order.order(*([a] for a in arrays), pattern, [follows])
        np.testing.assert_array_equal(x, alone[0])


METHODS = {
    "layerwise_obs": swapjax.layerwise_obs(),
    "alps": swapjax.alps(),
    "ridge": swapjax.kfac_regression(first_order=False),
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("shape", [(0, 3), (8, 0)])
def test_leaves_without_inputs_or_outputs_do_no_harm(name, shape):
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(32, 8)), rng.normal(size=(32, 3))
    params = {
        "first": jnp.asarray(rng.normal(size=(8, 6)), jnp.float32),
        "last": jnp.asarray(rng.normal(size=(6, 3)), jnp.float32),
        "none": jnp.zeros(shape),
    }

    def loss_fn(params, batch):
        x, y = batch
        nothing = x[:, : shape[0]] @ params["none"]
        made = jnp.tanh(x @ params["first"]) @ params["last"]
        return jnp.mean((made - y) ** 2) + jnp.sum(nothing)

    pruned = swapjax.prune(
        loss_fn, params, (x, y), sparsity=0.75, method=METHODS[name],
        samples=32, batch=1, key=jax.random.key(0),
    )  # fmt: skip
    assert sum(int(jnp.sum(m)) for m in jax.tree.leaves(pruned.masks)) == 17  # of 66
    assert pruned.params["none"].shape == shape
