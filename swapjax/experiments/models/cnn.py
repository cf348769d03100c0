"""A small convolutional network."""

import jax
from flax import nnx


class CNN(nnx.Module):
    """Two 3 x 3 convolutions with ReLU and 2 x 2 max-pooling, then two dense layers.

    Args:
        shape: of an image, (height, width) or (height, width, channels), each side
            divisible by 4.
        classes: how many logits.
        rngs: seeds the weights.
    """

    def __init__(self, shape: tuple[int, ...], classes: int, *, rngs: nnx.Rngs) -> None:
        height, width, channels = (*shape, 1)[:3]
        self.shape = (height, width, channels)
        self.conv1 = nnx.Conv(channels, 16, (3, 3), rngs=rngs)
        self.conv2 = nnx.Conv(16, 32, (3, 3), rngs=rngs)
        self.fc1 = nnx.Linear(32 * (height // 4) * (width // 4), 64, rngs=rngs)
        self.fc2 = nnx.Linear(64, classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Images [n, ...] to logits [n, classes]."""
        x = x.reshape(x.shape[0], *self.shape)
        x = nnx.max_pool(nnx.relu(self.conv1(x)), (2, 2), (2, 2))
        x = nnx.max_pool(nnx.relu(self.conv2(x)), (2, 2), (2, 2))
        x = nnx.relu(self.fc1(x.reshape(x.shape[0], -1)))
        return self.fc2(x)
