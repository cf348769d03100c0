"""The networks of the benchmarks, as pure functions of a dict of params."""

import functools
import math
from collections.abc import Callable

import jax
from flax import nnx

from swapjax.core import trees
from swapjax.core.types import Params
from swapjax.experiments.models import own, own_module, searched
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
from swapjax.experiments.names import NETWORKS
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
    "find",
    "from_network",
    "from_torch",
    "is_own",
]

_IMAGE_NETWORKS: dict[str, tuple[Callable[..., nnx.Module], int]] = {
    "resnet20": (resnet20, 8),
    "resnet18": (resnet18, 32),
    "resnet50": (resnet50, 32),
    "mobilenet_v1": (MobileNetV1, 32),
    "mobilenet_v1_half": (functools.partial(MobileNetV1, width=0.5), 32),
    "vgg16": (VGG16, 32),
}  # and the smallest side of an image
NAMES = tuple(NETWORKS)


def is_own(name: str) -> bool:
    """Tell whether a name that `create` takes is that of a user's own network."""
    return name not in NAMES and not searched.is_searched(name)


def find(name: str) -> None:
    """Raise for a name that `create` does not take, before anything is computed.

    The module of a network of a user's own is imported, and its function called later.

    Args:
        name: as `create` takes it.

    Raises:
        ValueError: for an unknown name, and a module or function that is not there.
    """
    if not is_own(name):
        return
    # No function is called as a genotype of an unknown space is.
    if ":" not in name or "|" in name:
        raise ValueError(
            f"model must be one of {', '.join(NAMES)}, a space and a genotype, or "
            f"MODULE:FUNCTION of your own, as my_file:make, got {name!r}"
        )
    own_module.find(name)


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
            ``"resnet20"``, ``"resnet18"``, ``"resnet50"``, ``"mobilenet_v1"``, the same
            with half the channels as ``"mobilenet_v1_half"``, or ``"vgg16"``; a space
            of `swapjax.search` and a genotype, as ``"nb201:|nor_conv_3x3~0|+|..."`` or,
            with channels and cells, ``"nb201(8,1):|..."``; or a network of your own, as
            ``"module:function"`` or ``"folder/file.py:function"``, see
            `swapjax.experiments.models.own`.
        shape: of one image, with channels or, where there is one, without.
        classes: how many there are.
        seed: of the initial weights.
        head: ``"linear"``, or ``"cosines"`` for the outputs of hypersphere embedding in
            place of logits, with the same initial weights but for the last layer, whose
            columns are divided by their norms.

    Raises:
        ValueError: for an unknown name, images that the network cannot take, one whose
            last layer cannot be a head of cosines, and functions that are not there,
            fail or return something else.
    """
    find(name)
    if name not in NAMES:
        if head != "linear":
            raise ValueError(f"head must be 'linear' for {name}, got {head!r}")
        make = own.create if is_own(name) else searched.create
        return make(name, shape, classes, seed=seed)
    network, flattened = _build(name, shape, classes, nnx.Rngs(seed))
    kernel = None
    if head == "cosines":
        # The last of a CNN or an MLP before those that it has too, "fc" of the others.
        kernel = with_cosines(network, ("fc3", "fc2", "fc1", "fc"))
    if head not in ("linear", "cosines") or (head == "cosines" and kernel is None):
        raise ValueError(
            "head must be 'linear', or 'cosines' for a network that ends in one dense "
            f"layer, got {head!r} for {name}"
        )
    flat = name in _IMAGE_NETWORKS and len(shape) == 2
    model = _as_functions(name, network, flattened, flat=flat)
    if kernel is None:
        return model
    # Losses take norms for constants, the first one too.
    params = project_columns(model.params, [kernel])
    return model._replace(params=params, cosines=kernel)


def _build(
    name: str, shape: tuple[int, ...], classes: int, rngs: nnx.Rngs
) -> tuple[nnx.Module, dict[str, tuple[int, int, int]]]:
    """Make one of the named networks, and tell what its dense layers read flattened."""
    if name == "mlpnet":
        return MLP((math.prod(shape), 40, 20, classes), rngs=rngs), {}
    if name == "lenet300":
        return MLP((math.prod(shape), 300, 100, classes), rngs=rngs, gain=2.0), {}
    wanted = "images of (height, width) or (height, width, channels) with sides"
    if name == "cnn":
        if len(shape) not in (2, 3) or shape[0] % 4 or shape[1] % 4:
            raise ValueError(f"model: cnn takes {wanted} divisible by 4, got {shape}")
        return CNN(shape, classes, rngs=rngs), {
            "fc1/kernel": (shape[0] // 4, shape[1] // 4, 32)
        }
    build, smallest = _IMAGE_NETWORKS.get(name, (None, 12))
    if len(shape) not in (2, 3) or min(shape[:2]) < smallest:
        raise ValueError(
            f"model: {name} takes {wanted} of {smallest} or more, got {shape}"
        )
    if build is None:
        network: nnx.Module = LeNet5(shape, classes, rngs=rngs)
        return network, {"fc1/kernel": (*LeNet5.sides(shape), 16)}
    network = build((*shape, 1)[2], classes, rngs=rngs)
    vgg = {"classifier/0/kernel": (POOLED, POOLED, 512)}
    return network, vgg if name == "vgg16" else {}


def _as_functions(
    name: str, network: nnx.Module, flattened: dict, *, flat: bool = False
) -> Model:
    """Make functions of a network; flat images have no channels, and get one."""
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

    def images(x: jax.Array) -> jax.Array:
        return x[..., None] if flat else x

    @jax.jit
    def apply(params: Params, x: jax.Array) -> jax.Array:
        return restore(params)(images(x))

    def in_training(params: Params) -> nnx.Module:
        network = restore(params)
        network.set_attributes(nnx.BatchNorm, use_running_average=False, momentum=0.0)
        return network

    def training_apply(params: Params, x: jax.Array) -> jax.Array:
        return in_training(params)(images(x))

    @jax.jit
    def statistics(params: Params, x: jax.Array) -> Params:
        network = in_training(params)
        network(images(x))
        return nnx.to_pure_dict(nnx.state(network))

    return from_functions(
        name,
        params,
        apply,
        flattened=flattened,
        training_apply=training_apply if fixed else None,
        statistics=statistics if fixed else None,
    )
