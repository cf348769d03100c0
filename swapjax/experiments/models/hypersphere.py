"""Networks that end in the cosines of hypersphere embedding."""

import jax
from flax import nnx

from swapjax.robust import cosines


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
