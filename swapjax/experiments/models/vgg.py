"""VGG with 16 layers, without batch norm."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

_WIDTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
POOLED = 7  # side of what the classifier takes


class VGG16(nnx.Module):
    """For ImageNet, 138,357,544 weights for 3 channels and 1,000 classes.

    Layers are numbered as in PyTorch's ``features`` and ``classifier``, where
    activations, pooling and dropout count; there is no dropout here.

    Args:
        channels: of the images.
        classes: how many logits.
        rngs: seeds the weights.
    """

    def __init__(self, channels: int, classes: int, *, rngs: nnx.Rngs) -> None:
        inputs, number, features = channels, 0, {}
        for group in _WIDTHS:
            for width in group:
                features[str(number)] = nnx.Conv(
                    inputs, width, (3, 3), padding=1, rngs=rngs
                )
                inputs, number = width, number + 2
            number += 1
        self.features = nnx.Dict(features)
        flat = inputs * POOLED**2
        self.classifier = nnx.Dict(
            {
                "0": nnx.Linear(flat, 4096, rngs=rngs),
                "3": nnx.Linear(4096, 4096, rngs=rngs),
                "6": nnx.Linear(4096, classes, rngs=rngs),
            }
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Images [n, h, w, c], sides of 32 or more, to logits [n, classes]."""
        number = 0
        for group in _WIDTHS:
            for _ in group:
                x = nnx.relu(self.features[str(number)](x))
                number += 2
            x = nnx.max_pool(x, (2, 2), (2, 2))
            number += 1
        rows, columns = (_averaging(side) for side in x.shape[1:3])
        x = jnp.einsum("ih,nhwc,jw->nijc", rows, x, columns)
        x = x.reshape(x.shape[0], -1)
        x = nnx.relu(self.classifier["0"](x))
        x = nnx.relu(self.classifier["3"](x))
        return self.classifier["6"](x)


def _averaging(side: int) -> np.ndarray:
    """Make the matrix [7, side] that averages a side down, or repeats it, to seven."""
    result = np.zeros((POOLED, side), np.float32)
    for i in range(POOLED):
        first, last = i * side // POOLED, -(-(i + 1) * side // POOLED)
        result[i, first:last] = 1 / (last - first)
    return result
