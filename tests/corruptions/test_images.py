"""Images that are spoilt, against slow references, and what holds for every kind."""

import colorsys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from swapjax.corruptions import IMAGE_CORRUPTIONS, corrupt_images, images

KEY = jax.random.key(0)
RANDOM = np.random.default_rng(0)
# Smooth, as pictures are, with black, white and pure colours in a corner.
COLOUR = scipy.ndimage.gaussian_filter(RANDOM.random((5, 13, 18, 3)), (0, 2, 2, 0))
COLOUR = (COLOUR - COLOUR.min()) / np.ptp(COLOUR)
COLOUR[0, :2, :3] = [
    [[0, 0, 0], [1, 1, 1], [1, 0, 0]],
    [[0, 1, 0], [0, 0, 1], [1, 1, 0]],
]
COLOUR = COLOUR.astype(np.float32)
GREY = COLOUR[..., 0]
DRAWN = ("gaussian_noise", "shot_noise", "impulse_noise")


def spoil(kind, severity, images=COLOUR, key=KEY, **options):
    return np.asarray(corrupt_images(key, images, kind, severity, **options))


@pytest.mark.parametrize("severity", [1, 5])
def test_a_blur_is_that_of_scipy(severity):
    sigma = (0.4, 1.0)[severity // 5]
    wanted = scipy.ndimage.gaussian_filter(
        COLOUR.astype(np.float64), (0, sigma, sigma, 0), mode="nearest", truncate=4
    )
    np.testing.assert_allclose(spoil("gaussian_blur", severity), wanted, atol=2e-6)


@pytest.mark.parametrize("severity", [1, 5])
def test_brightness_is_the_value_of_hsv(severity):
    more = (0.05, 0.3)[severity // 5]
    wanted = np.empty(COLOUR.shape)
    for place in np.ndindex(COLOUR.shape[:3]):
        hue, saturation, value = colorsys.rgb_to_hsv(*map(float, COLOUR[place]))
        wanted[place] = colorsys.hsv_to_rgb(hue, saturation, min(value + more, 1))
    np.testing.assert_allclose(spoil("brightness", severity), wanted, atol=2e-6)
    grey = spoil("brightness", severity, GREY)
    np.testing.assert_allclose(grey, np.minimum(GREY + more, 1), atol=1e-6)


@pytest.mark.parametrize("severity", [1, 5])
def test_contrast_keeps_the_mean_of_each_channel(severity):
    factor = (0.75, 0.15)[severity // 5]
    for image, got in zip(COLOUR, spoil("contrast", severity), strict=True):
        for channel in range(3):
            x = image[..., channel].astype(np.float64)
            wanted = x.mean() + factor * (x - x.mean())
            np.testing.assert_allclose(got[..., channel], wanted, atol=2e-6)


@pytest.mark.parametrize("severity", [1, 5])
def test_pixels_are_averages_over_their_area(severity):
    share = (0.95, 0.65)[severity // 5]

    def there_and_back(x):  # along the first axis
        size, few = len(x), int(len(x) * share)
        # Each pixel few times, so that areas have whole numbers of them.
        fine = np.repeat(x, few, axis=0).reshape(few, size, *x.shape[1:]).mean(axis=1)
        return np.stack([fine[int((i + 0.5) * few / size)] for i in range(size)])

    for image, got in zip(COLOUR, spoil("pixelate", severity), strict=True):
        wanted = there_and_back(there_and_back(image.astype(np.float64)).swapaxes(0, 1))
        np.testing.assert_allclose(got, wanted.swapaxes(0, 1), atol=2e-6)


def test_noise_has_the_deviation_that_it_should():
    half = np.full((40, 16, 16, 3), 0.5, np.float32)
    gaussian = spoil("gaussian_noise", 5, half)
    assert abs(gaussian.std() / 0.1 - 1) < 0.03
    assert abs(gaussian.mean() - 0.5) < 0.003
    shot = spoil("shot_noise", 5, half)
    assert abs(shot.var() / (0.5 / 50) - 1) < 0.06
    np.testing.assert_allclose(shot * 50, np.round(shot * 50), atol=1e-3)
    impulse = spoil("impulse_noise", 5, half)
    for value in (0, 1):
        assert abs(np.mean(impulse == value) - 0.035) < 0.003
    assert set(np.unique(impulse)) == {0, 0.5, 1}


@pytest.mark.parametrize("kind", IMAGE_CORRUPTIONS)
def test_a_higher_severity_is_further_away(kind):
    apart = [np.abs(spoil(kind, s) - COLOUR).mean() for s in (1, 3, 5)]
    assert apart[0] > 0
    assert apart == sorted(apart)
    strengths = images._KINDS[kind][1]
    assert len(strengths) == 5
    assert list(strengths) in (sorted(strengths), sorted(strengths)[::-1])


@pytest.mark.parametrize("kind", IMAGE_CORRUPTIONS)
def test_shape_dtype_and_box_are_kept(kind):
    half = jnp.asarray(COLOUR[..., :1], jnp.bfloat16)
    for given in (COLOUR, GREY, COLOUR[:1], half, np.uint8(GREY), COLOUR[..., :2]):
        like = jax.ShapeDtypeStruct(given.shape, given.dtype)
        got = jax.eval_shape(lambda x: corrupt_images(KEY, x, kind, 5), like)
        assert (got.shape, got.dtype) == (like.shape, like.dtype)
    got = spoil(kind, 5)
    assert 0 <= got.min() <= got.max() <= 1
    assert spoil(kind, 5, COLOUR[:0]).shape == (0, *COLOUR.shape[1:])


@pytest.mark.parametrize("kind", IMAGE_CORRUPTIONS)
def test_other_scales_are_spoilt_alike(kind):
    in_bytes = np.round(COLOUR * 255).astype(np.uint8)
    exact = in_bytes.astype(np.float32) / 255
    wanted = spoil(kind, 3, exact)
    got = spoil(kind, 3, in_bytes)
    assert got.dtype == np.uint8
    np.testing.assert_allclose(got / 255, wanted, atol=0.51 / 255)
    mean, deviation = 0.45, 0.25
    box = (-mean / deviation, (1 - mean) / deviation)
    standard = spoil(kind, 3, (exact - mean) / deviation, box=box)
    # Rounding moves a Poisson draw by a count at most, and seldom.
    off = np.abs(standard * deviation + mean - wanted) > 1e-5
    assert off.mean() <= (0.01 if kind == "shot_noise" else 0)
    again = spoil(kind, 3, standard.astype(np.float64), box=box)
    assert again.dtype == np.float32
    assert box[0] - 1e-6 <= standard.min() <= standard.max() <= box[1] + 1e-6


@pytest.mark.parametrize("kind", IMAGE_CORRUPTIONS)
def test_jit_draws_the_same_and_keys_differ(kind):
    images = jnp.asarray(COLOUR)
    run = jax.jit(lambda key, x: corrupt_images(key, x, kind, 3))
    np.testing.assert_array_equal(spoil(kind, 3), run(KEY, images))
    other = spoil(kind, 3, key=jax.random.key(1))
    assert np.array_equal(spoil(kind, 3), other) == (kind not in DRAWN)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "fog"}, "kind must be one of gaussian_noise, .*got 'fog'"),
        ({"severity": 0}, "severity must be 1 or more, got 0"),
        ({"severity": 6}, "severity must be 5 or less, got 6"),
        ({"severity": 2.5}, "severity must be a whole number"),
        ({"images": GREY[0]}, r"images must have shape \[n, height, width\]"),
        ({"images": COLOUR[None]}, r"images must have shape \[n, height, width\]"),
        ({"images": GREY * 255}, "images must lie in the box from 0 to 1, got"),
        ({"images": GREY * np.nan}, "images must lie in the box .*nan to nan"),
        ({"images": GREY.astype(int)}, "images must be floats .* or uint8.*got int"),
        ({"box": (1, 0)}, "box must be two numbers that rise"),
        ({"box": 1}, "box must be two numbers, the least"),
        ({"images": GREY.astype(np.uint8), "box": (0, 1)}, r"box must be \(0, 255\)"),
    ],
)  # fmt: skip
def test_bad_input_is_named(arguments, message):
    given = {"images": GREY, "kind": "contrast", "severity": 1, **arguments}
    with pytest.raises(ValueError, match=message):
        corrupt_images(KEY, **given)
