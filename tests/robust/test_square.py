"""Square: shapes of squares by their formula, the ball, the box, and what it finds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swapjax import robust
from swapjax.robust import square_proposals
from swapjax.robust.square import area

KEY = jax.random.key(0)
IMAGES = jax.random.uniform(jax.random.key(1), (6, 12, 10, 2), minval=0.2, maxval=0.8)
WEIGHTS = jax.random.normal(jax.random.key(2), (12, 10, 2, 4))


def apply(weights, images):
    return jnp.einsum("nhwc,hwck->nk", images, weights)


LABELS = apply(WEIGHTS, IMAGES).argmax(1)


def square(images=IMAGES, labels=LABELS, apply=apply, **settings):
    given = {"epsilon": 0.05, "queries": 60, "key": KEY} | settings
    key = given.pop("key")
    return robust.square(key, apply, WEIGHTS, images, labels, **given)


def bump(side):
    """Eq. 2 of arXiv:1912.00049, as it is written there, of two halves."""

    def half(width):
        n = side // 2
        found = np.zeros((side, width))
        for r in range(1, side + 1):
            for s in range(1, width + 1):
                far = max(abs(r - side // 2 - 1), abs(s - width // 2 - 1))
                found[r - 1, s - 1] = sum(
                    1 / (n + 1 - k) ** 2 for k in range(n - far + 1)
                )
        return found

    return np.concatenate([half(side // 2), -half(side - side // 2)], axis=1)


@pytest.mark.parametrize("side", [3, 4, 7, 10])
def test_squares_in_l2_are_their_formula(side):
    along = jnp.arange(side)[None]
    for turned in (False, True):
        got = square_proposals.bump(
            along, along, jnp.asarray(side), jnp.array([turned])
        )[0]
        np.testing.assert_allclose(got.T if turned else got, bump(side), atol=1e-5)


def test_areas_halve_as_in_the_paper():
    at = [0, 10, 11, 51, 201, 501, 1001, 2001, 4001, 6001, 8001]
    wanted = [0.8, 0.8, *(0.8 / 2**i for i in range(1, 10))]
    got = [float(area(jnp.asarray(i), 10_000, 0.8)) for i in at]
    np.testing.assert_allclose(got, wanted, rtol=1e-6)
    got = [float(area(jnp.asarray(i // 10), 1_000, 0.8)) for i in at[2:]]
    assert got == sorted(got, reverse=True)


def test_every_value_is_at_the_edge_of_the_ball_or_the_box():
    shift = np.abs(np.asarray(square() - IMAGES))
    np.testing.assert_allclose(shift, 0.05, atol=1e-6)
    far = np.asarray(square(epsilon=0.5))
    ends = np.clip(np.stack([IMAGES - 0.5, IMAGES + 0.5]), 0, 1)
    np.testing.assert_allclose(np.abs(ends - far).min(0), 0, atol=1e-6)


@given(
    epsilon=st.floats(0, 2),
    queries=st.integers(1, 30),
    seed=st.integers(0, 2**31 - 1),
    norm=st.sampled_from(["linf", "l2"]),
    share=st.floats(0.01, 1),
)
def test_images_stay_in_the_ball_and_the_box(epsilon, queries, seed, norm, share):
    got = square(
        epsilon=epsilon, queries=queries, key=jax.random.key(seed), norm=norm,
        share=share,
    )  # fmt: skip
    order = np.inf if norm == "linf" else 2
    shift = np.asarray(got - IMAGES, np.float64).reshape(6, -1)
    assert np.linalg.norm(shift, order, axis=1).max() <= epsilon + 1e-6
    assert 0 <= float(got.min()) <= float(got.max()) <= 1


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_it_climbs_and_finds_what_has_no_gradient(norm):
    def steps(weights, images):
        return jnp.round(8 * apply(weights, images)) / 8

    settings = {"epsilon": 0.02 if norm == "linf" else 0.2, "norm": norm}

    def margins(queries):
        got = square(apply=steps, queries=queries, **settings)
        return float(jnp.mean(robust.margin(steps(WEIGHTS, got), LABELS)))

    clean = float(jnp.mean(robust.margin(steps(WEIGHTS, IMAGES), LABELS)))
    assert clean < margins(10) < margins(300)
    still = robust.fgsm(steps, WEIGHTS, IMAGES, LABELS, epsilon=settings["epsilon"])
    np.testing.assert_array_equal(still, IMAGES)


def test_it_stops_where_all_is_lost_and_takes_images_of_one_channel():
    begun = square(queries=1, labels=(LABELS + 1) % 4)
    np.testing.assert_array_equal(square(queries=50, labels=(LABELS + 1) % 4), begun)
    grey = IMAGES[..., 0]
    got = square(grey, apply=lambda w, x: apply(w[:, :, :1], x[..., None]))
    assert got.shape == grey.shape


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epsilon": -0.1}, "epsilon must be a number, 0 or more"),
        ({"queries": 0}, "queries must be 1 or more"),
        ({"share": 0}, r"share must be in \(0, 1\], got 0"),
        ({"images": IMAGES.reshape(6, -1)}, "must have shape .*height"),
        ({"labels": LABELS + 4}, "labels must be from 0 to 3"),
        ({"key": 3}, "key must be a JAX PRNG key"),
    ],
)
def test_bad_input_is_named(arguments, message):
    if "images" in arguments:
        arguments["apply"] = lambda w, x: apply(w, x.reshape(-1, 12, 10, 2))
    with pytest.raises(ValueError, match=message):
        square(**arguments)
