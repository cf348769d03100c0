"""What spoils data, labels and weights on purpose; every draw has an explicit key."""

from swapjax.corruptions.attacks import fgsm, pgd
from swapjax.corruptions.images import IMAGE_CORRUPTIONS, corrupt_images
from swapjax.corruptions.jpeg import compress_jpeg
from swapjax.corruptions.label_maps import LABEL_MAPS
from swapjax.corruptions.labels import flip_labels
from swapjax.corruptions.memory import AnalogMemory, in_analog_memory

__all__ = [
    "IMAGE_CORRUPTIONS",
    "LABEL_MAPS",
    "AnalogMemory",
    "compress_jpeg",
    "corrupt_images",
    "fgsm",
    "flip_labels",
    "in_analog_memory",
    "pgd",
]
