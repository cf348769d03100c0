"""The networks of the benchmarks, as pure functions of a dict of params."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from swapjax.models.cnn import CNN
from swapjax.models.mlp import MLP
from swapjax.types import Params

__all__ = ["CNN", "MLP", "NAMES", "Model", "create"]

NAMES = ("mlpnet", "cnn")


class Model(NamedTuple):
    """A network as a function.

    Attributes:
        name: as it was asked for.
        params: initial weights, a dict of arrays.
        apply: ``(params, images [n, ...]) -> logits [n, classes]``.
        loss_fn: ``(params, (images, labels)) -> mean cross-entropy``.
    """

    name: str
    params: Params
    apply: Callable[[Params, jax.Array], jax.Array]
    loss_fn: Callable[[Params, Any], jax.Array]


def create(name: str, shape: tuple[int, ...], classes: int, *, seed: int = 0) -> Model:
    """Make a network for images of some shape.

    Args:
        name: ``"mlpnet"`` (40 and 20 hidden units, no biases) or ``"cnn"``.
        shape: of one image.
        classes: how many there are.
        seed: of the initial weights.

    Raises:
        ValueError: for an unknown name, and images that the network cannot take.
    """
    if name == "mlpnet":
        sizes = (math.prod(shape), 40, 20, classes)
        network: nnx.Module = MLP(sizes, rngs=nnx.Rngs(seed))
    elif name == "cnn":
        if len(shape) not in (2, 3) or shape[0] % 4 or shape[1] % 4:
            raise ValueError(
                "model: cnn takes images of (height, width) or (height, width, "
                f"channels) with sides divisible by 4, got {shape}"
            )
        network = CNN(shape, classes, rngs=nnx.Rngs(seed))
    else:
        raise ValueError(f"model must be one of {', '.join(NAMES)}, got {name!r}")

    graph, state = nnx.split(network)

    @jax.jit
    def apply(params: Params, x: jax.Array) -> jax.Array:
        return nnx.merge(graph, params)(x)

    def loss_fn(params: Params, batch: Any) -> jax.Array:
        x, y = batch
        losses = optax.softmax_cross_entropy_with_integer_labels(apply(params, x), y)
        return jnp.mean(losses)

    return Model(name, nnx.to_pure_dict(state), apply, loss_fn)
