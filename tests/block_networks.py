"""A transformer of four equal blocks, its weights listed, nested or stacked."""

import jax
import jax.numpy as jnp
import numpy as np

BLOCKS, TOKENS, WIDTH = 4, 7, 8
CLASSES = 6  # but for one token: no head of a language model, which plans leave out
SHAPES = {
    "norm": (8,), "query": (8, 8), "key": (8, 8), "value": (8, 8), "out": (8, 8),
    "again": (8,), "up": (8, 12), "down": (12, 8),
}  # fmt: skip


def make(kind="listed", seed=0, dtype=np.float32):
    """Draw params; those of every kind have the same weights."""
    draw = np.random.default_rng(seed).normal
    table, head = draw(size=(TOKENS, WIDTH)), draw(size=(WIDTH, CLASSES))
    blocks = [{k: draw(size=s) / 3 for k, s in SHAPES.items()} for _ in range(BLOCKS)]
    if kind == "nested":
        blocks = {f"block_{i}": block for i, block in enumerate(blocks)}
    if kind == "stacked":
        blocks = jax.tree.map(lambda *x: np.stack(x), *blocks)
    params = {"table": table, "blocks": blocks, "head": head}
    return jax.tree.map(lambda x: x.astype(dtype), params)


def examples(n=6, length=5, seed=1):
    """Draw sequences, and what follows each of their tokens."""
    tokens = np.random.default_rng(seed).integers(0, CLASSES, (n, length + 1))
    return tokens[:, :-1], tokens[:, 1:]


def normed(x, scale):
    mean = jnp.mean(x, axis=-1, keepdims=True)
    return (x - mean) / jnp.sqrt(jnp.var(x, axis=-1, keepdims=True) + 1e-5) * scale


def block(params, h):
    x = normed(h, params["norm"])
    keys = jnp.swapaxes(x @ params["key"], -1, -2)
    seen = jax.nn.softmax(x @ params["query"] @ keys)
    h = h + seen @ (x @ params["value"]) @ params["out"]
    return h + jax.nn.relu(normed(h, params["again"]) @ params["up"]) @ params["down"]


def loss_fn(params, batch):
    """Tell the cross-entropy of the next token."""
    step = jax.checkpoint(block)
    tokens, wanted = batch
    h, blocks = params["table"][tokens], params["blocks"]
    if isinstance(blocks, dict) and "norm" in blocks:
        blocks = jax.tree.map(lambda x: x.astype(h.dtype) * 1.0, blocks)
        h, _ = jax.lax.scan(lambda h, one: (step(one, h), None), h, blocks)
    else:
        for one in blocks.values() if isinstance(blocks, dict) else blocks:
            h = step(one, h)
    told = jax.nn.log_softmax(h @ params["head"])
    return -jnp.mean(jnp.take_along_axis(told, wanted[..., None], axis=-1))
