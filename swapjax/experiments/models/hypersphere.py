"""Networks that end in the cosines of hypersphere embedding."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from swapjax.core.types import LossFn, Params
from swapjax.experiments.models.model import Model
from swapjax.robust import Hypersphere, cosines, he_loss


class Cosines(nnx.Module):
    """A last layer that returns cosines, see `swapjax.robust.cosines`.

    Args:
        layer: the dense layer in whose place it stands, for its kernel; a bias goes.
    """

    def __init__(self, layer: nnx.Linear) -> None:
        self.kernel = layer.kernel

    def __call__(self, x: jax.Array) -> jax.Array:
        """Features [n, D] to cosines [n, classes]."""
        return cosines(x, self.kernel[...])


def with_cosines(network: nnx.Module, names: tuple[str, ...]) -> str | None:
    """Let a network return cosines, with the weights that its last layer has.

    Args:
        network: to change.
        names: attributes, of which the first that is a dense layer is taken.

    Returns:
        Path of the kernel; None where there is no such layer.
    """
    for name in names:
        layer = getattr(network, name, None)
        if isinstance(layer, nnx.Linear):
            setattr(network, name, Cosines(layer))
            return f"{name}/kernel"
    return None


def with_sphere(model: Model, sphere: Hypersphere) -> Model:
    """Say how losses see the cosines of a network.

    Args:
        model: made with a head of cosines.
        sphere: scale, and the margin of training.

    Returns:
        The same network, its losses those of hypersphere embedding.
    """
    assert model.cosines is not None

    def loss_by(apply: Callable[[Params, jax.Array], jax.Array]) -> LossFn:
        def loss_fn(params: Params, batch: Any) -> jax.Array:
            images, labels = batch
            outputs = apply(params, images)
            return jnp.mean(
                he_loss(outputs, labels, scale=sphere.scale, margin=sphere.margin)
            )

        return loss_fn

    return model._replace(
        loss_fn=loss_by(model.apply),
        training_loss=loss_by(model.training_apply or model.apply),
        training_losses=None,
        sphere=sphere,
    )
