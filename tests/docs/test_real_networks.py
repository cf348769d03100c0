"""The networks of `benchmarks/real.py`, on random weights of small ones: no torch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import real
import real_crepe as crepe
import real_efficientnet as efficientnet
import real_tones
from real_report import Run, markdown


def draw(*shape):
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


@pytest.mark.parametrize("convolve", [crepe.in_parts, crepe.by_fourier])
def test_convolutions_over_sound_compute_the_same(convolve):
    x, kernel = draw(2, 24, 128), draw(17, 128, 3)  # two parts of 1,088 inputs
    assert crepe.whole(x, kernel, 1, (8, 8)).shape == (2, 24, 3)
    np.testing.assert_allclose(
        convolve(x, kernel, 1, (8, 8)), crepe.whole(x, kernel, 1, (8, 8)), atol=1e-3
    )


@pytest.mark.parametrize("stride", [1, 2])
def test_convolutions_by_shifts_compute_the_same(stride):
    x, kernel = draw(2, 7, 8, 3), draw(5, 5, 1, 3)
    found = efficientnet.by_shifts(x, kernel, stride)
    wanted = efficientnet.convolve(x, kernel, stride)
    np.testing.assert_allclose(found, wanted, atol=1e-4)


@pytest.mark.parametrize(
    ("network", "params", "x", "outputs"),
    [
        (crepe, crepe.draw((2, 2, 2, 2, 2, 3), 0), draw(4, 1024), 360),
        (efficientnet, efficientnet.draw(2, 4, 5, 0), draw(4, 16, 16, 3), 5),
    ],
)
def test_networks_run_and_know_their_statistics(network, params, x, outputs):
    shape = jax.eval_shape(network.apply, params, x)
    assert shape.shape == (4, outputs)
    new = jax.eval_shape(network.statistics, params, x)
    assert jax.tree.map(jnp.shape, new) == jax.tree.map(jnp.shape, params)


def test_pitches_are_those_of_the_tones():
    frames, cents = real_tones.tones(20, seed=0)
    np.testing.assert_allclose(frames.mean(1), 0, atol=1e-5)
    np.testing.assert_allclose(frames.std(1, ddof=1), 1, atol=1e-5)
    time = np.arange(1024) / real_tones.RATE

    def left(frame, pitch):
        """What the harmonics of a pitch leave of a frame."""
        angles = 2 * np.pi * time * pitch * np.arange(1, 6)[:, None]
        basis = np.concatenate([np.sin(angles), np.cos(angles)]).T
        return np.linalg.lstsq(basis, frame, rcond=None)[1].sum()

    for frame, pitch in zip(frames, 10 * 2 ** (cents / 1200), strict=True):
        assert left(frame, pitch) < min(left(frame, pitch * f) for f in (0.93, 1.07))


def test_pitches_are_decoded_between_bins():
    wanted = np.asarray([3010.0, 5555.0])
    bins = 1997.3794084376191 + 20 * np.arange(360)
    bumps = np.exp(-(((bins - wanted[:, None]) / 25) ** 2) / 2)
    np.testing.assert_allclose(crepe.decode(bumps), wanted, atol=1.0)


def test_what_is_skipped_says_why():
    network, method = next(iter(real.SKIPPED))
    run = real.Worker(1.0)(Run(network, method, 1, "0.9"))
    assert run.status == f"skipped: {real.SKIPPED[network, method]}"
    dense = Run(network, "dense", 1, "0", 99.0)
    (accuracies,) = markdown([dense, run])
    assert real.SKIPPED[network, method] in accuracies
