"""Images out of JPEG and PNG files that lie one after the other in an array."""

import io
import itertools
import math
import warnings
from typing import Any

import numpy as np

from swapjax.core.text import reason
from swapjax.io import npz

# PIL would open any of a hundred formats, and start programs for some.
_FORMATS = ("JPEG", "PNG")
_CHANNELS = {"L": (), "LA": (2,), "RGB": (3,), "RGBA": (4,)}


def decode(what: str, name: str, data: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Decode images that are all of one shape.

    Args:
        what: they are from, the start of a sentence.
        name: of the array.
        data: uint8 [bytes], the files one after the other.
        offsets: [n + 1], where each file starts and the last one ends.

    Returns:
        uint8 [n, height, width], or [n, height, width, channels] for 2 (gray and
        alpha), 3 (RGB) or 4 (RGBA); [0, 0, 0] for no images.

    Raises:
        ValueError: for offsets that do not cut the data into files, files that are
            damaged or neither JPEG nor PNG, of other than 8 bits a channel, and images
            of several shapes, or far larger than their files. Sizes are compared
            before anything is decoded.
    """
    if data.dtype != np.uint8 or data.ndim != 1:
        raise ValueError(
            f"{what} has {name} of {data.dtype} and shape {data.shape}, bytes in a row "
            "wanted"
        )
    if offsets.dtype.kind not in "iu" or offsets.ndim != 1 or not offsets.size:
        raise ValueError(
            f"{what} has offsets for {name} of {offsets.dtype} and shape "
            f"{offsets.shape}, whole numbers in a row wanted, one more than images"
        )
    edges = [int(edge) for edge in offsets]
    rises = all(first < end for first, end in itertools.pairwise(edges))
    if not rises or edges[0] < 0 or edges[-1] > data.size:
        raise ValueError(
            f"{what} has offsets for {name} from {edges[0]} to {edges[-1]}, numbers "
            f"that rise from 0 to at most {data.size} wanted"
        )
    shapes: list[tuple[int, ...]] = []
    files = [data[first:end].tobytes() for first, end in itertools.pairwise(edges)]
    for number, file in enumerate(files):
        shapes.append(_measure(f"{what} has image {number} of {name}", file))
        if shapes[-1] != shapes[0]:
            raise ValueError(
                f"{what} has images of {shapes[0]} and {shapes[-1]} in {name}, one "
                "shape wanted"
            )
    if not files:
        return np.zeros((0, 0, 0), np.uint8)
    whole = (len(files), *shapes[0])
    npz.require_room(f"{what}: {name}", math.prod(whole), data.size)
    images = np.empty(whole, np.uint8)
    for number, file in enumerate(files):
        images[number] = _decode(f"{what} has image {number} of {name}", file)
    return images


def _measure(what: str, file: bytes) -> tuple[int, ...]:
    """Tell the shape of an image from the head of its file."""
    with _open(what, file) as image:
        if image.mode not in _CHANNELS:
            raise ValueError(
                f"{what} in mode {image.mode}; {', '.join(_CHANNELS)} of 8 bits a "
                "channel wanted"
            )
        if getattr(image, "n_frames", 1) > 1:
            raise ValueError(f"{what} of {image.n_frames} frames, one wanted")
        return (image.height, image.width, *_CHANNELS[image.mode])


def _decode(what: str, file: bytes) -> np.ndarray:
    with _open(what, file) as image:
        try:
            image.load()
        except Exception as e:  # each decoder has kinds of its own
            raise ValueError(f"{what} damaged: {reason(e)}") from None
        return np.asarray(image)


def _open(what: str, file: bytes) -> Any:
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # of images that are too large
            return Image.open(io.BytesIO(file), formats=_FORMATS)
    except UnidentifiedImageError:
        raise ValueError(f"{what} damaged, or neither JPEG nor PNG") from None
    except Exception as e:
        raise ValueError(f"{what} damaged: {reason(e)}") from None
