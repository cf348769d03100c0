"""The functions of the real networks, held against PyTorch's.

CREPE's own module, from the package that carries the weights, and EfficientNet-Lite0
written with torch.nn.functional from the names and shapes in its file. Writes the
largest differences of outputs to checks.json.
"""

import dataclasses
import importlib.util
import json
import sys
import types
from pathlib import Path
from typing import Any

import jax
import numpy as np
import real_crepe as crepe
import real_efficientnet as efficientnet
import real_tones
import torch
import tyro
from shared import RESULTS, console, start
from torch.nn import functional

from swapjax.core import files


@dataclasses.dataclass(frozen=True)
class Options:
    """Hold the functions of the real networks against PyTorch's."""

    out: Path = RESULTS / "real"
    """The folder for checks.json."""
    examples: int = 16
    """Tones, and half as many random images."""


def main(options: Options) -> None:
    """Compare, and write what differs most."""
    found: dict[str, float] = {}
    frames, _ = real_tones.tones(options.examples, seed=3)
    for size in ("tiny", "full"):
        params = crepe.load(size)
        theirs = crepe_of_torch(size)(torch.from_numpy(frames)).detach().numpy()
        for convolve in (crepe.whole, crepe.in_parts, crepe.by_fourier):
            logits = jax.jit(crepe.apply, static_argnums=2)(params, frames, convolve)
            ours = jax.nn.sigmoid(logits)
            found[f"crepe-{size}, {convolve.__name__}"] = difference(ours, theirs)
    rng = np.random.default_rng(0)
    shape = options.examples // 2, efficientnet.SIDE, efficientnet.SIDE, 3
    pixels = rng.integers(0, 256, shape).astype(np.float32)
    images = (pixels - 127) / 128
    params = efficientnet.load()
    with torch.no_grad():
        there = torch.from_numpy(images.transpose(0, 3, 1, 2))
        theirs = efficientnet_in_torch(there).numpy()
    for by in (efficientnet.convolve, efficientnet.by_shifts):
        ours = jax.jit(efficientnet.apply, static_argnums=2)(params, images, by)
        scale = float(np.abs(theirs).max())
        name = f"efficientnet-lite0, {by.__name__}, over the largest output"
        found[name] = difference(ours, theirs) / scale
    options.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps({k: float(f"{v:.1e}") for k, v in found.items()}, indent=1)
    files.write_text(options.out / "checks.json", text + "\n")
    console.print_json(text)


def difference(ours: Any, theirs: np.ndarray) -> float:
    """Take the largest difference."""
    return float(np.abs(np.asarray(ours) - theirs).max())


def crepe_of_torch(size: str) -> Any:
    """Make torchcrepe's module of a size, without the packages that read sound."""
    spec = importlib.util.find_spec("torchcrepe")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent
    # All that the file takes of its package.
    package: Any = types.ModuleType("torchcrepe")
    package.PITCH_BINS, package.__spec__ = crepe.BINS, spec
    sys.modules["torchcrepe"] = package
    inner = importlib.util.spec_from_file_location(
        "crepe_in_torch", folder / "model.py"
    )
    assert inner is not None
    assert inner.loader is not None
    module = importlib.util.module_from_spec(inner)
    inner.loader.exec_module(module)
    network = module.Crepe(size).eval()
    path = folder / "assets" / f"{size}.pth"
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return network


def efficientnet_in_torch(x: torch.Tensor) -> torch.Tensor:
    """Evaluate EfficientNet-Lite0 on [examples, 3, h, w]."""
    state = efficientnet.read()

    def layer(x: torch.Tensor, kernel: str, norm: str, stride: int = 1) -> torch.Tensor:
        weight = state[f"{kernel}.weight"]
        side = weight.shape[-1]
        # TensorFlow's "SAME": one more after than before, where there is an odd number.
        edges = []
        for length in (x.shape[3], x.shape[2]):
            more = max((-(-length // stride) - 1) * stride + side - length, 0)
            edges += [more // 2, more - more // 2]
        groups = x.shape[1] // weight.shape[1]
        x = functional.conv2d(
            functional.pad(x, edges), weight, stride=stride, groups=groups
        )
        names = ("running_mean", "running_var", "weight", "bias")
        return functional.batch_norm(
            x, *(state[f"{norm}.{name}"] for name in names), eps=1e-3
        )

    x = functional.relu6(layer(x, "_conv_stem", "_bn0", 2))
    for i, stride in enumerate(efficientnet.STRIDES):
        at, y = f"_blocks.{i}.", x
        if f"{at}_expand_conv.weight" in state:
            y = functional.relu6(layer(y, f"{at}_expand_conv", f"{at}_bn0"))
        y = functional.relu6(layer(y, f"{at}_depthwise_conv", f"{at}_bn1", stride))
        y = layer(y, f"{at}_project_conv", f"{at}_bn2")
        x = x + y if x.shape == y.shape else y
    x = functional.relu6(layer(x, "_conv_head", "_bn1")).mean((2, 3))
    return functional.linear(x, state["_fc.weight"], state["_fc.bias"])


if __name__ == "__main__":
    start(main, tyro.cli(Options))
