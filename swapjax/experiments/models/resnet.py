"""Residual networks, with the names and shapes of their PyTorch weights."""

from typing import Any

import jax
from flax import nnx


class Basic(nnx.Module):
    """Two 3 x 3 convolutions beside a shortcut.

    Args:
        inputs: channels in.
        width: channels out.
        stride: of the first convolution.
        rngs: seeds the weights.
    """

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, *, rngs: nnx.Rngs) -> None:
        self.conv1 = convolution(inputs, width, 3, stride, rngs=rngs)
        self.bn1 = batch_norm(width, rngs=rngs)
        self.conv2 = convolution(width, width, 3, rngs=rngs)
        self.bn2 = batch_norm(width, rngs=rngs)
        self.downsample = shortcut(inputs, width, stride, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Images [n, h, w, c]."""
        y = nnx.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return nnx.relu(y + apply_all(self.downsample, x))


class Bottleneck(nnx.Module):
    """A 1 x 1, a 3 x 3 and a wider 1 x 1 convolution beside a shortcut.

    Args:
        inputs: channels in.
        width: channels of the 3 x 3 convolution, a quarter of those out.
        stride: of the 3 x 3 convolution.
        rngs: seeds the weights.
    """

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, *, rngs: nnx.Rngs) -> None:
        self.conv1 = convolution(inputs, width, 1, rngs=rngs)
        self.bn1 = batch_norm(width, rngs=rngs)
        self.conv2 = convolution(width, width, 3, stride, rngs=rngs)
        self.bn2 = batch_norm(width, rngs=rngs)
        self.conv3 = convolution(width, 4 * width, 1, rngs=rngs)
        self.bn3 = batch_norm(4 * width, rngs=rngs)
        self.downsample = shortcut(inputs, 4 * width, stride, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Images [n, h, w, c]."""
        y = nnx.relu(self.bn1(self.conv1(x)))
        y = nnx.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return nnx.relu(y + apply_all(self.downsample, x))


class ResNet(nnx.Module):
    """A stem, groups of residual blocks at half the resolution each, a classifier.

    Args:
        block: `Basic` or `Bottleneck`.
        depths: blocks of each group.
        width: channels of the first group; each next one has twice as many.
        channels: of the images.
        classes: how many logits.
        small: a 3 x 3 stem for images of CIFAR's size; otherwise 7 x 7 with stride 2
            and 3 x 3 max-pooling, for ImageNet's.
        rngs: seeds the weights.
    """

    def __init__(
        self,
        block: type[Basic] | type[Bottleneck],
        depths: tuple[int, ...],
        *,
        width: int,
        channels: int,
        classes: int,
        small: bool,
        rngs: nnx.Rngs,
    ) -> None:
        self.small, self.groups = small, len(depths)
        stem = (3, 1) if small else (7, 2)
        self.conv1 = convolution(channels, width, *stem, rngs=rngs)
        self.bn1 = batch_norm(width, rngs=rngs)
        inputs = width
        for group, depth in enumerate(depths):
            blocks = []
            for i in range(depth):
                stride = 2 if group > 0 and i == 0 else 1
                blocks.append(block(inputs, width, stride, rngs=rngs))
                inputs = width * block.expansion
            setattr(self, f"layer{group + 1}", nnx.List(blocks))
            width *= 2
        self.fc = nnx.Linear(inputs, classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Images [n, h, w, c] to logits [n, classes]."""
        x = nnx.relu(self.bn1(self.conv1(x)))
        if not self.small:
            x = nnx.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        for group in range(self.groups):
            x = apply_all(getattr(self, f"layer{group + 1}"), x)
        return self.fc(x.mean(axis=(1, 2)))


def resnet20(channels: int, classes: int, *, rngs: nnx.Rngs) -> ResNet:
    """For CIFAR: 16, 32 and 64 channels, shortcuts by 1 x 1 convolutions.

    272,474 weights for 10 classes, as the checkpoint that WoodFisher, CBS, CHITA and
    SWAP prune.
    """
    return ResNet(
        Basic, (3, 3, 3), width=16, channels=channels, classes=classes, small=True,
        rngs=rngs,
    )  # fmt: skip


def resnet18(channels: int, classes: int, *, rngs: nnx.Rngs) -> ResNet:
    """For ImageNet, 11,689,512 weights for 1,000 classes."""
    return ResNet(
        Basic, (2, 2, 2, 2), width=64, channels=channels, classes=classes, small=False,
        rngs=rngs,
    )  # fmt: skip


def resnet50(channels: int, classes: int, *, rngs: nnx.Rngs) -> ResNet:
    """For ImageNet, 25,557,032 weights for 1,000 classes."""
    return ResNet(
        Bottleneck, (3, 4, 6, 3), width=64, channels=channels, classes=classes,
        small=False, rngs=rngs,
    )  # fmt: skip


def convolution(
    inputs: int,
    outputs: int,
    size: int,
    stride: int = 1,
    *,
    groups: int = 1,
    rngs: nnx.Rngs,
) -> nnx.Conv:
    """Make a square convolution without biases, padded on all sides alike."""
    # Not "SAME": with a stride that pads one side only, where PyTorch pads both.
    return nnx.Conv(
        inputs, outputs, (size, size), stride, padding=size // 2, use_bias=False,
        feature_group_count=groups, rngs=rngs,
    )  # fmt: skip


def batch_norm(channels: int, *, rngs: nnx.Rngs) -> nnx.BatchNorm:
    """Normalisation by running statistics; `swapjax.loops.batchnorm` estimates them."""
    return nnx.BatchNorm(channels, use_running_average=True, rngs=rngs)


def shortcut(inputs: int, outputs: int, stride: int, *, rngs: nnx.Rngs) -> nnx.List:
    """Nothing where shapes agree, else a 1 x 1 convolution and its batch norm."""
    if stride == 1 and inputs == outputs:
        return nnx.List([])
    matched = convolution(inputs, outputs, 1, stride, rngs=rngs)
    return nnx.List([matched, batch_norm(outputs, rngs=rngs)])


def apply_all(layers: Any, x: jax.Array) -> jax.Array:
    """One layer after the other."""
    for layer in layers:
        x = layer(x)
    return x
