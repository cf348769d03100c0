"""What JPEG loses, against the transform of SciPy and the files of Pillow."""

import io

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.fft
import scipy.ndimage
from PIL import Image

from swapjax.corruptions import compress_jpeg, jpeg

RANDOM = np.random.default_rng(0)
# Sizes that neither 8 nor 2 divides.
SMOOTH = scipy.ndimage.gaussian_filter(RANDOM.random((3, 37, 45, 3)), (0, 1.5, 1.5, 0))
COLOUR = np.round(255 * (SMOOTH - SMOOTH.min()) / np.ptp(SMOOTH)).astype(np.uint8)
GREY = COLOUR[..., 0]


def in_a_file(image, quality, subsampling):
    """One image, saved and read."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality, subsampling=subsampling)
    opened = Image.open(file)
    return np.asarray(opened, np.int32), opened.quantization


@pytest.mark.parametrize("quality", [10, 50, 80, 100])
def test_steps_are_those_of_libjpeg(quality):
    _, tables = in_a_file(COLOUR[0], quality, 2)
    for table, wanted in ((jpeg._BRIGHTNESS, tables[0]), (jpeg._COLOUR, tables[1])):
        np.testing.assert_array_equal(jpeg._steps(table, quality).ravel(), wanted)


def test_grey_blocks_are_rounded_cosines():
    steps = jpeg._steps(jpeg._BRIGHTNESS, 40)
    got = np.asarray(compress_jpeg(GREY, 40)).astype(np.int32)
    far = 0
    for image, result in zip(GREY, got, strict=True):
        filled = np.pad(image, ((0, 3), (0, 3)), mode="edge").astype(np.float64) - 128
        for i, j in np.ndindex(5, 6):
            part = np.s_[8 * i : 8 * i + 8, 8 * j : 8 * j + 8]
            cosines = scipy.fft.dctn(filled[part], norm="ortho")
            back = scipy.fft.idctn(np.round(cosines / steps) * steps, norm="ortho")
            wanted = np.clip(np.round(back) + 128, 0, 255)
            shown = result[part]
            height, width = shown.shape
            far += np.sum(np.abs(shown - wanted[:height, :width]) > 1)
    assert far == 0


@pytest.mark.parametrize(
    ("quality", "images", "subsampling"),
    [(5, GREY, 0), (40, GREY, 0), (80, GREY, 0), (40, COLOUR, 0), (40, COLOUR, 2),
     (80, COLOUR, 2)],
    ids=["grey 5", "grey 40", "grey 80", "colour 40", "half 40", "half 80"],
)  # fmt: skip
def test_images_are_those_of_files_up_to_roundings(quality, images, subsampling):
    got = np.asarray(compress_jpeg(images, quality, subsample=subsampling == 2)) * 1.0
    wanted = np.stack([in_a_file(x, quality, subsampling)[0] for x in images])
    off, lost = np.abs(got - wanted).mean(), np.abs(wanted - images).mean()
    assert off < 0.2 * lost
    both = np.corrcoef((got - images).ravel(), (wanted - images).ravel())
    assert both[0, 1] > 0.95


@pytest.mark.parametrize("size", [(1, 1), (7, 9), (8, 16), (2, 33)])
def test_any_size_keeps_a_flat_image(size):
    flat = jnp.full((2, *size, 3), 0.6, jnp.float32)
    got = compress_jpeg(flat, 90)
    assert got.shape == flat.shape
    np.testing.assert_allclose(got, 0.6, atol=2.5 / 255)


def test_a_worse_quality_loses_more():
    lost = [
        np.abs(1.0 * np.asarray(compress_jpeg(COLOUR, q)) - COLOUR).mean()
        for q in (1, 25, 60, 95)
    ]
    assert lost == sorted(lost, reverse=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"quality": 0}, "quality must be 1 or more, got 0"),
        ({"quality": 101}, "quality must be 100 or less, got 101"),
        ({"quality": 50.5}, "quality must be a whole number"),
        ({"images": GREY[0]}, r"images must have shape \[n, height, width\]"),
        ({"images": GREY * 1.0}, "images must lie in the box"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        compress_jpeg(**{"images": GREY, "quality": 50, **arguments})
