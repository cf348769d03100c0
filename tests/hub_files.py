"""Tiny checkpoints as a hub has them, in one file and in shards."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from swapjax.io.huggingface import Leaf

LAYERS, WIDTH, HIDDEN, WORDS = 3, 4, 8, 7


def tensors(seed: int = 0) -> dict[str, np.ndarray]:
    """Make the tensors of a small encoder with a head, as PyTorch lays them out."""
    random = np.random.default_rng(seed)
    normal = lambda *shape: random.normal(size=shape).astype(np.float32)  # noqa: E731
    found = {"embeddings.word.weight": normal(WORDS, WIDTH)}
    for i in range(LAYERS):
        found[f"encoder.layer.{i}.up.weight"] = normal(HIDDEN, WIDTH)
        found[f"encoder.layer.{i}.up.bias"] = normal(HIDDEN)
        found[f"encoder.layer.{i}.down.weight"] = normal(WIDTH, HIDDEN)
    found["position_ids"] = np.arange(5)[None]
    found["head.weight"] = normal(3, WIDTH).astype(np.float16)
    return found


def save(folder: Path, arrays: dict[str, np.ndarray], shards: int = 1) -> Path:
    """Write a checkpoint into a folder, tensors dealt out to shards in turn."""
    folder.mkdir(parents=True, exist_ok=True)
    if shards == 1:
        save_file(arrays, folder / "model.safetensors", {"format": "pt"})
        return folder
    where = {}
    for number in range(shards):
        name = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        part = dict(list(arrays.items())[number::shards])
        save_file(part, folder / name, {"format": "pt"})
        where |= dict.fromkeys(part, name)
    size = sum(array.nbytes for array in arrays.values())
    index = {"metadata": {"total_size": size}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    return folder


def names(*, stacked: bool) -> dict[str, Leaf | str | None]:
    """Map the names, its layers in a list or stacked."""
    layers = "layers" if stacked else "layers/{i}"
    return {
        "embeddings.word.weight": "words",
        "encoder.layer.{i}.up.weight": Leaf(f"{layers}/up/kernel", axes=(1, 0)),
        "encoder.layer.{i}.up.bias": f"{layers}/up/bias",
        "encoder.layer.{i}.down.weight": Leaf(f"{layers}/down/kernel", axes=(1, 0)),
        "head.weight": Leaf("head/kernel", axes=(1, 0)),
        "position_*": None,
    }
