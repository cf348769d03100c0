"""FGSM and PGD: formulas, the ball and the box, starts, restarts, directions."""

import functools
import itertools

import attacked
import jax
import jax.numpy as jnp
import network
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swapjax import robust

KEY = jax.random.key(0)
IMAGES, LABELS = attacked.batch(12)


@pytest.fixture(scope="module")
def params():
    return attacked.trained()


def pgd(key, params, images=IMAGES, labels=LABELS, apply=network.apply, **settings):
    given = {"epsilon": 0.1, "step": 0.03, "steps": 5} | settings
    return robust.pgd(key, apply, params, images, labels, **given)


def slope(params, images):
    def total(x):
        return jnp.sum(robust.cross_entropy(network.apply(params, x), LABELS))

    return np.asarray(jax.grad(total)(jnp.asarray(images, jnp.float32)), np.float64)


def unit(gradient):
    return gradient / np.linalg.norm(gradient, axis=1, keepdims=True)


def test_steps_are_their_formula(params):
    images = np.asarray(IMAGES, np.float64)
    once = np.clip(images + 0.1 * np.sign(slope(params, images)), 0, 1)
    got = robust.fgsm(network.apply, params, IMAGES, LABELS, epsilon=0.1)
    np.testing.assert_allclose(got, once, atol=1e-6)
    for norm in ("linf", "l2"):
        x = images
        for _ in range(5):
            if norm == "linf":
                x = np.clip(x + 0.03 * np.sign(slope(params, x)), images - 0.1, None)
                x = np.clip(np.minimum(x, images + 0.1), 0, 1)
            else:
                shift = x + 0.03 * unit(slope(params, x)) - images
                length = np.linalg.norm(shift, axis=1, keepdims=True)
                x = np.clip(images + shift * np.minimum(1, 0.1 / length), 0, 1)
        got = pgd(None, params, start=None, norm=norm)
        np.testing.assert_allclose(got, x, atol=1e-5, err_msg=norm)


@given(
    epsilon=st.floats(0, 0.5),
    step=st.floats(0, 1),
    steps=st.integers(0, 4),
    seed=st.integers(0, 2**31 - 1),
    norm=st.sampled_from(["linf", "l2"]),
    start=st.sampled_from(["uniform", "gaussian"]),
)
def test_images_stay_in_the_ball_and_the_box(epsilon, step, steps, seed, norm, start):
    got = pgd(
        jax.random.key(seed), attacked.trained(), epsilon=epsilon, step=step,
        steps=steps, norm=norm, start=start,
    )  # fmt: skip
    order = np.inf if norm == "linf" else 2
    shift = np.linalg.norm(np.asarray(got - IMAGES, np.float64), order, axis=1)
    assert shift.max() <= epsilon + 1e-6
    assert 0 <= float(got.min()) <= float(got.max()) <= 1


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_starts_fill_the_ball_and_come_from_the_key(params, norm):
    centre = jnp.full((4000, 6), 0.5)
    labels = jnp.zeros(4000, int)

    def still(key, start="uniform"):
        return pgd(key, params, centre, labels, steps=0, norm=norm, start=start)

    order = np.inf if norm == "linf" else 2
    length = np.linalg.norm(still(KEY) - centre, order, axis=1)
    # Of a point drawn uniformly from a ball the sixth power is uniform in [0, 1].
    shares = np.quantile((length / 0.1) ** 6, [0.1, 0.5, 0.9])
    np.testing.assert_allclose(shares, [0.1, 0.5, 0.9], atol=0.03)
    assert 8e-4 < float(jnp.std(still(KEY, "gaussian") - centre)) < 1.2e-3
    np.testing.assert_array_equal(still(KEY), still(KEY))
    assert bool(jnp.any(still(KEY) != still(jax.random.key(1))))
    np.testing.assert_array_equal(still(None, None), centre)


def test_of_restarts_the_worst_is_kept(params):
    settings = {"steps": 1, "epsilon": 0.3}

    def judge(images):
        outputs = network.apply(params, images)
        lost = np.asarray(outputs.argmax(1) != LABELS)
        return list(zip(lost, np.asarray(robust.dlr(outputs, LABELS)), strict=True))

    dlr = functools.partial(pgd, KEY, params, objective=robust.dlr, **settings)
    ends = [judge(dlr(restarts=1 + i)) for i in range(6)]
    for fewer, more in itertools.pairwise(ends):
        for one, other in zip(fewer, more, strict=True):
            assert one <= (other[0], other[1] + 1e-5)  # computed by two programs
    assert ends[0] != ends[-1]


def cosines(params, images, length=1.0):
    """A head of normalised features and weights, as hypersphere embedding has."""
    features = length * network.hidden(params, images)
    kernel = params["fc2"]["kernel"]
    features /= jnp.sqrt(jnp.sum(features**2, axis=1, keepdims=True))
    return features @ (kernel / jnp.linalg.norm(kernel, axis=0))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_directions_do_not_depend_on_the_length_of_features(params, norm):
    def direction(length):
        return jax.jit(robust.fgsm, static_argnums=0, static_argnames="norm")(
            functools.partial(cosines, length=length), params, IMAGES, LABELS,
            epsilon=1e-2, norm=norm,
        ) - IMAGES  # fmt: skip

    np.testing.assert_allclose(direction(1.0), direction(7.0), atol=1e-4)
    np.testing.assert_allclose(direction(1.0), direction(1e3), atol=1e-4)


def test_a_training_step_goes_through_it_and_no_gradient_flows_back(params):
    @jax.jit
    @jax.grad
    def inside(params, key, epsilon):
        x = pgd(key, params, epsilon=epsilon, start="gaussian")
        return jnp.mean(robust.cross_entropy(network.apply(params, x), LABELS))

    @jax.grad
    def outside(params, x):
        return jnp.mean(robust.cross_entropy(network.apply(params, x), LABELS))

    wanted = outside(params, pgd(KEY, params, start="gaussian"))
    got = inside(params, KEY, 0.1)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got, wanted)


def test_an_objective_may_take_what_is_no_class(params):
    clean = network.apply(params, IMAGES)

    def divergence(outputs, wanted):
        log = jax.nn.log_softmax(outputs)
        return jnp.sum(jax.nn.softmax(wanted) * (jax.nn.log_softmax(wanted) - log), 1)

    x = pgd(KEY, params, labels=clean, objective=divergence, restarts=2)
    assert bool(jnp.all(divergence(network.apply(params, x), clean) > 0))


def test_other_sizes_compile_nothing_anew(params):
    traced = []

    def apply(params, images):
        traced.append(images.shape)
        return network.apply(params, images)

    pgd(KEY, params, apply=apply, restarts=2)
    before = len(traced)
    pgd(KEY, params, apply=apply, epsilon=0.2, step=0.1, steps=9, restarts=3)
    assert before == len(traced) > 0


def test_half_precision_stays(params):
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    got = pgd(KEY, half, IMAGES.astype(jnp.bfloat16))
    assert got.dtype == jnp.bfloat16


BAD = [
    ({"epsilon": -0.1}, "epsilon must be a number, 0 or more, got -0.1"),
    ({"epsilon": "8/255"}, "epsilon must be a number"),
    ({"step": float("nan")}, "step must be a number, 0 or more"),
    ({"steps": -1}, "steps must be 0 or more, got -1"),
    ({"steps": 1.5}, "steps must be a whole number"),
    ({"restarts": 0}, "restarts must be 1 or more"),
    ({"start": None, "restarts": 2}, "restarts must be 1 with start=None, got 2"),
    ({"start": "normal"}, "start must be 'uniform', 'gaussian' or None"),
    ({"key": None}, "key: start='uniform' needs a PRNG key"),
    ({"key": 0}, "key must be a JAX PRNG key, got 0"),
    ({"norm": "l1"}, "norm must be 'linf' or 'l2', got 'l1'"),
    ({"images": 3 * IMAGES}, "images must lie in the box from 0 to 1, got values"),
    ({"images": np.zeros((12, 6), np.uint8)}, "images must be floats"),
    ({"images": IMAGES[:, 0]}, r"images must have shape \[n, ...\], got \[12\]"),
    ({"labels": LABELS[:5]}, "labels must have one entry for each of 12 images"),
    ({"labels": LABELS + 1}, "labels must be from 0 to 4, one of the 5 outputs, got"),
    ({"labels": LABELS - 1}, "labels must be from 0 to 4, .* got values from -1"),
    ({"apply": lambda p, x: x[:, :1]}, "apply must return a logit for each of 2"),
    ({"apply": lambda p, x: x[:, 0]}, r"apply must return floats \[n, classes\]"),
    ({"apply": lambda p, x: jnp.tile(x, (2, 1))}, "must return a row for each of 12"),
    ({"objective": lambda z, y: jnp.sum(z)}, r"objective must return floats \[12\]"),
    ({"box": (1, 0)}, "box must be two numbers that rise"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_bad_input_is_named(params, arguments, message):
    arguments = {"key": KEY, "params": params} | arguments
    with pytest.raises(ValueError, match=message):
        pgd(**arguments)
