"""Networks with batch norm for the study of noisy labels, and how to train them."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Plan(NamedTuple):
    """A network, how to train it, and on what.

    Attributes:
        file: the data.
        images: of the training set.
        epochs: passes over them.
        blocks: channels of convolutions; each block halves the sides.
        dense: units of the dense layer.
        rate: the learning rate at first.
        decay: of weights.
        noises: kinds and rates.
        pool: whether sides are halved by pooling, not by strides.
        growths: how often the weight of sparse regularisation grows.
    """

    file: str
    images: int
    epochs: int
    blocks: tuple[tuple[int, ...], ...]
    dense: int
    rate: float
    decay: float
    noises: tuple[str, ...]
    pool: bool
    growths: int


PLANS: Mapping[str, Plan] = {
    "mnist": Plan(
        "mnist.npz", 10_000, 10, ((16,), (32,)), 64, 0.01, 1e-3,
        ("symmetric 0.8", "none", "symmetric 0.6", "asymmetric 0.4"), pool=False,
        growths=10,
    ),
    "cifar10": Plan(
        "cifar10_jpeg.npz", 50_000, 120, ((64, 64), (128, 128), (196, 196)), 256, 0.01,
        1e-4,
        ("none", *(f"symmetric {x}" for x in (0.2, 0.4, 0.6, 0.8)),
         *(f"asymmetric {x}" for x in (0.1, 0.2, 0.3, 0.4))), pool=True,
        growths=120,
    ),
}  # fmt: skip


def initial(seed: int, plan: Plan, shape: tuple, classes: int) -> dict[str, Any]:
    """Weights after He, gains of one, the rest zero."""
    rng, side = np.random.default_rng(seed), shape[0]
    params: dict[str, Any] = {}
    last = shape[2] if len(shape) == 3 else 1
    sizes: list[tuple[int, ...]] = []
    for block in plan.blocks:
        for width in block:
            sizes.append((3, 3, last, width))
            last = width
        side = -(-side // 2)
    sizes += [(side * side * last, plan.dense), (plan.dense, classes)]
    for i, size in enumerate(sizes):
        fan = math.prod(size[:-1])
        kernel = rng.normal(size=size) * math.sqrt(2 / fan)
        params[f"layer{i}"] = {
            "kernel": jnp.asarray(kernel, jnp.float32),
            "bias": jnp.zeros(size[-1]),
            "scale": jnp.ones(size[-1]),
        }
    params[f"layer{len(sizes) - 1}"].pop("scale")
    return params


def forward(
    plan: Plan, params: dict, x: jax.Array, statistics: Sequence | None = None
) -> tuple[jax.Array, list]:
    """Logits, and means and variances of each layer that batch norm saw.

    Args:
        plan: of the network.
        params: as `initial` makes them.
        x: images.
        statistics: to take in place of those of the batch.
    """
    seen: list = []
    x = x if x.ndim == 4 else x[..., None]

    def norm(x: jax.Array, layer: dict) -> jax.Array:
        axes = tuple(range(x.ndim - 1))
        if statistics is None:
            mean, variance = x.mean(axes), x.var(axes)
        else:
            mean, variance = statistics[len(seen)]
        seen.append((mean, variance))
        scaled = (x - mean) * jax.lax.rsqrt(variance + 1e-5)
        return jax.nn.relu(scaled * layer["scale"] + layer["bias"])

    i = 0
    for block in plan.blocks:
        for j in range(len(block)):
            layer, i = params[f"layer{i}"], i + 1
            stride = 2 if not plan.pool and j == len(block) - 1 else 1
            x = jax.lax.conv_general_dilated(
                x, layer["kernel"], (stride, stride), "SAME",
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )  # fmt: skip
            x = norm(x, layer)
        if plan.pool:
            n, h, w, c = x.shape
            x = x.reshape(n, h // 2, 2, w // 2, 2, c).max((2, 4))
    layer = params[f"layer{i}"]
    x = norm(x.reshape(len(x), -1) @ layer["kernel"], layer)
    layer = params[f"layer{i + 1}"]
    return x @ layer["kernel"] + layer["bias"], seen


@functools.cache
def forward_of(plan: Plan) -> Callable:
    """``(params, images) -> logits`` with the statistics of the batch."""
    return lambda params, x: forward(plan, params, x)[0]


@functools.cache
def infer_of(plan: Plan) -> Callable:
    """``((params, statistics), images) -> logits``."""
    return jax.jit(lambda known, x: forward(plan, known[0], x, known[1])[0])


@functools.cache
def statistics_of(plan: Plan) -> Callable:
    """``(params, images) -> statistics``."""
    return jax.jit(lambda params, x: forward(plan, params, x)[1])
