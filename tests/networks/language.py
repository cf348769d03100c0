"""Language models as flat dicts with the names of Hugging Face."""

import functools

import jax
import jax.numpy as jnp
from networks.row import (
    DENSE,
    TABLE,
    TORCH,
    UNKNOWN,
    VECTOR,
    Network,
    Setup,
    Stack,
    fill,
    next_token,
    stacked,
    tokens,
)

from swapjax.roles.role import Role

LAYERS, WIDTH, HEADS, SHARED, HEAD, HIDDEN, VOCABULARY, LENGTH = (
    2,
    12,
    4,
    2,
    4,
    20,
    24,
    5,
)


def _shape(*sizes):
    return jax.ShapeDtypeStruct(sizes, jnp.float32)


LLAMA_BLOCK = {
    "input_layernorm.weight": (WIDTH,),
    "mlp.down_proj.weight": (WIDTH, HIDDEN),
    "mlp.gate_proj.weight": (HIDDEN, WIDTH),
    "mlp.up_proj.weight": (HIDDEN, WIDTH),
    "post_attention_layernorm.weight": (WIDTH,),
    "self_attn.k_proj.weight": (SHARED * HEAD, WIDTH),
    "self_attn.o_proj.weight": (WIDTH, HEADS * HEAD),
    "self_attn.q_proj.weight": (HEADS * HEAD, WIDTH),
    "self_attn.v_proj.weight": (SHARED * HEAD, WIDTH),
}
LLAMA_ENDS = {
    "lm_head.weight": (VOCABULARY, WIDTH),
    "model.embed_tokens.weight": (VOCABULARY, WIDTH),
    "model.norm.weight": (WIDTH,),
}


def _rms(h, scale):
    return scale * h * jax.lax.rsqrt(jnp.mean(jnp.square(h), -1, keepdims=True) + 1e-6)


def _rotate(x):
    """Rotary embeddings of [b, t, heads, d]."""
    half = x.shape[-1] // 2
    angle = jnp.arange(x.shape[1])[:, None] * 100.0 ** (-jnp.arange(half) / half)
    cos, sin = jnp.cos(angle)[:, None], jnp.sin(angle)[:, None]
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def _attend(q, k, v):
    """Causal attention of [b, t, heads, d], laid out as [b, t, heads * d]."""
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5
    causal = jnp.tril(jnp.ones(scores.shape[-2:], bool))
    weights = jax.nn.softmax(jnp.where(causal, scores, -1e9))
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(*q.shape[:2], -1)


def _llama_block(h, p):
    x = _rms(h, p["input_layernorm.weight"])

    def heads(name, count):
        y = x @ p[f"self_attn.{name}_proj.weight"].T
        return y.reshape(*x.shape[:2], count, HEAD)

    q, k, v = (
        _rotate(heads("q", HEADS)),
        _rotate(heads("k", SHARED)),
        heads("v", SHARED),
    )
    # Grouped queries: each key and value serves two heads.
    k, v = (jnp.repeat(part, HEADS // SHARED, axis=2) for part in (k, v))
    h = h + _attend(q, k, v) @ p["self_attn.o_proj.weight"].T
    x = _rms(h, p["post_attention_layernorm.weight"])
    x = jax.nn.silu(x @ p["mlp.gate_proj.weight"].T) * (x @ p["mlp.up_proj.weight"].T)
    return h + x @ p["mlp.down_proj.weight"].T


def _llama_loss(blocks, params, ids):
    h = blocks(params, params["model.embed_tokens.weight"][ids])
    return next_token(
        _rms(h, params["model.norm.weight"]) @ params["lm_head.weight"].T, ids
    )


def _llama_loop(params, h):
    for i in range(LAYERS):
        h = _llama_block(h, {k: params[f"model.layers.{i}.{k}"] for k in LLAMA_BLOCK})
    return h


def _llama_scan(params, h):
    blocks = {k: params[f"model.layers.{k}"] for k in LLAMA_BLOCK}
    return jax.lax.scan(lambda h, p: (_llama_block(h, p), None), h, blocks)[0]


def _llama(scanned):
    blocks = [f"{i}." for i in range(LAYERS)] if not scanned else [""]
    lead = (LAYERS,) if scanned else ()
    shapes = {k: _shape(*s) for k, s in LLAMA_ENDS.items()}
    for block in blocks:
        for name, sizes in LLAMA_BLOCK.items():
            shapes[f"model.layers.{block}{name}"] = _shape(*lead, *sizes)
    loss = functools.partial(_llama_loss, _llama_scan if scanned else _llama_loop)
    return Setup(fill(shapes), loss, tokens(LENGTH, VOCABULARY))


def _llama_roles(block, prefixes):
    ends = {"lm_head.weight": TORCH, "model.embed_tokens.weight": TABLE,
            "model.norm.weight": VECTOR}  # fmt: skip
    return ends | {
        f"model.layers.{p}{k}": r for p in prefixes for k, r in block.items()
    }


LLAMA_ROLES = {k: TORCH if "proj" in k else VECTOR for k in LLAMA_BLOCK}


def _get(tree):
    """The stacked leaves, or the list of dicts whose keys the separate ones have."""
    separate = [
        {k: tree[f"model.layers.{i}.{k}"] for k in LLAMA_BLOCK}
        for i in range(LAYERS)
        if f"model.layers.{i}.mlp.up_proj.weight" in tree
    ]
    return separate or {k: tree[f"model.layers.{k}"] for k in LLAMA_BLOCK}


def _put(tree, value):
    others = {k: v for k, v in tree.items() if ".layers." not in k}
    parts = {"": value} if isinstance(value, dict) else {
        f"{i}.": block for i, block in enumerate(value)
    }  # fmt: skip
    return others | {
        f"model.layers.{prefix}{k}": v
        for prefix, b in parts.items()
        for k, v in b.items()
    }


GPT_BLOCK = {
    "attn.c_attn.bias": (3 * WIDTH,), "attn.c_attn.weight": (WIDTH, 3 * WIDTH),
    "attn.c_proj.bias": (WIDTH,), "attn.c_proj.weight": (WIDTH, WIDTH),
    "ln_1.bias": (WIDTH,), "ln_1.weight": (WIDTH,), "ln_2.bias": (WIDTH,),
    "ln_2.weight": (WIDTH,), "mlp.c_fc.bias": (HIDDEN,),
    "mlp.c_fc.weight": (WIDTH, HIDDEN), "mlp.c_proj.bias": (WIDTH,),
    "mlp.c_proj.weight": (HIDDEN, WIDTH),
}  # fmt: skip


def _gpt():
    """GPT-2: kernels are [in, out] there, and the head is the embedding again."""
    shapes = {"ln_f.bias": _shape(WIDTH), "ln_f.weight": _shape(WIDTH)}
    shapes |= {
        "wpe.weight": _shape(LENGTH, WIDTH),
        "wte.weight": _shape(VOCABULARY, WIDTH),
    }
    shapes |= {
        f"h.{i}.{k}": _shape(*s) for i in range(LAYERS) for k, s in GPT_BLOCK.items()
    }

    def norm(p, name, h):
        h = h - jnp.mean(h, -1, keepdims=True)
        h = h / jnp.sqrt(jnp.mean(jnp.square(h), -1, keepdims=True) + 1e-5)
        return h * p[f"{name}.weight"] + p[f"{name}.bias"]

    def linear(p, name, h):
        return h @ p[f"{name}.weight"] + p[f"{name}.bias"]

    def loss(p, ids):
        h = p["wte.weight"][ids] + p["wpe.weight"][jnp.arange(ids.shape[1])]
        for i in range(LAYERS):
            x = linear(p, f"h.{i}.attn.c_attn", norm(p, f"h.{i}.ln_1", h))
            q, k, v = (
                part.reshape(*part.shape[:2], HEADS, -1) for part in jnp.split(x, 3, -1)
            )
            h = h + linear(p, f"h.{i}.attn.c_proj", _attend(q, k, v))
            x = jax.nn.gelu(linear(p, f"h.{i}.mlp.c_fc", norm(p, f"h.{i}.ln_2", h)))
            h = h + linear(p, f"h.{i}.mlp.c_proj", x)
        return next_token(norm(p, "ln_f", h) @ p["wte.weight"].T, ids)

    return Setup(fill(shapes), loss, tokens(LENGTH, VOCABULARY))


def _gpt_roles() -> dict[str, Role]:
    matrices = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    blocks = {
        f"h.{i}.{k}": DENSE if k.endswith(matrices) else VECTOR
        for i in range(LAYERS)
        for k in GPT_BLOCK
    }
    ends = {"ln_f.bias": VECTOR, "ln_f.weight": VECTOR, "wpe.weight": TABLE}
    return blocks | ends | {"wte.weight": UNKNOWN}


ROWS = (
    Network(
        "llama, separate",
        functools.partial(_llama, False),
        _llama_roles(LLAMA_ROLES, ("0.", "1.")),
    ),
    Network(
        "llama, stacked",
        functools.partial(_llama, True),
        _llama_roles(stacked(LLAMA_ROLES), ("",)),
        (Stack(_get, _put),),
        loop=functools.partial(_llama_loss, _llama_loop),
    ),
    Network("gpt, tied", _gpt, _gpt_roles(), named={"wte.weight": TABLE}),
)
