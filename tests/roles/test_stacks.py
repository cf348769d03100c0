"""Axes that number layers, told from those of one layer."""

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from framework_modules import IMAGE, SEQUENCE, equinox, haiku, linen
from role_words import matrices, roles_of, words_of

LAYERS = 12
ATTENTION = {"query": "ioo", "key": "ioo", "value": "ioo", "out": "iio"}


class LinenBlock(nn.Module):
    use_bias: bool = True

    @nn.compact
    def __call__(self, x, _):
        y = nn.LayerNorm()(x)
        y = nn.MultiHeadDotProductAttention(2, use_bias=self.use_bias, name="attn")(
            y, y
        )
        y = nn.Dense(32, use_bias=self.use_bias)(nn.RMSNorm()(x + y))
        return x + nn.Dense(8, use_bias=self.use_bias)(nn.gelu(y)), None


def scanned(block, axis, **options):
    return nn.scan(
        block,
        variable_axes={"params": axis},
        split_rngs={"params": True},
        length=LAYERS,
    )(name="blocks", **options)


class LinenTransformer(nn.Module):
    axis: int
    use_bias: bool

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(50, 8)(tokens)
        x, _ = scanned(LinenBlock, self.axis, use_bias=self.use_bias)(x, None)
        return nn.Dense(50, name="head")(nn.LayerNorm()(x))


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("axis", [0, 1])
def test_a_scanned_transformer_of_linen(axis, use_bias):
    def stacked(word):
        return f"{word[:axis]}s{word[axis:]}"

    module = LinenTransformer(axis, use_bias)
    assert matrices(linen(module, jnp.zeros((2, 5), int))) == {
        "Embed_0/embedding": "table",
        "head/kernel": "io",
        "blocks/Dense_0/kernel": stacked("io"),
        "blocks/Dense_1/kernel": stacked("io"),
        **{f"blocks/attn/{n}/kernel": stacked(w) for n, w in ATTENTION.items()},
    }


class ConvBlock(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        x = nn.GroupNorm(2)(nn.Conv(4, (3, 3), use_bias=False)(x))
        return nn.Conv(4, (3, 3), feature_group_count=4)(x), None


def test_scanned_convolutions_of_linen():
    module = nn.Sequential([lambda x: scanned(ConvBlock, 0)(x, None)[0]])
    assert matrices(linen(module, IMAGE)) == {
        "blocks/Conv_0/kernel": "siiio",
        "blocks/Conv_1/kernel": "siiio",
    }


class Experts(nn.Module):
    @nn.compact
    def __call__(self, x):
        gate = nn.Dense(4, name="router", use_bias=False)(x)
        many = nn.vmap(
            nn.Dense, variable_axes={"params": 0}, split_rngs={"params": True},
            in_axes=None, out_axes=-1, axis_size=4,
        )  # fmt: skip
        return (many(8, name="experts")(x) * gate[..., None, :]).sum(-1)


class ExpertBlock(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return x + Experts(name="moe")(nn.LayerNorm()(x)), None


def test_experts():
    one = {"moe/router/kernel": "io", "moe/experts/kernel": "eio"}
    assert matrices(linen(ExpertBlock(), SEQUENCE, None)) == one
    module = nn.Sequential([lambda x: scanned(ExpertBlock, 0)(x, None)[0]])
    many = {f"blocks/{path}": "s" + word for path, word in one.items()}
    assert matrices(linen(module, SEQUENCE)) == many


def test_experts_written_by_hand():
    shapes = {
        "moe/gate/kernel": (16, 8), "moe/w_in": (8, 16, 64), "moe/w_out": (8, 64, 16),
    }  # fmt: skip
    assert list(words_of(shapes).values()) == ["io", "eio", "eio"]
    routed = {"router": (16, 8), "wi": (8, 16, 64), "wo": (8, 64, 16)}
    assert list(words_of(routed).values()) == ["io", "eio", "eio"]
    stacked = {f"blocks/{path}": (12, *shape) for path, shape in shapes.items()}
    stacked["blocks/ln/scale"] = (12, 16)
    assert list(words_of(stacked).values()) == ["sio", "seio", "seio", "vector"]


class NnxBlock(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.LayerNorm(8, rngs=rngs)
        self.attn = nnx.MultiHeadAttention(2, 8, 8, rngs=rngs, decode=False)
        self.up = nnx.Linear(8, 32, rngs=rngs)
        self.down = nnx.Linear(32, 8, use_bias=False, rngs=rngs)


def test_blocks_of_nnx_made_by_vmap():
    @nnx.split_rngs(splits=LAYERS)
    @nnx.vmap(in_axes=(0,), out_axes=0)
    def make(rngs):
        return NnxBlock(rngs)

    state = nnx.state(nnx.eval_shape(lambda: make(nnx.Rngs(0))), nnx.Param)
    assert matrices(state) == {
        "up/kernel": "sio",
        "down/kernel": "sio",
        **{f"attn/{name}/kernel": "s" + word for name, word in ATTENTION.items()},
    }


class EquinoxBlock(eqx.Module):
    norm: eqx.nn.LayerNorm
    second: eqx.nn.RMSNorm  # By no name a norm.
    fc: eqx.nn.Linear
    conv: eqx.nn.Conv2d
    cell: eqx.nn.GRUCell
    attention: eqx.nn.MultiheadAttention
    scale1: jax.Array

    def __init__(self, key):
        self.norm = eqx.nn.LayerNorm(16)
        self.second = eqx.nn.RMSNorm(16, use_bias=False)
        self.fc = eqx.nn.Linear(16, 16, key=key)
        self.conv = eqx.nn.Conv2d(4, 6, 3, key=key)
        self.cell = eqx.nn.GRUCell(3, 4, key=key)
        self.attention = eqx.nn.MultiheadAttention(2, 16, key=key)
        self.scale1 = jnp.ones(16)


BLOCK = {
    "fc/weight": "oi", "conv/weight": "oiii",
    "cell/weight_ih": "oi", "cell/weight_hh": "oi",
    **{f"attention/{p}_proj/weight": "oi" for p in ("query", "key", "value", "output")},
}  # fmt: skip


class EquinoxNet(eqx.Module):
    blocks: EquinoxBlock
    head: eqx.nn.Linear

    def __init__(self, key):
        self.blocks = eqx.filter_vmap(EquinoxBlock)(jax.random.split(key, 6))
        self.head = eqx.nn.Linear(16, 6, use_bias=False, key=key)  # As many as blocks.


def test_blocks_of_equinox_made_by_vmap():
    assert matrices(equinox(EquinoxBlock)) == BLOCK
    many = equinox(lambda k: eqx.filter_vmap(EquinoxBlock)(jax.random.split(k, 6)))
    assert matrices(many) == {path: "s" + word for path, word in BLOCK.items()}
    assert matrices(equinox(EquinoxNet)) == {
        "head/weight": "oi",
        **{f"blocks/{path}": "s" + word for path, word in BLOCK.items()},
    }


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_layer_stack_of_haiku():
    def block(x):
        return x + hk.Linear(8)(
            jax.nn.relu(hk.Linear(32)(hk.LayerNorm(-1, True, True)(x)))
        )

    found = matrices(haiku(lambda x: hk.layer_stack(6)(block)(x), SEQUENCE))
    assert found == {
        "__layer_stack_no_per_layer/linear/w": "sio",
        "__layer_stack_no_per_layer/linear_1/w": "sio",
    }


def test_blocks_written_by_hand():
    shapes = {
        "blocks/w1": (12, 16, 64), "blocks/b1": (12, 64), "blocks/w2": (12, 64, 16),
        "blocks/g": (12, 16), "head/w": (16, 9),
    }  # fmt: skip
    assert list(words_of(shapes).values()) == ["sio", "vector", "sio", "vector", "io"]


@pytest.mark.parametrize(
    ("shapes", "pixels"),
    [
        ({"conv/kernel": (3, 3, 4, 8)}, (0, 1)),
        ({"conv.weight": (8, 4, 3)}, (2,)),
        ({"b/conv/kernel": (5, 3, 3, 4, 8), "b/conv/bias": (5, 8)}, (1, 2)),
        ({"b/conv/kernel": (3, 5, 4, 8), "b/conv/bias": (8, 5)}, (0,)),
        ({"c/w": (3, 3, 4, 8), "c/b": (8,)}, (0, 1)),
        ({"experts/conv/kernel": (5, 3, 3, 4, 8), "experts/conv/bias": (5, 8)}, (1, 2)),
        ({"query/kernel": (16, 4, 4)}, ()),
    ],
)
def test_pixels(shapes, pixels):
    assert roles_of(shapes)[0].pixels == pixels


def test_a_stack_beside_a_head():
    shapes = {"blocks/kernel": (4, 16, 16), "head/kernel": (16, 4)}
    assert list(words_of(shapes).values()) == ["sio", "io"]


def test_stacks_in_stacks():
    shapes = {
        "outer/ln/scale": (3, 16),
        "outer/inner/fc/kernel": (3, 4, 16, 16),
        "outer/inner/fc/bias": (3, 4, 16),
    }
    assert list(words_of(shapes).values()) == ["vector", "ssio", "vector"]
    assert words_of({"kernel": (3, 12, 16, 64)}) == {"kernel": "ssio"}


def test_heads_are_no_stack():
    """A query of three axes is stacked only where its bias or a norm says so."""
    assert words_of({"query/kernel": (16, 4, 4)}) == {"query/kernel": "ioo"}
    biased = {"query/kernel": (12, 16, 16), "query/bias": (12, 16)}
    assert words_of(biased)["query/kernel"] == "sio"
    beside = {"b/query/kernel": (12, 16, 16), "b/ln/scale": (12, 16)}
    assert words_of(beside)["b/query/kernel"] == "sio"


def test_a_whole_network_may_be_stacked():
    shapes = {
        "conv/kernel": (5, 3, 3, 4, 8), "conv/bias": (5, 8),
        "fc/kernel": (5, 8, 10), "fc/bias": (5, 10), "embed/embedding": (5, 9, 8),
    }  # fmt: skip
    found = list(words_of(shapes).values())
    assert found == ["siiio", "vector", "sio", "vector", "table"]


def test_matrices_of_like_sizes_share_axes_by_chance():
    shapes = {"encoder/kernel": (3, 8, 8), "decoder/kernel": (3, 8, 8)}
    assert set(words_of(shapes | {"pair": (2, 8, 8)}).values()) == {"sio", "unknown"}


def test_lists_of_like_layers_are_no_stack():
    shapes = {f"layers/{i}/weight": (16, 16) for i in range(12)}
    assert set(words_of(shapes).values()) == {"oi"}
    shapes = {f"Dense_{i}/kernel": (16, 16) for i in range(12)}
    assert set(words_of(shapes).values()) == {"io"}
