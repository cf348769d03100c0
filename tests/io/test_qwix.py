"""Masks go to Qwix's sparsity modules and come back."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import swapjax
from swapjax.core import trees
from swapjax.io.qwix import masks_from_qwix, masks_to_qwix, rule_for_qwix


class Sparsity(nnx.Module):
    """The variables of Qwix's module."""

    def __init__(self, shape):
        self.step = nnx.BatchStat(jnp.zeros([], jnp.int32))
        self.mask = nnx.BatchStat(jnp.ones(shape, bool))


class Dense(nnx.Module):
    def __init__(self, inputs, outputs, sparsity, rngs):
        shape = (inputs, outputs)
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), shape))
        self.bias = nnx.Param(jnp.zeros(outputs))
        self.sparsity = sparsity(shape)

    def __call__(self, x):
        x, kernel = self.sparsity(x, self.kernel[...])
        return x @ kernel + self.bias[...]


class Net(nnx.Module):
    def __init__(self, sparsity=Sparsity):
        rngs = nnx.Rngs(0)
        self.norm = nnx.BatchNorm(8, rngs=rngs)  # has statistics, and no mask
        sides = (8, 12), (12, 4)
        self.layers = nnx.List([Dense(*side, sparsity, rngs) for side in sides])

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.fixture(scope="module")
def network():
    net = Net()
    params = nnx.to_pure_dict(nnx.state(net, nnx.Param))
    return (
        net,
        params,
        swapjax.magnitude_masks(
            params, plan=swapjax.plan(params, pattern=swapjax.NM(2, 4))
        ),
    )


@pytest.mark.parametrize("pure", [False, True])
def test_masks_go_there_and_come_back(network, pure):
    net, params, masks = network
    state = nnx.state(net, nnx.BatchStat)
    state = nnx.to_pure_dict(state) if pure else state
    written = masks_to_qwix(masks, state)
    assert jax.tree.structure(written) == jax.tree.structure(state)
    same = [p for p in trees.paths(state) if not p.endswith("/mask")]
    before, after = trees.by_path(state), trees.by_path(written)
    assert all(after[path] is before[path] for path in same)
    assert swapjax.density(masks_from_qwix(written, params)) == 0.5
    assert swapjax.churn(masks_from_qwix(written, params), masks) == 0


def test_a_layer_that_is_not_pruned_is_all_true(network):
    net, _, masks = network
    one = {
        **masks,
        "layers": {0: masks["layers"][0], 1: {"bias": True, "kernel": True}},
    }
    written = masks_to_qwix(one, nnx.to_pure_dict(nnx.state(net, nnx.BatchStat)))
    assert written["layers"][1]["sparsity"]["mask"].all()


def module(*shape):
    return {"mask": jnp.ones(shape, bool), "step": jnp.int32(3)}


def test_leaves_tell_which_of_several_a_mask_is_of():
    params = {"mlp": {"down": jnp.ones((4, 4)), "up": jnp.ones((4, 4))}}
    state = {"mlp": {"a": module(4, 4), "b": module(4, 4)}}
    with pytest.raises(ValueError, match="mlp has 2 leaves of that shape"):
        masks_from_qwix(state, params)
    leaves = {"mlp/a/mask": "mlp/up", "mlp/b/mask": "mlp/down"}
    masks = {"mlp": {"down": jnp.eye(4) > 0, "up": jnp.ones((4, 4), bool)}}
    written = masks_to_qwix(masks, state, leaves)
    assert int(written["mlp"]["b"]["mask"].sum()) == 4
    assert swapjax.churn(masks_from_qwix(written, params, leaves), masks) == 0
    with pytest.raises(ValueError, match="two masks are of mlp/up"):
        masks_from_qwix(state, params, dict.fromkeys(leaves, "mlp/up"))
    with pytest.raises(ValueError, match=r"leaves: mlp/a/mask .* no leaf"):
        masks_from_qwix(state, params, {"mlp/a/mask": "mlp/w"})


@pytest.mark.parametrize(
    ("state", "sentence"),
    [
        ({"fc": {"mask": jnp.ones(3, bool)}}, "state: must hold masks"),
        ({"fc": {"sparse": {**module(3), "mask": jnp.ones(3)}}}, "must be bool"),
        ({"fc": {"sparse": module(3, 2)}}, "fc has no leaf of that shape"),
    ],
)
def test_a_state_that_does_not_fit_is_told(state, sentence):
    with pytest.raises(ValueError, match=sentence):
        masks_from_qwix(state, {"fc": {"kernel": jnp.ones((2, 3))}})


def test_masks_that_do_not_fit_are_told():
    state = {"fc": {"sparse": module(2, 3)}}
    with pytest.raises(ValueError, match="fc has no mask of that shape"):
        masks_to_qwix({"fc": {"kernel": jnp.ones((3, 2), bool)}}, state)
    masks = {"fc": {"kernel": jnp.ones((2, 3), bool)}, "out": jnp.zeros(2, bool)}
    with pytest.raises(ValueError, match="masks: out is False somewhere"):
        masks_to_qwix(masks, state)


def test_an_axis_that_qwix_does_not_take_is_told():
    assert rule_for_qwix(swapjax.NM(1, 4), -1) == {
        "weight_sparsity_n": 1, "weight_sparsity_m": 4, "weight_sparsity_order": "R",
    }  # fmt: skip
    with pytest.raises(ValueError, match="axis must be -2 or -1"):
        rule_for_qwix(swapjax.NM(2, 4), 0)
    with pytest.raises(ValueError, match="pattern must be an NM"):
        rule_for_qwix(swapjax.Channel())
    state = {"fc": {"mask": np.ones((4, 2), bool), "step": np.int32(0)}}
    with pytest.raises(ValueError, match="leaves: other is no mask of state"):
        masks_from_qwix(state, {"fc": np.ones((4, 2))}, {"other": "fc"})


@pytest.mark.skipif(
    importlib.util.find_spec("qwix") is None, reason="Qwix is not installed"
)
def test_qwix_itself_runs_them_and_chooses_the_same(network):
    # The only way to its rules and modules, which it exports nowhere else.
    rules = importlib.import_module("qwix._src.core.sparsity")
    modules = importlib.import_module("qwix.contrib.sparsity.sparsity_module")
    _, _, masks = network
    pattern = rule_for_qwix(swapjax.NM(2, 4))

    def make(**more):
        rule = rules.SparsityRule(**pattern, **more)
        return Net(lambda shape: modules.SparsityModule(shape, None, rule))

    x = jax.random.normal(jax.random.key(1), (5, 8))
    chosen = make()  # the same weights: one key
    params = nnx.to_pure_dict(nnx.state(chosen, nnx.Param))
    output = chosen(x)
    theirs = masks_from_qwix(nnx.state(chosen, nnx.BatchStat), params)
    assert swapjax.churn(theirs, masks) == 0
    given = make(eval_mode=True)
    flipped = jax.tree.map(lambda m: m[::-1] if m.ndim else m, masks)
    for own in masks, flipped:
        nnx.update(given, masks_to_qwix(own, nnx.state(given, nnx.BatchStat)))
        pruned = swapjax.apply_masks(params, own)["layers"]
        wanted = x
        for i in (0, 1):
            wanted = wanted @ pruned[i]["kernel"] + pruned[i]["bias"]
        np.testing.assert_allclose(given(x), wanted, rtol=1e-5, atol=1e-5)
    nnx.update(given, masks_to_qwix(masks, nnx.state(given, nnx.BatchStat)))
    np.testing.assert_array_equal(given(x), output)
