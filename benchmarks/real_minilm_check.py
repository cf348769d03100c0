"""The function of MiniLM and its files, held against what is known otherwise.

The function against the similarities that are published and against BERT in PyTorch,
the file of a pruned network against its source, as the library of others reads it, and
masks of listed layers against those of scanned ones. Writes checks.json. Needs torch.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import docstrings
import minilm
import numpy as np
import tyro
from minilm import LONGEST
from real_minilm import Corpus, Options, prune
from real_minilm_report import Run
from shared import console, start

from swapjax.core import files
from swapjax.io import huggingface


def main(options: Options) -> None:
    """Do the checks and write what was found."""
    options.out.mkdir(parents=True, exist_ok=True)
    found = check(options)
    files.write_text(options.out / "checks.json", json.dumps(found, indent=2) + "\n")
    console.print_json(json.dumps(found))


def check(options: Options) -> dict[str, Any]:
    """Hold the function and its files against what is known otherwise."""
    trees = {"listed": False, "scanned": True}
    opened = {k: minilm.checkpoint(stacked=v) for k, v in trees.items()}
    params = {name: source.load() for name, source in opened.items()}
    texts, published = minilm.PUBLISHED
    tokens = minilm.tokenize(texts, 16)
    vectors = minilm.encode(params["listed"], tokens)
    many = Corpus(options)
    sample = many.test[:32, 1]
    ours = np.asarray(minilm.encode(params["listed"], sample))
    found: dict[str, Any] = {
        "python": ".".join(map(str, sys.version_info[:3])),
        "pairs": len(docstrings.pairs()),
        "published similarities, largest difference": float(
            np.abs(np.round(vectors @ vectors.T, 4) - np.asarray(published)).max()
        ),
        "PyTorch, largest difference": float(np.abs(ours - torch_bert(sample)).max()),
        "scanned, largest difference": float(
            np.abs(ours - np.asarray(minilm.encode(params["scanned"], sample))).max()
        ),
    }
    with tempfile.TemporaryDirectory() as folder:
        same = Path(folder) / "same.safetensors"
        opened["scanned"].save(same, params["scanned"])
        original = minilm.folder() / "model.safetensors"
        found["saved unchanged, same bytes"] = (
            same.read_bytes() == original.read_bytes()
        )
        for setting in ("2:4", "50%"):
            told = check_files(options, setting, opened, params, many, Path(folder))
            found |= {f"{setting}, {what}": value for what, value in told.items()}
    return found


def check_files(
    options: Options,
    setting: str,
    opened: dict[str, Any],
    params: dict[str, Any],
    corpus: Corpus,
    folder: Path,
) -> dict[str, Any]:
    """Prune both trees, save one, and read it with the library of others."""
    from safetensors.torch import load_file

    found: dict[str, Any] = {}
    for method in options.methods:
        run = Run(method, setting, 1, "no", 0)
        pruned = {
            k: prune(options, run, corpus.calibration, p) for k, p in params.items()
        }
        masks = {k: dict(opened[k].by_name(v.masks)) for k, v in pruned.items()}
        differ = sum(
            int(np.sum(mask != masks["scanned"][name]))
            for name, mask in masks["listed"].items()
        )
        found[f"{method}, masks of listed and scanned that differ"] = differ
    path = folder / "pruned.safetensors"
    opened["listed"].save(path, pruned["listed"].params)
    theirs, before = load_file(path), load_file(minilm.folder() / "model.safetensors")
    found["read by safetensors.torch, names, dtypes and shapes as before"] = all(
        theirs[name].dtype == old.dtype and theirs[name].shape == old.shape
        for name, old in before.items()
    ) and list(theirs) == list(before)
    found["zeros in the file where masks are False"] = all(
        not theirs[name].numpy()[~mask].any() for name, mask in masks["listed"].items()
    )
    again = opened["listed"].shapes()
    back = huggingface.open_checkpoint(path, minilm.names(stacked=False))
    found["read back, same tree"] = back.shapes() == again
    return found


def torch_bert(tokens: np.ndarray) -> np.ndarray:
    """Embed texts by BERT's equations in PyTorch, from the file and its names."""
    import torch
    from safetensors.torch import load_file
    from torch.nn import functional

    weights = load_file(minilm.folder() / "model.safetensors")
    ids = torch.from_numpy(tokens.astype(np.int64))[:, :LONGEST]
    there = ids != 0

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        scale, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
        return functional.layer_norm(x, x.shape[-1:], scale, bias, minilm.EPSILON)

    def dense(x: torch.Tensor, name: str) -> torch.Tensor:
        return functional.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    x = weights["embeddings.word_embeddings.weight"][ids]
    x = x + weights["embeddings.position_embeddings.weight"][: ids.shape[1]]
    x = x + weights["embeddings.token_type_embeddings.weight"][0]
    x = norm(x, "embeddings.LayerNorm")
    for i in range(6):
        name = f"encoder.layer.{i}"
        query, key, value = (
            dense(x, f"{name}.attention.self.{part}")
            .unflatten(-1, (minilm.HEADS, -1))
            .transpose(1, 2)
            for part in ("query", "key", "value")
        )
        read = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=there[:, None, None, :]
        )
        read = read.transpose(1, 2).flatten(2)
        out = dense(read, f"{name}.attention.output.dense")
        x = norm(x + out, f"{name}.attention.output.LayerNorm")
        inner = functional.gelu(dense(x, f"{name}.intermediate.dense"))
        x = norm(x + dense(inner, f"{name}.output.dense"), f"{name}.output.LayerNorm")
    pooled = (x * there[..., None]).sum(1) / there.sum(1, keepdim=True)
    return functional.normalize(pooled, dim=1).numpy()


if __name__ == "__main__":
    start(main, tyro.cli(Options))
