"""Networks of nnx, Linen and Equinox, with sites that are found and by hand."""

import itertools

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from swapjax import backward
from swapjax.core import trees

KEY = jax.random.key(4)
SIDES = (8, 12, 16, 12, 3)
X = jax.random.normal(KEY, (10, 8))


class OfNnx(nnx.Module):
    def __init__(self, rngs):
        pairs = itertools.pairwise(SIDES)
        self.layers = nnx.List([nnx.Linear(*pair, rngs=rngs) for pair in pairs])

    def __call__(self, x):
        for i, layer in enumerate(self.layers[:-1]):
            x = nnx.relu(backward.site(layer(x), f"hidden{i}"))
        return self.layers[-1](x)


class OfLinen(nn.Module):
    @nn.compact
    def __call__(self, x):
        for i, side in enumerate(SIDES[1:-1]):
            x = nn.relu(backward.site(nn.Dense(side)(x), f"hidden{i}"))
        return nn.remat(nn.Dense)(SIDES[-1])(x)


class OfEquinox(eqx.Module):
    layers: list

    def __init__(self, key):
        pairs = itertools.pairwise(SIDES)
        self.layers = [eqx.nn.Linear(*pair, key=key) for pair in pairs]

    def __call__(self, x):
        for i, layer in enumerate(self.layers[:-1]):
            x = jax.nn.relu(backward.site(layer(x), f"hidden{i}"))
        return self.layers[-1](x)


def nnx_network():
    graph, params = nnx.split(OfNnx(nnx.Rngs(0)))
    return params, lambda params, x: nnx.merge(graph, params)(x)


def linen_network():
    module = OfLinen()
    return module.init(KEY, X), module.apply


def equinox_network():
    params, static = eqx.partition(OfEquinox(KEY), eqx.is_array)
    return params, lambda params, x: jax.vmap(eqx.combine(params, static))(x)


@pytest.mark.parametrize("make", [nnx_network, linen_network, equinox_network])
def test_networks_of_frameworks(make):
    params, apply = make()
    loss = lambda params, x: jnp.mean(apply(params, x) ** 2)  # noqa: E731
    wanted = jax.tree.leaves(jax.jit(jax.grad(loss))(params, X))
    names = dict(zip(trees.paths(params), range(99), strict=False))
    found = backward.find_sites(loss, params, X)
    assert [site.kind for site in found] == ["input", "input"]
    assert all(site.name.removesuffix(":input") in names for site in found)
    objective = backward.prune_backward(loss, threshold="exact", sites="marked")
    state = objective.init(params, X)
    assert list(state.sites) == ["hidden0", "hidden1", "hidden2"]
    gradients, value, _, told = jax.jit(objective.value_and_grad)(params, state, X, KEY)
    assert value == pytest.approx(float(loss(params, X)), rel=1e-5)
    assert jax.tree.structure(gradients) == jax.tree.structure(params)
    assert told["zeros after"] > told["zeros before"] + 0.1
    same = map(np.allclose, jax.tree.leaves(gradients), wanted)
    assert 2 <= sum(same) < len(wanted)  # those of the last layer are exact
