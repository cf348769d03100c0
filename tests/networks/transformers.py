"""Transformers in Linen, nnx, Equinox, Haiku and plain JAX: scanned and looped."""

import functools

import equinox as eqx
import haiku as hk
import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx
from networks.row import (
    DENSE,
    TABLE,
    TORCH,
    VECTOR,
    Network,
    Setup,
    Stack,
    at,
    fill,
    next_token,
    numbers,
    squared,
    stacked,
    tokens,
    under,
)

from swapjax.roles.role import matrix

LAYERS, WIDTH, HEADS, HEAD, HIDDEN, VOCABULARY, LENGTH = 2, 8, 3, 4, 16, 20, 5
INNER = HEADS * HEAD

KEY = jax.ShapeDtypeStruct((2,), jnp.uint32)
FLAX_NORM = {"bias": VECTOR, "scale": VECTOR}
FLAX_DENSE = {"bias": VECTOR, "kernel": DENSE}
INTO_HEADS = {"bias": VECTOR, "kernel": matrix("input", "output", "output")}
OUT_OF_HEADS = {"bias": VECTOR, "kernel": matrix("input", "input", "output")}
ATTENTION = (
    under("key", INTO_HEADS) | under("query", INTO_HEADS) | under("value", INTO_HEADS)
    | under("out", OUT_OF_HEADS)
)  # fmt: skip
FLAX_BLOCK = (
    under("attention", ATTENTION) | under("norm1", FLAX_NORM)
    | under("norm2", FLAX_NORM) | under("up", FLAX_DENSE) | under("down", FLAX_DENSE)
)  # fmt: skip
FLAX_ENDS = (
    {"embed/embedding": TABLE} | under("norm", FLAX_NORM) | {"head/kernel": DENSE}
)


class LinenBlock(nn.Module):
    @nn.compact
    def __call__(self, h, _=None):
        x = nn.LayerNorm(name="norm1")(h)
        attention = nn.MultiHeadDotProductAttention(
            HEADS, qkv_features=INNER, name="attention"
        )
        h = h + attention(x, mask=nn.make_causal_mask(x[..., 0]))
        x = nn.Dense(HIDDEN, name="up")(nn.LayerNorm(name="norm2")(h))
        return h + nn.Dense(WIDTH, name="down")(nn.gelu(x)), None


class LinenTransformer(nn.Module):
    axis: int | None = 0
    remat: bool = False

    @nn.compact
    def __call__(self, ids):
        h = nn.Embed(VOCABULARY, WIDTH, name="embed")(ids)
        if self.axis is None:
            for i in range(LAYERS):
                h, _ = LinenBlock(name=f"block{i}")(h)
        else:
            block = (
                nn.remat(LinenBlock, prevent_cse=False) if self.remat else LinenBlock
            )
            blocks = nn.scan(
                block,
                variable_axes={"params": self.axis},
                split_rngs={"params": True},
                length=LAYERS,
            )
            h, _ = blocks(name="blocks")(h, None)
        h = nn.LayerNorm(name="norm")(h)
        return nn.Dense(VOCABULARY, use_bias=False, name="head")(h)


def _linen(model):
    data = tokens(LENGTH, VOCABULARY)
    params = fill(jax.eval_shape(model.init, KEY, data))["params"]
    loss = lambda p, ids: next_token(model.apply({"params": p}, ids), ids)  # noqa: E731
    return Setup(params, loss, data)


def _linen_loop(params, ids):
    params = dict(params)
    blocks = {f"block{i}": p for i, p in enumerate(params.pop("blocks"))}
    logits = LinenTransformer(None).apply({"params": params | blocks}, ids)
    return next_token(logits, ids)


def _linen_scan(name, axis, remat=False):
    return Network(
        name,
        functools.partial(_linen, LinenTransformer(axis, remat)),
        FLAX_ENDS | under("blocks", stacked(FLAX_BLOCK, axis)),
        (at("blocks", axis=axis),),
        loop=_linen_loop,
    )


class LinenEnsemble(nn.Module):
    """Three networks side by side, none of which knows the others."""

    @nn.compact
    def __call__(self, x):
        members = nn.vmap(
            nn.Dense, variable_axes={"params": 0}, split_rngs={"params": True},
            in_axes=None, axis_size=3,
        )  # fmt: skip
        return nn.Dense(2, name="head")(nn.relu(members(12, name="members")(x)))


def _ensemble():
    model, x = LinenEnsemble(), numbers(8)
    params = fill(jax.eval_shape(model.init, KEY, x))["params"]
    loss = lambda p, x: squared(model.apply({"params": p}, x), x[:, :2])  # noqa: E731
    return Setup(params, loss, x)


class NnxBlock(nnx.Module):
    def __init__(self, rngs):
        self.norm1 = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.norm2 = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(
            HEADS, WIDTH, INNER, decode=False, rngs=rngs
        )
        self.up = nnx.Linear(WIDTH, HIDDEN, rngs=rngs)
        self.down = nnx.Linear(HIDDEN, WIDTH, rngs=rngs)

    def __call__(self, h):
        h = h + self.attention(self.norm1(h))
        return h + self.down(nnx.gelu(self.up(self.norm2(h))))


class NnxTransformer(nnx.Module):
    def __init__(self, scanned, rngs):
        self.embed = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs)
        self.norm = nnx.LayerNorm(WIDTH, rngs=rngs)
        self.head = nnx.Linear(WIDTH, VOCABULARY, use_bias=False, rngs=rngs)
        self.scanned = scanned
        if scanned:

            @nnx.split_rngs(splits=LAYERS)
            @nnx.vmap(in_axes=0, out_axes=0)
            def create(rngs):
                return NnxBlock(rngs)

            self.blocks = create(rngs)
        else:
            self.blocks = nnx.List([NnxBlock(rngs) for _ in range(LAYERS)])

    def __call__(self, ids):
        h = self.embed(ids)
        if self.scanned:

            @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
            def step(h, block):
                return block(h)

            h = step(h, self.blocks)
        else:
            for block in self.blocks:
                h = block(h)
        return self.head(self.norm(h))


def _nnx(scanned):
    data = tokens(LENGTH, VOCABULARY)
    model = nnx.eval_shape(lambda: NnxTransformer(scanned, nnx.Rngs(0)))
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    rest = blank(rest)

    def loss(params, ids):
        return next_token(nnx.merge(graph, params, rest)(ids), ids)

    return Setup(fill(nnx.as_pure(params)), loss, data)


def blank(shapes):
    """Make arrays of what is no param: keys and counts."""

    def make(leaf):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jnp.broadcast_to(jax.random.key(0), leaf.shape)
        return jnp.zeros(leaf.shape, leaf.dtype)

    return jax.tree.map(make, shapes)


EQX_NORM = {"weight": VECTOR, "bias": VECTOR}
EQX_BLOCK = (
    under("norm1", EQX_NORM) | under("norm2", EQX_NORM)
    | {f"attention/{n}_proj/weight": TORCH for n in ("query", "key", "value", "output")}
    | under("up", {"weight": TORCH, "bias": VECTOR})
    | under("down", {"weight": TORCH, "bias": VECTOR})
)  # fmt: skip
EQX_ENDS = (
    {"embed/weight": TABLE, "head/weight": TORCH, "head/bias": VECTOR}
    | under("norm", EQX_NORM)
)  # fmt: skip


class EqxBlock(eqx.Module):
    norm1: eqx.nn.LayerNorm
    norm2: eqx.nn.LayerNorm
    attention: eqx.nn.MultiheadAttention
    up: eqx.nn.Linear
    down: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 3)
        self.norm1, self.norm2 = eqx.nn.LayerNorm(WIDTH), eqx.nn.LayerNorm(WIDTH)
        self.attention = eqx.nn.MultiheadAttention(
            HEADS, WIDTH, qk_size=HEAD, vo_size=HEAD, key=keys[0]
        )
        self.up = eqx.nn.Linear(WIDTH, HIDDEN, key=keys[1])
        self.down = eqx.nn.Linear(HIDDEN, WIDTH, key=keys[2])

    def __call__(self, h):
        x = jax.vmap(self.norm1)(h)
        h = h + self.attention(x, x, x)
        x = jax.nn.gelu(jax.vmap(self.up)(jax.vmap(self.norm2)(h)))
        return h + jax.vmap(self.down)(x)


class EqxTransformer(eqx.Module):
    embed: eqx.nn.Embedding
    blocks: EqxBlock | list[EqxBlock]
    norm: eqx.nn.LayerNorm
    head: eqx.nn.Linear

    def __init__(self, scanned, key):
        keys = jax.random.split(key, LAYERS)
        self.embed = eqx.nn.Embedding(VOCABULARY, WIDTH, key=key)
        self.blocks = (
            eqx.filter_vmap(EqxBlock)(keys) if scanned else [*map(EqxBlock, keys)]
        )
        self.norm = eqx.nn.LayerNorm(WIDTH)
        self.head = eqx.nn.Linear(WIDTH, VOCABULARY, key=key)

    def __call__(self, ids):
        h = jax.vmap(self.embed)(ids)
        if isinstance(self.blocks, list):
            for block in self.blocks:
                h = block(h)
        else:
            arrays, rest = eqx.partition(self.blocks, eqx.is_array)
            step = lambda h, block: (eqx.combine(block, rest)(h), None)  # noqa: E731
            h, _ = jax.lax.scan(step, h, arrays)
        return jax.vmap(self.head)(jax.vmap(self.norm)(h))


def module(make, data, loss):
    """A network of an Equinox module; loss takes the module and a batch."""
    shapes = eqx.filter_eval_shape(make, jax.random.key(0))
    arrays, rest = eqx.partition(shapes, lambda x: isinstance(x, jax.ShapeDtypeStruct))
    return Setup(fill(arrays), lambda p, b: loss(eqx.combine(p, rest), b), data)


def _eqx_loss(model, ids):
    return next_token(jax.vmap(model)(ids), ids)


def _eqx(scanned):
    make = functools.partial(EqxTransformer, scanned)
    return module(make, tokens(LENGTH, VOCABULARY), _eqx_loss)


def _eqx_loop(params, ids):
    shapes = eqx.filter_eval_shape(EqxTransformer, False, jax.random.key(0))
    rest = eqx.filter(shapes, lambda x: not isinstance(x, jax.ShapeDtypeStruct))
    return _eqx_loss(eqx.combine(params, rest), ids)


EQX_STACK = Stack(
    lambda tree: tree.blocks,
    lambda tree, value: eqx.tree_at(
        lambda t: t.blocks, tree, value, is_leaf=lambda x: x is None
    ),
)

HK_NORM = {"offset": VECTOR, "scale": VECTOR}
HK_DENSE = {"b": VECTOR, "w": DENSE}
HK_BLOCK = (
    under("norm1", HK_NORM) | under("norm2", HK_NORM) | under("up", HK_DENSE)
    | under("down", HK_DENSE) | under("multi_head_attention/linear", HK_DENSE)
    | under("multi_head_attention/key", HK_DENSE)
    | under("multi_head_attention/query", HK_DENSE)
    | under("multi_head_attention/value", HK_DENSE)
)  # fmt: skip
HK_ENDS = {"embed/embeddings": TABLE, **under("norm", HK_NORM), "head/w": DENSE}


def _hk_block(h):
    x = hk.LayerNorm(-1, True, True, name="norm1")(h)
    attention = hk.MultiHeadAttention(HEADS, HEAD, model_size=WIDTH, w_init=jnp.zeros)
    h = h + attention(x, x, x)
    x = hk.LayerNorm(-1, True, True, name="norm2")(h)
    return h + hk.Linear(WIDTH, name="down")(
        jax.nn.gelu(hk.Linear(HIDDEN, name="up")(x))
    )


def _hk(scanned):
    data = tokens(LENGTH, VOCABULARY)

    def forward(ids):
        h = hk.Embed(VOCABULARY, WIDTH, name="embed")(ids)
        if scanned:
            h = hk.experimental.layer_stack(LAYERS, name="blocks")(_hk_block)(h)
        else:
            for i in range(LAYERS):
                h = hk.to_module(_hk_block)(f"block{i}")(h)
        h = hk.LayerNorm(-1, True, True, name="norm")(h)
        return hk.Linear(VOCABULARY, with_bias=False, name="head")(h)

    network = hk.without_apply_rng(hk.transform(forward))
    params = fill(jax.eval_shape(network.init, KEY, data))
    return Setup(params, lambda p, ids: next_token(network.apply(p, ids), ids), data)


def _hk_get(tree):
    """The modules of the stack, which share a name's beginning, or the list of them."""
    inside = {k: v for k, v in tree.items() if k.startswith("blocks/")}
    return inside or tree["blocks"]


def _hk_put(tree, value):
    others = {k: v for k, v in tree.items() if not k.startswith("blocks")}
    return others | (value if isinstance(value, dict) else {"blocks": value})


PLAIN_BLOCK = {
    "bias": VECTOR, "down": DENSE, "norm": VECTOR, "out": DENSE, "qkv": DENSE,
    "up": DENSE,
}  # fmt: skip
PLAIN_ENDS = {"embed": TABLE, "head": DENSE, "places": VECTOR}


def _plain_block(h, p):
    """One block with queries, keys and values in one kernel."""
    x = p["norm"] * h / jnp.sqrt(jnp.mean(jnp.square(h), -1, keepdims=True) + 1e-6)
    q, k, v = (
        part.reshape(*h.shape[:-1], HEADS, HEAD)
        for part in jnp.split(x @ p["qkv"], 3, -1)
    )
    weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k) / HEAD**0.5)
    read = jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(*h.shape[:-1], INNER)
    h = h + read @ p["out"]
    return h + jax.nn.relu(h @ p["up"] + p["bias"]) @ p["down"]


def _plain_params(lead=()):
    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)  # noqa: E731
    block = {
        "bias": shape(*lead, HIDDEN),
        "down": shape(*lead, HIDDEN, WIDTH),
        "norm": shape(*lead, WIDTH),
        "out": shape(*lead, INNER, WIDTH),
        "qkv": shape(*lead, WIDTH, 3 * INNER),
        "up": shape(*lead, WIDTH, HIDDEN),
    }
    ends = {
        "embed": shape(VOCABULARY, WIDTH),
        "head": shape(WIDTH, VOCABULARY),
        "places": shape(LENGTH + 1, WIDTH),
    }
    return fill({"blocks": block if lead else [block] * LAYERS, **ends})


def _scan(h, blocks):
    step = jax.checkpoint(lambda h, p: (_plain_block(h, p), None))
    return jax.lax.scan(step, h, blocks)[0]


def _loop(h, blocks):
    return functools.reduce(_plain_block, blocks, h)


def _index(h, blocks):
    for i in range(LAYERS):
        h = _plain_block(h, jax.tree.map(lambda leaf, i=i: leaf[i], blocks))
    return h


def _fori(h, blocks):
    def step(i, h):
        return _plain_block(h, jax.tree.map(lambda leaf: leaf[i], blocks))

    return jax.lax.fori_loop(0, LAYERS, step, h)


def _plain_loss(run, params, ids):
    h = params["embed"][ids] + params["places"][: ids.shape[1]]
    return next_token(run(h, params["blocks"]) @ params["head"], ids)


def _plain(run, lead):
    loss = functools.partial(_plain_loss, run)
    return Setup(_plain_params(lead), loss, tokens(LENGTH, VOCABULARY))


def _plain_stack(name, run):
    return Network(
        name,
        functools.partial(_plain, run, (LAYERS,)),
        PLAIN_ENDS | under("blocks", stacked(PLAIN_BLOCK)),
        (at("blocks"),),
        loop=functools.partial(_plain_loss, _loop),
        named=None,
    )


def _listed(roles):
    return {k: v for i in range(LAYERS) for k, v in under(f"blocks/{i}", roles).items()}


ROWS = (
    _linen_scan("linen scan", 0),
    _linen_scan("linen scan, axis 1", 1, remat=True),
    Network(
        "linen list",
        functools.partial(_linen, LinenTransformer(None)),
        FLAX_ENDS | under("block0", FLAX_BLOCK) | under("block1", FLAX_BLOCK),
    ),
    Network(
        "linen ensemble",
        _ensemble,
        under("members", stacked(FLAX_DENSE)) | under("head", FLAX_DENSE),
        (at("members"),),
        # One product of the same inputs with all members side by side.
        shown={"members/kernel": matrix("output", "input", "output")},
    ),
    Network(
        "nnx scan",
        functools.partial(_nnx, True),
        FLAX_ENDS | under("blocks", stacked(FLAX_BLOCK)),
        (at("blocks"),),
    ),
    Network(
        "nnx list", functools.partial(_nnx, False), FLAX_ENDS | _listed(FLAX_BLOCK)
    ),
    Network(
        "equinox scan",
        functools.partial(_eqx, True),
        EQX_ENDS | under("blocks", stacked(EQX_BLOCK)),
        (EQX_STACK,),
        loop=_eqx_loop,
    ),
    Network(
        "equinox list", functools.partial(_eqx, False), EQX_ENDS | _listed(EQX_BLOCK)
    ),
    Network(
        "haiku layer_stack",
        functools.partial(_hk, True),
        HK_ENDS | under("blocks", stacked(HK_BLOCK)),
        (Stack(_hk_get, _hk_put),),
    ),
    Network(
        "haiku list",
        functools.partial(_hk, False),
        HK_ENDS | under("block0", HK_BLOCK) | under("block1", HK_BLOCK),
    ),
    _plain_stack("plain scan", _scan),
    _plain_stack("plain index", _index),
    _plain_stack("plain fori_loop", _fori),
    Network(
        "plain list",
        functools.partial(_plain, _loop, ()),
        PLAIN_ENDS | _listed(PLAIN_BLOCK),
        named=None,
    ),
)
