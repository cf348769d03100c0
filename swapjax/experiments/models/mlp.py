"""Multi-layer perceptrons without biases."""

import jax
from flax import nnx


class MLP(nnx.Module):
    """Dense layers ``fc1``, ``fc2``, ... with ReLU between them and no biases.

    Args:
        sizes: widths from the flattened image to the classes; MLPNet of the WoodFisher,
            CBS, CHITA and SWAP papers is (784, 40, 20, 10).
        rngs: seeds the weights.
        gain: the variance of weights times their inputs; 2 is He's for ReLU.
    """

    def __init__(
        self, sizes: tuple[int, ...], *, rngs: nnx.Rngs, gain: float = 1.0
    ) -> None:
        self.depth = len(sizes) - 1
        start = nnx.initializers.variance_scaling(gain, "fan_in", "truncated_normal")
        for i in range(self.depth):
            layer = nnx.Linear(
                sizes[i], sizes[i + 1], use_bias=False, kernel_init=start, rngs=rngs
            )
            setattr(self, f"fc{i + 1}", layer)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Images [n, ...] to logits [n, classes]."""
        x = x.reshape(x.shape[0], -1)
        for i in range(self.depth):
            x = getattr(self, f"fc{i + 1}")(x)
            if i + 1 < self.depth:
                x = nnx.relu(x)
        return x
