"""Images in files of their own: JPEG and PNG, measured before they are decoded."""

import io
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from swapjax.experiments.images import decode

RNG = np.random.default_rng(0)
GRAY = RNG.integers(0, 256, (6, 5), np.uint8)


def file(image, form="PNG", **options):
    """The bytes of an image file, of an array or of one of PIL."""
    if not isinstance(image, Image.Image):
        image = Image.fromarray(image)
    result = io.BytesIO()
    image.save(result, form, **options)
    return result.getvalue()


def joined(*files):
    data = np.frombuffer(b"".join(files), np.uint8)
    return data, np.cumsum([0, *map(len, files)])


def refused(message, data, offsets):
    with pytest.raises(ValueError, match=message) as error:
        decode("data: d.npz", "jpeg_test", data, offsets)
    assert str(error.value).startswith("data: d.npz")
    assert "jpeg_test" in str(error.value)
    assert str(error.value).isprintable()


@pytest.mark.parametrize("channels", [(), (2,), (3,), (4,)])
def test_pixels_come_as_they_were(channels):
    images = RNG.integers(0, 256, (3, 6, 5, *channels), np.uint8)
    data, offsets = joined(*map(file, images))
    for dtype in (np.int64, np.uint16, np.uint64, ">i4"):
        found = decode("d", "jpeg_test", data, offsets.astype(dtype))
        np.testing.assert_array_equal(found, images)


def test_part_of_the_files_will_do():
    images = RNG.integers(0, 256, (4, 6, 5), np.uint8)
    data, offsets = joined(*map(file, images))
    found = decode("d", "jpeg_test", data, offsets[1:3])
    np.testing.assert_array_equal(found, images[1:2])
    assert decode("d", "jpeg_test", data, offsets[:1]).shape == (0, 0, 0)


@pytest.mark.parametrize("form", ["GIF", "BMP", "TIFF", "WEBP", "PPM", "ICO", "EPS"])
def test_other_formats_are_not_opened(form, monkeypatch, tmp_path):
    program = tmp_path / "gs"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    data, offsets = joined(file(GRAY, form))
    refused("has image 0 of jpeg_test damaged, or neither JPEG nor PNG", data, offsets)
    assert not (tmp_path / "started").exists()


@pytest.mark.parametrize(
    ("image", "form"),
    [
        (Image.new("CMYK", (5, 6)), "JPEG"),
        (Image.new("P", (5, 6)), "PNG"),
        (Image.new("1", (5, 6)), "PNG"),
        (RNG.integers(0, 2**16, (6, 5), np.uint16), "PNG"),
    ],
)
def test_other_kinds_of_pixels_are_named(image, form):
    data, offsets = joined(file(GRAY), file(image, form))
    refused("has image 1 of jpeg_test in mode .* 8 bits a channel", data, offsets)


def test_films_are_no_images():
    still = Image.fromarray(GRAY)
    film = file(still, save_all=True, append_images=[Image.new("L", (5, 6), 3)])
    refused("has image 0 of jpeg_test of 2 frames, one wanted", *joined(film))


@pytest.mark.parametrize(
    "offsets",
    [3, [], [[0, 9]], [0.0, 9.0], ["0", "9"], [False, True], [0, None]],
)
def test_offsets_that_are_no_row_of_whole_numbers_are_told(offsets):
    data, _ = joined(file(GRAY))
    refused("has offsets for jpeg_test of .* whole numbers in a row", data,
            np.asarray(offsets))  # fmt: skip


@pytest.mark.parametrize("more", [[0, 0], [0, 9, 5], [-1, 9], [0, 10**6], [9, 0]])
def test_offsets_that_do_not_rise_within_the_files_are_told(more):
    data, _ = joined(file(GRAY))
    refused("numbers that rise from 0 to at most", data, np.asarray(more))


@pytest.mark.parametrize("data", [GRAY, np.zeros(9, np.int8), np.asarray(b"x")])
def test_files_that_are_no_bytes_are_told(data):
    refused("bytes in a row wanted", data, np.asarray([0, 1]))


@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_files_that_end_early_are_damaged(form):
    whole = file(RNG.integers(0, 256, (40, 40), np.uint8), form)
    for part in (10, 30, 100, len(whole) // 2, len(whole) - 40):
        refused("has image 1 of jpeg_test damaged", *joined(whole, whole[:part]))


def test_images_far_larger_than_their_files_are_refused_before_they_are_decoded():
    large = file(Image.new("L", (6000, 6000)))
    tracemalloc.start()
    refused(
        r"jpeg_test would unpack from 5\d\d,\d{3} to 540,000,000",
        *joined(*[large] * 15),
    )
    huge = file(GRAY).replace((5).to_bytes(4) + (6).to_bytes(4), b"\0\1\0\0" * 2, 1)
    refused("has image 0 of jpeg_test damaged", *joined(huge))
    refused(
        r"images of \(6, 5\) and \(6000, 6000\) in jpeg", *joined(file(GRAY), large)
    )
    assert tracemalloc.get_traced_memory()[1] < 20 * 2**20
    tracemalloc.stop()
