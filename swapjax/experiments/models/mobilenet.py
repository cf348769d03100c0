"""MobileNetV1: depthwise and pointwise convolutions in turn."""

import jax
from flax import nnx

from swapjax.experiments.models.resnet import batch_norm, convolution

_WIDTHS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)) + (
    ((512, 1),) * 5 + ((1024, 2), (1024, 1))
)  # channels and stride of each block


class Separable(nnx.Module):
    """A 3 x 3 convolution of each channel, then a 1 x 1 convolution.

    Args:
        inputs: channels in.
        outputs: channels out.
        stride: of the 3 x 3 convolution.
        rngs: seeds the weights.
    """

    def __init__(
        self, inputs: int, outputs: int, stride: int, *, rngs: nnx.Rngs
    ) -> None:
        self.conv1 = convolution(inputs, inputs, 3, stride, groups=inputs, rngs=rngs)
        self.bn1 = batch_norm(inputs, rngs=rngs)
        self.conv2 = convolution(inputs, outputs, 1, rngs=rngs)
        self.bn2 = batch_norm(outputs, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Images [n, h, w, c]."""
        x = nnx.relu(self.bn1(self.conv1(x)))
        return nnx.relu(self.bn2(self.conv2(x)))


class MobileNetV1(nnx.Module):
    """For ImageNet, 4,231,976 weights for 3 channels and 1,000 classes.

    Args:
        channels: of the images.
        classes: how many logits.
        width: of every layer, in units of the published one.
        rngs: seeds the weights.
    """

    def __init__(
        self, channels: int, classes: int, *, width: float = 1.0, rngs: nnx.Rngs
    ) -> None:
        inputs, blocks = round(32 * width), []
        self.conv1 = convolution(channels, inputs, 3, 2, rngs=rngs)
        self.bn1 = batch_norm(inputs, rngs=rngs)
        for published, stride in _WIDTHS:
            outputs = round(published * width)
            blocks.append(Separable(inputs, outputs, stride, rngs=rngs))
            inputs = outputs
        self.blocks = nnx.List(blocks)
        self.fc = nnx.Linear(inputs, classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Images [n, h, w, c] to logits [n, classes]."""
        x = nnx.relu(self.bn1(self.conv1(x)))
        for block in self.blocks:
            x = block(x)
        return self.fc(x.mean(axis=(1, 2)))
