"""The networks of the benchmarks, as pure functions of a dict of params."""

import math
from collections.abc import Callable

import jax
from flax import nnx

from swapjax.core import trees
from swapjax.core.types import Params
from swapjax.experiments.models import searched
from swapjax.experiments.models.cnn import CNN
from swapjax.experiments.models.hypersphere import with_cosines
from swapjax.experiments.models.lenet5 import LeNet5
from swapjax.experiments.models.mlp import MLP
from swapjax.experiments.models.mobilenet import MobileNetV1
from swapjax.experiments.models.model import Model, from_functions
from swapjax.experiments.models.pytorch import from_torch
from swapjax.experiments.models.resnet import ResNet, resnet18, resnet20, resnet50
from swapjax.experiments.models.searched import from_network
from swapjax.experiments.models.vgg import POOLED, VGG16
from swapjax.robust import project_columns

__all__ = [
    "CNN",
    "MLP",
    "NAMES",
    "VGG16",
    "LeNet5",
    "MobileNetV1",
    "Model",
    "ResNet",
    "create",
    "from_network",
    "from_torch",
]

_IMAGE_NETWORKS: dict[str, tuple[Callable[..., nnx.Module], int]] = {
    "resnet20": (resnet20, 8),
    "resnet18": (resnet18, 32),
    "resnet50": (resnet50, 32),
    "mobilenet_v1": (MobileNetV1, 32),
    "vgg16": (VGG16, 32),
}  # and the smallest side of an image
NAMES = ("mlpnet", "lenet300", "lenet5", "cnn", *_IMAGE_NETWORKS)


def create(
    name: str,
    shape: tuple[int, ...],
    classes: int,
    *,
    seed: int = 0,
    head: str = "linear",
) -> Model:
    """Make a network for images of some shape.

    Args:
        name: ``"mlpnet"`` (40 and 20 hidden units, no biases), ``"lenet300"`` (300 and
            100, no biases, larger initial weights as by He), ``"lenet5"``, ``"cnn"``,
            ``"resnet20"``, ``"resnet18"``, ``"resnet50"``, ``"mobilenet_v1"`` or
            ``"vgg16"``; or a space of `swapjax.search` and a genotype, as
            ``"nb201:|nor_conv_3x3~0|+|..."`` or, with channels and cells,
            ``"nb201(8,1):|..."``.
        shape: of one image.
        classes: how many there are.
        seed: of the initial weights.
        head: ``"linear"``, or ``"cosines"`` for the outputs of hypersphere embedding in
            place of logits, with the same initial weights but for the last layer, whose
            columns are divided by their norms.

    Raises:
        ValueError: for an unknown name, images that the network cannot take, and one
            whose last layer cannot be a head of cosines.
    """
    if searched.is_searched(name):
        if head != "linear":
            raise ValueError(f"head must be 'linear' for {name}, got {head!r}")
        return searched.create(name, shape, classes, seed=seed)
    rngs, flattened = nnx.Rngs(seed), {}
    if name == "mlpnet":
        network: nnx.Module = MLP((math.prod(shape), 40, 20, classes), rngs=rngs)
    elif name == "lenet300":
        sizes = (math.prod(shape), 300, 100, classes)
        network = MLP(sizes, rngs=rngs, gain=2.0)
    elif name == "cnn":
        if len(shape) not in (2, 3) or shape[0] % 4 or shape[1] % 4:
            raise ValueError(
                "model: cnn takes images of (height, width) or (height, width, "
                f"channels) with sides divisible by 4, got {shape}"
            )
        network = CNN(shape, classes, rngs=rngs)
        flattened = {"fc1/kernel": (shape[0] // 4, shape[1] // 4, 32)}
    elif name == "lenet5":
        if len(shape) not in (2, 3) or min(shape[:2]) < 12:
            raise ValueError(
                "model: lenet5 takes images of (height, width) or (height, width, "
                f"channels) with sides of 12 or more, got {shape}"
            )
        network = LeNet5(shape, classes, rngs=rngs)
        flattened = {"fc1/kernel": (*LeNet5.sides(shape), 16)}
    elif name in _IMAGE_NETWORKS:
        build, smallest = _IMAGE_NETWORKS[name]
        if len(shape) != 3 or min(shape[:2]) < smallest:
            raise ValueError(
                f"model: {name} takes images of (height, width, channels) with sides "
                f"of {smallest} or more, got {shape}"
            )
        network = build(shape[-1], classes, rngs=rngs)
        if name == "vgg16":
            flattened = {"classifier/0/kernel": (POOLED, POOLED, 512)}
    else:
        raise ValueError(
            f"model must be one of {', '.join(NAMES)}, or a space and a "
            f"genotype, got {name!r}"
        )
    kernel = None
    if head == "cosines":
        # The last of a CNN or an MLP before those that it has too, "fc" of the others.
        kernel = with_cosines(network, ("fc3", "fc2", "fc1", "fc"))
    if head not in ("linear", "cosines") or (head == "cosines" and kernel is None):
        raise ValueError(
            "head must be 'linear', or 'cosines' for a network that ends in one dense "
            f"layer, got {head!r} for {name}"
        )
    model = _as_functions(name, network, flattened)
    if kernel is None:
        return model
    # Losses take norms for constants, the first one too.
    params = project_columns(model.params, [kernel])
    return model._replace(params=params, cosines=kernel)


def _as_functions(name: str, network: nnx.Module, flattened: dict) -> Model:
    graph, state = nnx.split(network)
    params = nnx.to_pure_dict(state)
    running = set(trees.paths(nnx.to_pure_dict(nnx.state(network, nnx.BatchStat))))
    fixed = {i for i, path in enumerate(trees.paths(params)) if path in running}

    def restore(params: Params) -> nnx.Module:
        """Make the network with these weights; running statistics are constants."""
        leaves, treedef = jax.tree.flatten(params)
        leaves = [
            jax.lax.stop_gradient(x) if i in fixed else x for i, x in enumerate(leaves)
        ]
        return nnx.merge(graph, jax.tree.unflatten(treedef, leaves))

    @jax.jit
    def apply(params: Params, x: jax.Array) -> jax.Array:
        return restore(params)(x)

    def in_training(params: Params) -> nnx.Module:
        network = restore(params)
        network.set_attributes(nnx.BatchNorm, use_running_average=False, momentum=0.0)
        return network

    def training_apply(params: Params, x: jax.Array) -> jax.Array:
        return in_training(params)(x)

    @jax.jit
    def statistics(params: Params, x: jax.Array) -> Params:
        network = in_training(params)
        network(x)
        return nnx.to_pure_dict(nnx.state(network))

    return from_functions(
        name,
        params,
        apply,
        flattened=flattened,
        training_apply=training_apply if fixed else None,
        statistics=statistics if fixed else None,
    )
