"""What spoils data, labels and weights on purpose; every draw has an explicit key."""

from swapjax.corruptions.attacks import fgsm, pgd
from swapjax.corruptions.images import IMAGE_CORRUPTIONS, corrupt_images
from swapjax.corruptions.labels import flip_labels

__all__ = ["IMAGE_CORRUPTIONS", "corrupt_images", "fgsm", "flip_labels", "pgd"]
