"""Networks that use their matrices in other ways than one after the other."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
from flax import linen as nn
from networks.row import (
    DENSE,
    TORCH,
    UNKNOWN,
    VECTOR,
    Network,
    Setup,
    Stack,
    at,
    fill,
    numbers,
    squared,
    stacked,
    under,
)
from networks.transformers import KEY, module

from swapjax.roles.role import matrix


def _shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


def _fitted(shapes, forward, x, y):
    loss = lambda p, b: squared(forward(p, b[0]), b[1])  # noqa: E731
    return Setup(fill(shapes), loss, (x, y))


def _mixer():
    """Blocks that mix tokens, by a product with the transposed activations, scanned."""
    shapes = {
        "blocks": {
            "channels": _shape(3, 8, 8), "norm": _shape(3, 8),
            "tokens_down": _shape(3, 12, 4), "tokens_up": _shape(3, 4, 12),
        },
        "head": _shape(8, 2),
    }  # fmt: skip

    def block(h, p):
        x = jnp.swapaxes(h * p["norm"], 1, 2)
        x = jax.nn.gelu(x @ p["tokens_up"]) @ p["tokens_down"]
        h = h + jnp.swapaxes(x, 1, 2)
        return h + jnp.tanh(h @ p["channels"]), None

    def forward(p, x):
        return jax.lax.scan(block, x, p["blocks"])[0].mean(1) @ p["head"]

    x = numbers(4, 8)
    return _fitted(shapes, forward, x, x[:, 0, :2])


def _perceiver():
    """Latents, the same for all examples, that read the data and then themselves."""
    shapes = {
        "cross": {"k": _shape(8, 4), "q": _shape(12, 4), "v": _shape(8, 12)},
        "head": _shape(12, 2), "latents": _shape(3, 12), "mix": _shape(12, 12),
    }  # fmt: skip

    def forward(p, x):
        q = p["latents"] @ p["cross"]["q"]
        k, v = x @ p["cross"]["k"], x @ p["cross"]["v"]
        read = jax.nn.softmax(jnp.einsum("ld,btd->blt", q, k)) @ v
        h = p["latents"] + read
        h = h + jnp.tanh(h @ p["mix"])
        return h.mean(1) @ p["head"]

    x = numbers(5, 8)
    return _fitted(shapes, forward, x, x[:, 0, :2])


def _lora(merged):
    """Low-rank matrices beside a kernel; merged, they are added to it first."""
    shapes = {"lora_a": _shape(8, 4), "lora_b": _shape(4, 12), "head": _shape(12, 2),
              "kernel": _shape(8, 12)}  # fmt: skip

    def forward(p, x):
        if merged:
            return (
                jnp.tanh(x @ (p["kernel"] + 0.5 * p["lora_a"] @ p["lora_b"]))
                @ p["head"]
            )
        return (
            jnp.tanh(x @ p["kernel"] + 0.5 * (x @ p["lora_a"]) @ p["lora_b"])
            @ p["head"]
        )

    x = numbers(8)
    return _fitted(shapes, forward, x, x[:, :2])


def _weight_norm():
    """Kernels that are divided by the length of each column."""
    shapes = {"g": _shape(12), "head": _shape(12, 2), "v": _shape(8, 12)}

    def forward(p, x):
        w = p["g"] * p["v"] / jnp.sqrt(jnp.sum(jnp.square(p["v"]), 0))
        return jnp.tanh(x @ w) @ p["head"]

    x = numbers(8)
    return _fitted(shapes, forward, x, x[:, :2])


class EqxNormed(eqx.Module):
    normed: eqx.nn.WeightNorm
    head: eqx.nn.Linear

    def __init__(self, key):
        self.normed = eqx.nn.WeightNorm(eqx.nn.Linear(8, 12, key=key))
        self.head = eqx.nn.Linear(12, 2, key=key)

    def __call__(self, x):
        return self.head(jnp.tanh(self.normed(x)))


def _eqx_normed():
    def loss(model, batch):
        return squared(jax.vmap(model)(batch), batch[:, :2])

    return module(EqxNormed, numbers(8), loss)


class LinenPatches(nn.Module):
    """The beginning of a vision transformer: patches, places, a class token."""

    convolve: bool

    @nn.compact
    def __call__(self, x):
        n, d = x.shape[0], 12
        if self.convolve:
            h = nn.Conv(d, (2, 2), strides=2, name="patches")(x).reshape(n, 9, d)
        else:
            x = x.reshape(n, 3, 2, 3, 2, 4).transpose(0, 1, 3, 2, 4, 5)
            h = nn.Dense(d, name="patches")(x.reshape(n, 9, 16))
        first = self.param("cls", nn.initializers.normal(), (1, 1, d))
        h = jnp.concatenate([jnp.broadcast_to(first, (n, 1, d)), h], 1)
        h = h + self.param("places", nn.initializers.normal(), (1, 10, d))
        attention = nn.MultiHeadDotProductAttention(3, name="attention")
        h = h + attention(nn.LayerNorm(name="norm")(h))
        return nn.Dense(2, name="head")(h[:, 0])


def _patches(convolve):
    model, x = LinenPatches(convolve), numbers(6, 6, 4)
    params = fill(jax.eval_shape(model.init, KEY, x))["params"]
    y = x[:, 0, 0, :2]
    return Setup(
        params, lambda p, b: squared(model.apply({"params": p}, b[0]), b[1]), (x, y)
    )


def _patch_roles(kernel):
    into = {"bias": VECTOR, "kernel": matrix("input", "output", "output")}
    out = {"bias": VECTOR, "kernel": matrix("input", "input", "output")}
    return {
        "cls": VECTOR, "places": VECTOR, "patches/kernel": kernel,
        "patches/bias": VECTOR, "head/kernel": DENSE, "head/bias": VECTOR,
        "norm/bias": VECTOR, "norm/scale": VECTOR,
        **under("attention/query", into), **under("attention/key", into),
        **under("attention/value", into), **under("attention/out", out),
    }  # fmt: skip


def _autoencoder():
    """A matrix and its transpose."""
    forward = lambda p, x: jnp.tanh(x @ p["kernel"] + p["bias"]) @ p["kernel"].T  # noqa: E731
    x = numbers(8)
    return _fitted({"bias": _shape(4), "kernel": _shape(8, 4)}, forward, x, x)


def _towers():
    """Two loops of one length, one after the other, and a pair of layers by index."""
    tower = {"kernel": _shape(3, 8, 8)}
    shapes = {"decoder": tower, "encoder": tower, "pair": _shape(2, 8, 8)}

    def run(h, p):
        return jax.lax.scan(lambda h, p: (jnp.tanh(h @ p["kernel"]), None), h, p)[0]

    def forward(p, x):
        x = run(run(x, p["encoder"]), p["decoder"])
        return jnp.tanh(x @ p["pair"][0]) @ p["pair"][1]

    x = numbers(8)
    return _fitted(shapes, forward, x, x)


def _branches():
    """Layers used under a condition, in a loop until one is met, and with derivatives
    of their own."""
    shapes = {"cond": _shape(2, 8, 8), "custom": _shape(8, 12), "loop": _shape(12, 12),
              "scaled": _shape(12, 2)}  # fmt: skip

    @jax.custom_vjp
    def product(x, w):
        return x @ w

    product.defvjp(lambda x, w: (x @ w, (x, w)), lambda r, g: (g @ r[1].T, r[0].T @ g))

    def one(p, x):
        with_first = lambda: jnp.tanh(x @ p["cond"][0])  # noqa: E731
        with_second = lambda: jnp.tanh(x @ p["cond"][1])  # noqa: E731
        return jax.lax.cond(jnp.sum(x) > 0, with_first, with_second)

    def forward(p, x):
        x = jax.lax.map(functools.partial(one, p), x)
        h = product(x, p["custom"])
        h = jax.lax.fori_loop(0, 3, lambda i, h: jnp.tanh(h @ p["loop"]), h)
        return h @ (0.5 * p["scaled"].astype(jnp.float32) / 3.0)

    x = numbers(8)
    return _fitted(shapes, forward, x, x[:, :2])


def _nested():
    """Stages of blocks, a loop in a loop."""
    shapes = {"head": _shape(8, 2), "stages": _shape(2, 3, 8, 8)}

    def forward(p, x):
        block = lambda h, w: (jnp.tanh(h @ w), None)  # noqa: E731
        stage = lambda h, w: jax.lax.scan(block, h, w)  # noqa: E731
        return (
            jax.lax.scan(lambda h, w: (stage(h, w)[0], None), x, p["stages"])[0]
            @ p["head"]
        )

    x = numbers(8)
    return _fitted(shapes, forward, x, x[:, :2])


def _twelve():
    """So many blocks that their names have another order than their numbers."""

    def forward(p, x):
        block = lambda h, p: (jnp.tanh(h @ p["kernel"] + p["bias"]), None)  # noqa: E731
        return jax.lax.scan(block, x, p["blocks"])[0] @ p["head"]["kernel"]

    blocks = {"bias": _shape(12, 4), "kernel": _shape(12, 4, 4)}
    x = numbers(4)
    shapes = {"blocks": blocks, "head": {"kernel": _shape(4, 2)}}
    return _fitted(shapes, forward, x, x[:, :2])


def _get_twelve(tree):
    return tree.get("blocks") or [tree[f"block{i}"] for i in range(12)]


def _put_twelve(tree, value):
    apart = isinstance(value, list)
    named = (
        {f"block{i}": v for i, v in enumerate(value)} if apart else {"blocks": value}
    )
    return {"head": tree["head"], **named}


PLACES = {"cls": UNKNOWN, "places": UNKNOWN}

ROWS = (
    Network(
        "mixer",
        _mixer,
        {"head": DENSE} | under("blocks", stacked({
            "channels": DENSE, "norm": VECTOR, "tokens_down": DENSE,
            "tokens_up": DENSE})),
        (at("blocks"),),
        named=None,
    ),
    Network(
        "perceiver",
        _perceiver,
        {"cross/k": DENSE, "cross/q": DENSE, "cross/v": DENSE, "head": DENSE,
         "latents": UNKNOWN, "mix": DENSE},
        # The queries are the same for all examples: what meets data is their entries.
        shown={"cross/q": TORCH},
        named=None,
    ),
    Network(
        "low rank",
        functools.partial(_lora, False),
        {"head": DENSE, "kernel": DENSE, "lora_a": DENSE, "lora_b": DENSE},
        named=None,
    ),
    Network(
        "low rank, merged",
        functools.partial(_lora, True),
        {"head": DENSE, "kernel": DENSE, "lora_a": DENSE, "lora_b": DENSE},
        named=None,
    ),
    Network("weight norm", _weight_norm, {"g": VECTOR, "head": DENSE, "v": DENSE},
            named=None),
    Network(
        "equinox weight norm",
        _eqx_normed,
        {"normed/layer/weight": TORCH, "normed/layer/bias": VECTOR, "normed/g": VECTOR,
         "head/weight": TORCH, "head/bias": VECTOR},
    ),
    Network(
        "patches by convolution",
        functools.partial(_patches, True),
        _patch_roles(matrix("input", "input", "input", "output", pixels=(0, 1))),
        named=PLACES,
    ),
    Network(
        "patches by product",
        functools.partial(_patches, False),
        _patch_roles(DENSE),
        named=PLACES,
    ),
    Network("autoencoder, tied", _autoencoder, {"bias": VECTOR, "kernel": UNKNOWN},
            named={"kernel": DENSE}),
    Network(
        "towers",
        _towers,
        {name: matrix("stack", "input", "output")
         for name in ("decoder/kernel", "encoder/kernel", "pair")},
        (at("decoder"), at("encoder"), at("pair")),
        named={"pair": UNKNOWN},
    ),
    Network(
        "branches",
        _branches,
        {"cond": matrix("stack", "input", "output"), "custom": DENSE, "loop": DENSE,
         "scaled": DENSE},
        (at("cond"),),
        named=None,
    ),
    Network(
        "twelve blocks",
        _twelve,
        {"head/kernel": DENSE}
        | under("blocks", stacked({"bias": VECTOR, "kernel": DENSE})),
        (Stack(_get_twelve, _put_twelve),),
    ),
    Network(
        "loop in a loop",
        _nested,
        {"head": DENSE, "stages": matrix("stack", "stack", "input", "output")},
        (at("stages"), *(at("stages", i) for i in range(2))),
        named=None,
    ),
)  # fmt: skip
