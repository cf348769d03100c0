"""Roles of networks as the frameworks write them: one or two of each."""

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from swapjax.core import trees
from swapjax.roles.program import trace_roles

KEY = jax.random.key(0)
ids = jax.ShapeDtypeStruct((2, 5), jnp.int32)
sequence = jax.ShapeDtypeStruct((2, 5, 8), jnp.float32)
IO = ("input", "output")
SIO, SOI = ("stack", "input", "output"), ("stack", "output", "input")


def matrices(loss_fn, params, batch):
    """The axes of all matrices by path, and the kinds of all else."""
    found = zip(trees.paths(params), trace_roles(loss_fn, params, batch), strict=True)
    return {path: role.axes or role.kind for path, role in found}


class Block(nn.Module):
    @nn.compact
    def __call__(self, h, _):
        attention = nn.MultiHeadDotProductAttention(2, name="attention")
        h = h + attention(nn.LayerNorm(name="norm")(h))
        return h + nn.Dense(8, name="dense")(nn.gelu(h)), None


class Transformer(nn.Module):
    @nn.compact
    def __call__(self, ids):
        h = nn.Embed(11, 8, name="embed")(ids)
        stack = {"params": 0}
        blocks = nn.scan(nn.remat(Block), stack, split_rngs={"params": True}, length=3)
        return nn.Dense(11, name="head")(blocks(name="blocks")(h, None)[0])


def test_linen():
    net = Transformer()
    params = jax.eval_shape(net.init, KEY, ids)["params"]
    found = matrices(lambda p, x: net.apply({"params": p}, x).mean(), params, ids)
    read = ("stack", "input", "output", "output")
    assert {p: a for p, a in found.items() if a != "vector"} == {
        "blocks/attention/key/kernel": read,
        "blocks/attention/out/kernel": ("stack", "input", "input", "output"),
        "blocks/attention/query/kernel": read,
        "blocks/attention/value/kernel": read,
        "blocks/dense/kernel": SIO,
        "embed/embedding": "table",
        "head/kernel": IO,
    }


class Cells(nnx.Module):
    def __init__(self, rngs):
        @nnx.split_rngs(splits=3)
        @nnx.vmap
        def stack(rngs):
            return nnx.Linear(8, 8, rngs=rngs)

        self.blocks = stack(rngs)
        self.recurrent = nnx.RNN(nnx.GRUCell(8, 6, rngs=rngs))

    def __call__(self, x):
        step = nnx.scan(
            lambda h, block: block(h), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry
        )
        return self.recurrent(step(x, self.blocks))


def test_nnx():
    graph, params, rest = nnx.split(Cells(nnx.Rngs(0)), nnx.Param, ...)

    def loss(params, x):
        # The counters of random numbers must be made where they count.
        return nnx.merge(graph, params, jax.tree.map(jnp.copy, rest))(x).mean()

    assert matrices(loss, params, sequence) == {
        "blocks/bias": "vector",
        "blocks/kernel": SIO,
        "recurrent/cell/dense_h/kernel": IO,
        "recurrent/cell/dense_i/bias": "vector",
        "recurrent/cell/dense_i/kernel": IO,
    }


class Layer(eqx.Module):
    norm: eqx.nn.LayerNorm
    linear: eqx.nn.Linear
    attention: eqx.nn.MultiheadAttention

    def __init__(self, key):
        self.norm, self.linear = eqx.nn.LayerNorm(8), eqx.nn.Linear(8, 8, key=key)
        self.attention = eqx.nn.MultiheadAttention(2, 8, key=key)

    def __call__(self, x):
        y = jax.vmap(self.norm)(x)
        return x + jax.vmap(self.linear)(self.attention(y, y, y))


def test_equinox():
    layers = eqx.filter_vmap(Layer)(jax.random.split(KEY, 3))
    params, static = eqx.partition(layers, eqx.is_array)

    def loss(params, x):
        step = lambda h, p: (eqx.combine(p, static)(h), None)  # noqa: E731
        return jax.vmap(lambda x: lax.scan(step, x, params)[0])(x).mean()

    found = matrices(loss, params, sequence)
    assert {p: a for p, a in found.items() if a != "vector"} == {
        "linear/weight": SOI,
        "attention/query_proj/weight": SOI,
        "attention/key_proj/weight": SOI,
        "attention/value_proj/weight": SOI,
        "attention/output_proj/weight": SOI,
    }
    assert found["norm/weight"] == found["norm/bias"] == "vector"


def test_haiku():
    def net(x):
        x = hk.experimental.layer_stack(3)(lambda x: x + hk.Linear(8, name="fc")(x))(x)
        cell = hk.LSTM(6, name="cell")
        return hk.dynamic_unroll(cell, x, cell.initial_state(5))[0].mean()

    transformed = hk.transform(net)
    params = jax.eval_shape(transformed.init, KEY, sequence)
    found = matrices(lambda p, x: transformed.apply(p, None, x), params, sequence)
    ends = {path.split("/", 1)[1]: axes for path, axes in found.items()}
    assert ends == {"fc/b": "vector", "fc/w": SIO, "linear/b": "vector", "linear/w": IO}
