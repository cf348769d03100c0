"""The names of the networks, for those who would not import them all to know them."""

NETWORKS = {
    "mlpnet": "40 and 20 hidden units, no biases",
    "lenet300": "300 and 100 hidden units, no biases",
    "lenet5": "two 5 x 5 convolutions, three dense layers; sides of 12 or more",
    "cnn": "two 3 x 3 convolutions, two dense layers; sides divisible by 4",
    "resnet20": "for CIFAR, 16 to 64 channels, batch norm; sides of 8 or more",
    "resnet18": "for ImageNet, batch norm; sides of 32 or more",
    "resnet50": "for ImageNet, batch norm; sides of 32 or more",
    "mobilenet_v1": "depthwise convolutions, batch norm; sides of 32 or more",
    "mobilenet_v1_half": "the same with half the channels",
    "vgg16": "13 convolutions, three dense layers; sides of 32 or more",
}
"""What each network is, by its name."""
