"""Roles by name, against those of each framework's modules written down by hand."""

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax.numpy as jnp
import pytest
from flax import nnx
from framework_modules import IMAGE, SEQUENCE, equinox, haiku, linen, of_nnx
from role_words import matrices, words, words_of

HEADS = {"query/kernel": "ioo", "key/kernel": "ioo", "value/kernel": "ioo"}
ATTENTION = {**HEADS, "out/kernel": "iio"}


HIDDEN = ("hi", "hf", "hg", "ho")


def gates(*names):
    return {f"cell/{name}/kernel": "io" for name in names}


LINEN = {
    "dense": (nn.Dense(5), SEQUENCE, {"kernel": "io"}),
    "two axes out": (nn.DenseGeneral((2, 3)), SEQUENCE, {"kernel": "ioo"}),
    "two axes in": (nn.DenseGeneral(5, axis=(-2, -1)), SEQUENCE, {"kernel": "iio"}),
    "one for each": (
        nn.DenseGeneral((2, 3), batch_dims=(0,)), SEQUENCE, {"kernel": "sioo"},
    ),
    "conv 1d": (nn.Conv(7, (3,)), SEQUENCE, {"kernel": "iio"}),
    "conv": (nn.Conv(7, (3, 3)), IMAGE, {"kernel": "iiio"}),
    "conv 3d": (nn.Conv(7, (3, 3, 3)), IMAGE[None], {"kernel": "iiiio"}),
    "groups": (nn.Conv(8, (3, 3), feature_group_count=4), IMAGE, {"kernel": "iiio"}),
    "transposed": (nn.ConvTranspose(7, (2, 2)), IMAGE, {"kernel": "iiio"}),
    "transposed kernel": (
        nn.ConvTranspose(7, (2, 2), transpose_kernel=True), IMAGE, {"kernel": "iioi"},
    ),
    "attention": (nn.MultiHeadDotProductAttention(4), SEQUENCE, ATTENTION),
    "without biases": (
        nn.MultiHeadDotProductAttention(4, use_bias=False, normalize_qk=True),
        SEQUENCE, ATTENTION,
    ),
    "embed": (nn.Embed(9, 4), jnp.zeros(3, int), {"embedding": "table"}),
    "layer norm": (nn.LayerNorm(), SEQUENCE, {}),
    "norm of two axes": (nn.LayerNorm(feature_axes=(-2, -1)), SEQUENCE, {}),
    "rms norm": (nn.RMSNorm(), SEQUENCE, {}),
    "group norm": (nn.GroupNorm(2), IMAGE, {}),
    "lstm": (
        nn.RNN(nn.LSTMCell(6)), SEQUENCE,
        gates("ii", "if", "ig", "io", *HIDDEN),
    ),
    "optimized lstm": (
        nn.RNN(nn.OptimizedLSTMCell(6)), SEQUENCE,
        gates("ii", "if", "ig", "io", *HIDDEN),
    ),
    "gru": (
        nn.RNN(nn.GRUCell(6)), SEQUENCE, gates("ir", "iz", "in", "hr", "hz", "hn")
    ),
    "simple cell": (nn.RNN(nn.SimpleCell(6)), SEQUENCE, gates("i", "h")),
    "conv lstm": (
        nn.RNN(nn.ConvLSTMCell(6, (3, 3))), IMAGE[None],
        {"cell/ih/kernel": "iiio", "cell/hh/kernel": "iiio"},
    ),
    "weight norm": (
        nn.WeightNorm(nn.Dense(4)), SEQUENCE, {"layer_instance/kernel": "io"}
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", LINEN)
def test_linen(name):
    module, inputs, expected = LINEN[name]
    assert matrices(linen(module, inputs)) == expected


class Local(nn.Module):
    """A convolution with a kernel for each pixel, called as Linen calls it."""

    @nn.compact
    def __call__(self, x):
        return nn.ConvLocal(5, (3, 3))(x)


class Product(nn.Module):
    """An Einsum whose outputs lie around its input, and one without a bias."""

    @nn.compact
    def __call__(self, x):
        x = nn.Einsum((8, 2, 4), "nta,hab->nthb")(x)
        return nn.Einsum((3, 6), "nthb,hc->ntbc", use_bias=False)(x[:, :, :3])


@pytest.mark.parametrize("names", ["q_proj k_proj v_proj o_proj", "wq wk wv wo"])
def test_heads_are_known_from_the_way_back(names):
    shapes = ((12, 4, 8), (12, 2, 8), (12, 2, 8), (4, 8, 12))
    pairs = list(zip(names.split(), shapes, strict=True))
    words = ("ioo", "ioo", "ioo", "iio")
    for stack in ((), (3,)):
        found = words_of({f"{name}/kernel": (*stack, *s) for name, s in pairs})
        told = ["s" * len(stack) + w for w in words]
        assert list(found.values()) == told
    # A scan of Dense.
    square = words_of({f"{name}/kernel": (3, 12, 12) for name in names.split()})
    assert set(square.values()) == {"sio"}


def test_linen_modules_known_by_their_names():
    assert matrices(linen(Local(), IMAGE)) == {"ConvLocal_0/kernel": "eeio"}
    found = matrices(linen(Product(), SEQUENCE[..., :2]))
    assert found == {"Einsum_0/kernel": "oio", "Einsum_1/kernel": "io"}


NNX = {
    "linear": (lambda r: nnx.Linear(4, 5, rngs=r), {"kernel": "io"}),
    "general": (lambda r: nnx.LinearGeneral(4, (2, 3), rngs=r), {"kernel": "ioo"}),
    "two axes in": (
        lambda r: nnx.LinearGeneral((2, 3), 4, axis=(-2, -1), rngs=r),
        {"kernel": "iio"},
    ),
    "conv": (lambda r: nnx.Conv(4, 6, (3, 3), rngs=r), {"kernel": "iiio"}),
    "transposed": (
        lambda r: nnx.ConvTranspose(4, 6, (2, 2), transpose_kernel=True, rngs=r),
        {"kernel": "iioi"},
    ),
    "attention": (lambda r: nnx.MultiHeadAttention(4, 8, 8, rngs=r), ATTENTION),
    "embed": (lambda r: nnx.Embed(9, 4, rngs=r), {"embedding": "table"}),
    "layer norm": (lambda r: nnx.LayerNorm(4, rngs=r), {}),
    "batch norm": (lambda r: nnx.BatchNorm(4, rngs=r), {}),
    "lstm": (
        lambda r: nnx.LSTMCell(3, 4, rngs=r),
        {f"{g}/kernel": "io" for g in ("ii", "if_", "ig", "io", *HIDDEN)},
    ),
    "optimized lstm": (
        lambda r: nnx.OptimizedLSTMCell(3, 4, rngs=r),
        {"dense_i/kernel": "io", "dense_h/kernel": "io"},
    ),
    "gru": (
        lambda r: nnx.GRUCell(3, 4, rngs=r),
        {"dense_i/kernel": "io", "dense_h/kernel": "io"},
    ),
    "lora": (lambda r: nnx.LoRA(4, 2, 5, rngs=r), {"lora_a": "io", "lora_b": "io"}),
    "linear with lora": (
        lambda r: nnx.LoRALinear(4, 5, lora_rank=2, rngs=r),
        {"kernel": "io", "lora/lora_a": "io", "lora/lora_b": "io"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NNX)
def test_nnx(name):
    make, expected = NNX[name]
    assert matrices(of_nnx(make)) == expected


class Embedded(eqx.Module):
    """Tables and a norm, called as people call them."""

    tok_embed: eqx.nn.Embedding
    embeddings: list
    ln: eqx.nn.RMSNorm

    def __init__(self, key):
        self.tok_embed = eqx.nn.Embedding(9, 4, key=key)
        self.embeddings = [eqx.nn.Embedding(9, 4, key=key)]
        self.ln = eqx.nn.RMSNorm(4)


EQUINOX = {
    "linear": (lambda k: eqx.nn.Linear(4, 5, key=k), {"weight": "oi"}),
    "conv 1d": (lambda k: eqx.nn.Conv1d(4, 6, 3, key=k), {"weight": "oii"}),
    "groups": (lambda k: eqx.nn.Conv2d(4, 6, 3, groups=2, key=k), {"weight": "oiii"}),
    "transposed": (
        lambda k: eqx.nn.ConvTranspose2d(3, 6, 2, key=k), {"weight": "oiii"}
    ),
    "gru": (
        lambda k: eqx.nn.GRUCell(3, 4, key=k), {"weight_ih": "oi", "weight_hh": "oi"}
    ),
    "lstm": (
        lambda k: eqx.nn.LSTMCell(3, 4, key=k), {"weight_ih": "oi", "weight_hh": "oi"}
    ),
    "attention": (
        lambda k: eqx.nn.MultiheadAttention(2, 8, key=k),
        {f"{p}_proj/weight": "oi" for p in ("query", "key", "value", "output")},
    ),
    "embeddings": (
        Embedded, {"tok_embed/weight": "table", "embeddings/0/weight": "table"}
    ),
    "layer norm": (lambda k: eqx.nn.LayerNorm(4), {}),
    "norm of two axes": (lambda k: eqx.nn.LayerNorm((3, 4)), {}),
    "group norm": (lambda k: eqx.nn.GroupNorm(2, 4), {}),
    "mlp": (
        lambda k: eqx.nn.MLP(4, 2, 3, 2, key=k),
        {f"layers/{i}/weight": "oi" for i in range(3)},
    ),
    "weight norm": (
        lambda k: eqx.nn.WeightNorm(eqx.nn.Linear(2, 3, key=k)), {"layer/weight": "oi"}
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", EQUINOX)
def test_equinox(name):
    make, expected = EQUINOX[name]
    assert matrices(equinox(make)) == expected


def test_the_batch_norm_of_equinox():
    found = words(equinox(lambda k: eqx.nn.BatchNorm(4, "b", mode="batch")))
    assert found["weight"] == found["bias"] == "vector"
    assert set(found.values()) <= {"vector", "unknown"}


def unrolled(cell):
    return lambda x: hk.dynamic_unroll(cell(), x, cell().initial_state(5))


HAIKU = {
    "linear": (lambda x: hk.Linear(5)(x), SEQUENCE, {"linear/w": "io"}),
    "mlp": (
        lambda x: hk.nets.MLP([4, 5])(x), SEQUENCE,
        {"mlp/~/linear_0/w": "io", "mlp/~/linear_1/w": "io"},
    ),
    "conv 1d": (lambda x: hk.Conv1D(7, 3)(x), SEQUENCE, {"conv1_d/w": "iio"}),
    "conv": (lambda x: hk.Conv2D(7, 3)(x), IMAGE, {"conv2_d/w": "iiio"}),
    "transposed": (
        lambda x: hk.Conv2DTranspose(7, 3)(x), IMAGE, {"conv2_d_transpose/w": "iioi"}
    ),
    "transposed without bias": (
        lambda x: hk.Conv2DTranspose(4, 3, with_bias=False)(x), IMAGE,
        {"conv2_d_transpose/w": "iioi"},
    ),
    "depthwise": (
        lambda x: hk.DepthwiseConv2D(2, 3)(x), IMAGE, {"depthwise_conv2_d/w": "iiio"}
    ),
    "separable": (
        lambda x: hk.SeparableDepthwiseConv2D(2, 3)(x), IMAGE,
        {
            f"separable_depthwise_conv2_d/~/depthwise_conv2_d{i}/w": "iiio"
            for i in ("", "_1")
        },
    ),
    "embed": (
        lambda x: hk.Embed(9, 4)(x), jnp.zeros(3, int), {"embed/embeddings": "table"}
    ),
    "layer norm": (lambda x: hk.LayerNorm(-1, True, True)(x), SEQUENCE, {}),
    "rms norm": (lambda x: hk.RMSNorm(-1)(x), SEQUENCE, {}),
    "bias of two axes": (lambda x: hk.Bias()(x), SEQUENCE, {}),
    "gru": (unrolled(lambda: hk.GRU(6)), SEQUENCE, {"gru/w_i": "io", "gru/w_h": "io"}),
    "lstm": (unrolled(lambda: hk.LSTM(6)), SEQUENCE, {"lstm/linear/w": "io"}),
    "vanilla": (
        unrolled(lambda: hk.VanillaRNN(6)), SEQUENCE,
        {"vanilla_rnn/linear/w": "io", "vanilla_rnn/linear_1/w": "io"},
    ),
    "attention": (
        lambda x: hk.MultiHeadAttention(2, 4, w_init=jnp.zeros)(x, x, x), SEQUENCE,
        {
            f"multi_head_attention/{p}/w": "io"
            for p in ("query", "key", "value", "linear")
        },
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", HAIKU)
def test_haiku(name):
    apply, inputs, expected = HAIKU[name]
    assert matrices(haiku(apply, inputs)) == expected
