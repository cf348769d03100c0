"""Images attacked: the ball, the box, and a loss that does not fall."""

import jax
import jax.numpy as jnp
import network
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swapjax.corruptions import fgsm, pgd

KEY = jax.random.key(0)
PARAMS = network.make()
IMAGES = jax.random.uniform(jax.random.key(1), (12, 6))
BATCH = IMAGES, network.data(12)[1]
# So small that the loss is straight on the way, for steps to climb it.
SMALL = 1e-3


def slope(images):
    return jax.grad(lambda x: network.loss_fn(PARAMS, (x, BATCH[1])))(images)


def losses(images):
    """Of each image alone."""

    def one(x, y):
        return network.loss_fn(PARAMS, (x[None], y[None]))

    return jax.vmap(one)(images, BATCH[1])


def test_fgsm_is_its_formula():
    wanted = np.clip(IMAGES + 0.1 * np.sign(slope(IMAGES)), 0, 1)
    got = fgsm(network.loss_fn, PARAMS, BATCH, 0.1)
    np.testing.assert_allclose(got, wanted, atol=1e-7)
    narrow = fgsm(network.loss_fn, PARAMS, BATCH, 0.5, box=(-0.2, 1.1))
    assert -0.2001 < float(narrow.min()) < -0.1
    assert 1.0 < float(narrow.max()) < 1.1001


def test_pgd_is_its_formula():
    wanted = np.asarray(IMAGES)
    for _ in range(5):
        wanted = wanted + 0.03 * np.sign(slope(jnp.asarray(wanted)))
        wanted = np.clip(np.clip(wanted, IMAGES - 0.1, IMAGES + 0.1), 0, 1)
    got = pgd(None, network.loss_fn, PARAMS, BATCH, 0.1, 0.03, 5, random_start=False)
    np.testing.assert_allclose(got, wanted, atol=1e-6)


def test_attacks_raise_the_loss_of_every_image():
    clean = losses(IMAGES)
    assert bool(jnp.all(losses(fgsm(network.loss_fn, PARAMS, BATCH, SMALL)) > clean))
    strong = pgd(KEY, network.loss_fn, PARAMS, BATCH, SMALL, SMALL / 2, 8)
    assert bool(jnp.all(losses(strong) > clean))
    weak = fgsm(network.loss_fn, PARAMS, BATCH, 0.3)
    strong = pgd(KEY, network.loss_fn, PARAMS, BATCH, 0.3, 0.03, 40)
    assert float(losses(strong).mean()) >= float(losses(weak).mean())


@given(
    epsilon=st.floats(0, 0.5),
    steps=st.integers(1, 4),
    seed=st.integers(0, 2**31 - 1),
    random_start=st.booleans(),
)
def test_images_stay_in_the_ball_and_the_box(epsilon, steps, seed, random_start):
    got = pgd(
        jax.random.key(seed), network.loss_fn, PARAMS, BATCH, epsilon, 0.2, steps,
        random_start=random_start,
    )  # fmt: skip
    once = fgsm(network.loss_fn, PARAMS, BATCH, epsilon)
    for images in (got, once):
        assert float(jnp.abs(images - IMAGES).max()) <= epsilon + 1e-6
        assert 0 <= float(images.min()) <= float(images.max()) <= 1


def test_starts_fill_the_ball_and_come_from_the_key():
    def still(key):
        return pgd(key, network.loss_fn, PARAMS, BATCH, 0.1, 0.0, 1)

    inside = (IMAGES > 0.1) & (IMAGES < 0.9)
    shift = np.asarray(still(KEY) - IMAGES)[inside]
    assert shift.min() < -0.08
    assert shift.max() > 0.08
    assert abs(shift.mean()) < 0.05
    np.testing.assert_array_equal(still(KEY), still(KEY))
    assert bool(jnp.any(still(KEY) != still(jax.random.key(1))))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_jit_gives_the_same_in_the_dtype_of_images(dtype):
    params = network.make(dtype=dtype)
    batch = jax.tree.map(lambda x: x.astype(dtype), BATCH)

    def attack(params, batch, epsilon):
        once = fgsm(network.loss_fn, params, batch, epsilon)
        return once, pgd(KEY, network.loss_fn, params, batch, epsilon, 0.02, 3)

    eager = attack(params, batch, 0.1)
    for a, b in zip(eager, jax.jit(attack)(params, batch, 0.1), strict=True):
        assert a.dtype == dtype
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epsilon": -0.1}, "epsilon must be a number, 0 or more, got -0.1"),
        ({"epsilon": float("inf")}, "epsilon must be a number, 0 or more"),
        ({"epsilon": "8/255"}, "epsilon must be a number"),
        ({"step": float("nan")}, "step must be a number, 0 or more"),
        ({"steps": 0}, "steps must be 1 or more"),
        ({"key": None}, "key: a random start needs a PRNG key"),
        ({"batch": IMAGES}, r"batch must be \(images, labels\), got a"),
        ({"batch": (3 * IMAGES, BATCH[1])}, "images of batch must lie in the box"),
        ({"batch": (np.zeros((12, 6), np.uint8), BATCH[1])}, "must be floats to have"),
        ({"box": (0, 0)}, "box must be two numbers that rise"),
        ({"loss_fn": lambda p, b: b[0]}, "loss_fn must return one scalar"),
    ],
)
def test_bad_input_is_named(arguments, message):
    given = {
        "key": KEY, "loss_fn": network.loss_fn, "params": PARAMS, "batch": BATCH,
        "epsilon": 0.1, "step": 0.1, "steps": 2, **arguments,
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        pgd(**given)
    rest = {k: given[k] for k in ("loss_fn", "params", "batch", "epsilon")}
    if not {"step", "steps", "key"} & set(arguments):
        with pytest.raises(ValueError, match=message):
            fgsm(**rest, **{k: v for k, v in arguments.items() if k == "box"})
