"""LeNet-5, the convolutional network of LeCun et al. (1998), with ReLU."""

import jax
from flax import nnx


class LeNet5(nnx.Module):
    """Two 5 x 5 convolutions with ReLU and 2 x 2 max-pooling, then three dense layers.

    61,706 weights for images of 28 x 28 pixels and 10 classes. Today's form, with ReLU
    and max-pooling where the first had sigmoids and averages.

    Args:
        shape: of an image, (height, width) or (height, width, channels).
        classes: how many logits.
        rngs: seeds the weights.
    """

    def __init__(self, shape: tuple[int, ...], classes: int, *, rngs: nnx.Rngs) -> None:
        self.shape = (*shape, 1)[:3]
        rows, columns = self.sides(self.shape)
        self.conv1 = nnx.Conv(self.shape[2], 6, (5, 5), rngs=rngs)
        self.conv2 = nnx.Conv(6, 16, (5, 5), padding="VALID", rngs=rngs)
        self.fc1 = nnx.Linear(16 * rows * columns, 120, rngs=rngs)
        self.fc2 = nnx.Linear(120, 84, rngs=rngs)
        self.fc3 = nnx.Linear(84, classes, rngs=rngs)

    @staticmethod
    def sides(shape: tuple[int, ...]) -> tuple[int, int]:
        """Height and width of what the first dense layer reads flattened."""
        height, width = ((side // 2 - 4) // 2 for side in shape[:2])
        return height, width

    def __call__(self, x: jax.Array) -> jax.Array:
        """Images [n, ...] to logits [n, classes]."""
        x = x.reshape(x.shape[0], *self.shape)
        x = nnx.max_pool(nnx.relu(self.conv1(x)), (2, 2), (2, 2))
        x = nnx.max_pool(nnx.relu(self.conv2(x)), (2, 2), (2, 2))
        x = nnx.relu(self.fc1(x.reshape(x.shape[0], -1)))
        return self.fc3(nnx.relu(self.fc2(x)))
