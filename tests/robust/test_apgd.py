"""APGD: the algorithm of its paper image by image, PGD as its rival, what it keeps."""

import functools
import math

import attacked
import jax
import jax.numpy as jnp
import network
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swapjax import robust
from swapjax.robust.apgd import checkpoints

KEY = jax.random.key(0)
IMAGES, LABELS = attacked.batch(12)


@pytest.fixture(scope="module")
def params():
    return attacked.trained()


def apgd(
    params, images=IMAGES, labels=LABELS, key=KEY, apply=network.apply, **settings
):
    given = {"epsilon": 0.1, "steps": 20} | settings
    return robust.apgd(key, apply, params, images, labels, **given)


def look(params, x, label):
    """The cross-entropy of an image and its gradient, by hand in NumPy."""
    first, bias = (np.asarray(params["fc1"][k], np.float64) for k in ("kernel", "bias"))
    second = np.asarray(params["fc2"]["kernel"], np.float64)
    hidden = np.tanh(x @ first + bias)
    outputs = hidden @ second
    chances = np.exp(outputs - outputs.max())
    chances /= chances.sum()
    ahead = second @ (chances - np.eye(len(outputs))[label])
    return -np.log(chances[label]), first @ (ahead * (1 - hidden**2))


def project(x, image, epsilon, norm):
    shift = x - image
    if norm == "linf":
        return np.clip(image + np.clip(shift, -epsilon, epsilon), 0, 1)
    length = np.linalg.norm(shift)
    return np.clip(image + shift * min(1, epsilon / max(length, 1e-300)), 0, 1)


def oracle(f, image, start, epsilon, steps, norm):
    """Algorithm 1 of arXiv:2003.01690 for one image, as it is written there."""
    gaps, times = [0.0, 0.22], [0]
    while gaps[-1] < 1:
        times.append(math.ceil(round(gaps[-1] * steps, 6)))
        gaps.append(gaps[-1] + max(gaps[-1] - gaps[-2] - 0.03, 0.06))
    step, points, values = 2 * epsilon, [start], [f(start)[0]]
    best, most = start, values[0]
    steps_then, most_then, rises, halvings = {0: step}, {0: most}, [], 0

    def ahead(x):
        slope = f(x)[1]
        up = np.sign(slope) if norm == "linf" else slope / np.linalg.norm(slope)
        return project(x + step * up, image, epsilon, norm)

    for k in range(steps):
        if k in times and k > 0:
            before = times[times.index(k) - 1]
            steps_then[k], most_then[k] = step, most
            few = sum(rises[before:k]) < 0.75 * (k - before)
            if few or (step == steps_then[before] and most == most_then[before]):
                step, halvings = step / 2, halvings + 1
                points[k], values[k] = best, most
        if k == 0:
            new = ahead(points[0])
        else:
            new = points[k] + 0.75 * (ahead(points[k]) - points[k])
            new = new + 0.25 * (points[k] - points[k - 1])
            new = project(new, image, epsilon, norm)
        value = f(new)[0]
        rises.append(value > values[k])
        points.append(new)
        values.append(value)
        if value > most:
            best, most = new, value
    return best, halvings


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.usefixtures("x64")
def test_it_is_the_algorithm_of_its_paper(params, norm):
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), params)
    images = jnp.asarray(IMAGES, jnp.float64)
    settings = {"epsilon": 0.3, "norm": norm}
    starts = np.asarray(apgd(params, images, steps=0, **settings))
    got = np.asarray(apgd(params, images, steps=40, **settings))
    halvings = 0
    for i, label in enumerate(np.asarray(LABELS)):
        f = functools.partial(look, params, label=label)
        image = np.asarray(images[i])
        wanted, halved = oracle(f, image, starts[i], 0.3, 40, norm)
        np.testing.assert_allclose(got[i], wanted, atol=1e-7)
        halvings += halved
    assert halvings > 12


def test_checkpoints_are_those_of_the_paper():
    assert checkpoints(100).tolist() == [22, 41, 57, 70, 80, 87, 93, 99]
    for steps in (1, 5, 20, 1000):
        found = checkpoints(steps).tolist()
        assert found == sorted(found)
        assert 0 < found[0] <= found[-1] <= steps


def test_it_beats_steps_of_one_length_on_real_digits(digits):
    """At epsilon 0.2; at 0.1, with steps of a quarter of it too, it does in 8 of 10."""
    data = digits.data
    images = jnp.clip(data.x_test * data.std + data.mean, 0, 1)

    def apply(params, x):
        return digits.model.apply(params, (x - data.mean) / data.std)

    won = 0
    for i in range(10):
        x, y = images[36 * i : 36 * (i + 1)], data.y_test[36 * i : 36 * (i + 1)]
        given = (jax.random.key(i), apply, digits.params, x, y)
        sizes = {"epsilon": 0.2, "steps": 20}
        ends = robust.apgd(*given, **sizes), robust.pgd(*given, step=0.05, **sizes)
        own, plain = (
            jnp.mean(robust.cross_entropy(apply(digits.params, end), y)) for end in ends
        )
        won += bool(own >= plain)
    assert won >= 9


@pytest.mark.parametrize(("norm", "objective"), [("linf", "ce"), ("l2", "margin")])
def test_it_is_never_above_the_largest_loss_there_is(norm, objective):
    """Of linear outputs that is where the whole ball goes into their difference."""
    weights = jax.random.normal(KEY, (6, 2))
    images = jax.random.uniform(jax.random.key(1), (12, 6), minval=0.3, maxval=0.7)
    labels = jnp.arange(12) % 2
    got = apgd(
        weights, images, labels, apply=lambda w, x: x @ w, norm=norm,
        objective=objective,
    )  # fmt: skip
    apart = np.asarray(weights[:, 1] - weights[:, 0], np.float64)
    lost = np.asarray(images, np.float64) @ apart * (1 - 2 * np.asarray(labels))
    most = lost + 0.1 * np.linalg.norm(apart, 1 if norm == "linf" else 2)
    if objective == "ce":
        most = np.log1p(np.exp(most))
    reached = robust.OBJECTIVES[objective](got @ weights, labels)
    np.testing.assert_allclose(reached, most, rtol=1e-4)
    assert np.all(reached <= most + 1e-5)


@given(
    epsilon=st.floats(0, 0.5),
    steps=st.integers(0, 9),
    seed=st.integers(0, 2**31 - 1),
    norm=st.sampled_from(["linf", "l2"]),
)
def test_images_stay_in_the_ball_and_the_box(epsilon, steps, seed, norm):
    got = apgd(
        attacked.trained(), epsilon=epsilon, steps=steps, norm=norm,
        key=jax.random.key(seed), objective="dlr",
    )  # fmt: skip
    order = np.inf if norm == "linf" else 2
    shift = np.linalg.norm(np.asarray(got - IMAGES, np.float64), order, axis=1)
    assert shift.max() <= epsilon + 1e-6
    assert 0 <= float(got.min()) <= float(got.max()) <= 1


def test_more_steps_restarts_and_targets_lose_no_image(params):
    def fallen(**settings):
        got = apgd(params, epsilon=0.15, **settings)
        return np.asarray(network.apply(params, got).argmax(1) != LABELS)

    for more in ({"restarts": 3}, {"objective": "dlr-targeted", "targets": 3}):
        once = fallen(**(more | {"restarts": 1, "targets": 1}))
        assert np.all(fallen(**more) >= once)


def test_targets_of_one_rank_are_those_of_all(params):
    def fallen(targets):
        got = apgd(params, epsilon=0.15, objective="dlr-targeted", targets=targets)
        return np.asarray(network.apply(params, got).argmax(1) != LABELS)

    one_by_one = [fallen(range(i, i + 1)) for i in range(4)]
    np.testing.assert_array_equal(fallen(9), np.any(one_by_one, axis=0))


def test_what_is_misclassified_on_the_way_is_kept():
    """Where the objective rises on, back into the class of the label."""

    def apply(_, x):
        lost = 0.02 - jnp.abs(x[:, 0] - 0.5)
        return jnp.stack([jnp.zeros(len(x)), lost, x[:, 0] - 9], axis=1)

    def third(outputs, labels):
        return outputs[:, 2]

    images, labels = jnp.full((40, 1), 0.5), jnp.zeros(40, int)
    settings = {"images": images, "labels": labels, "apply": apply, "objective": third}
    starts, ends = (apgd((), steps=steps, **settings) for steps in (0, 9))
    met = np.asarray(apply((), starts).argmax(1) == 1)
    assert 0 < met.sum() < 40
    assert np.all(np.asarray(apply((), ends).argmax(1) == 1)[met])
    assert bool(jnp.any(ends > 0.59))


def test_few_classes_fall_back_to_the_margin_and_say_so(params):
    def apply(params, x):
        return network.apply(params, x)[:, :3]

    labels = LABELS % 3
    wanted = apgd(params, labels=labels, apply=apply, objective="margin")
    with pytest.warns(UserWarning, match="'dlr' needs 4 classes, got 3: the margin is"):
        got = apgd(params, labels=labels, apply=apply, objective="dlr")
    np.testing.assert_array_equal(got, wanted)


def test_other_sizes_compile_nothing_anew(params):
    traced = []

    def apply(params, images):
        traced.append(images.shape)
        return network.apply(params, images)

    apgd(params, apply=apply)
    before = len(traced)
    apgd(params, apply=apply, epsilon=0.2, steps=30, restarts=2)
    assert before == len(traced) > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epsilon": -1}, "epsilon must be a number, 0 or more, got -1"),
        ({"steps": -1}, "steps must be 0 or more, got -1"),
        ({"restarts": 0}, "restarts must be 1 or more"),
        (
            {"objective": "kl"},
            "objective must be one of 'ce', 'margin', 'dlr', 'dlr-ta",
        ),
        ({"targets": 0, "objective": "dlr-targeted"}, "targets must be 1 or more"),
        (
            {"targets": range(4, 5), "objective": "dlr-targeted"},
            r"targets must be ranks from 0 to 3, .* got range\(4, 5\)",
        ),
        (
            {"labels": jax.nn.one_hot(LABELS, 5), "objective": "dlr-targeted"},
            r"labels must be class indices, .* got float32\[\d+, 5\]",
        ),
        ({"key": None}, "key must be a JAX PRNG key, got None"),
        ({"labels": LABELS + 1}, "labels must be from 0 to 4"),
        ({"images": IMAGES - 1}, "images must lie in the box"),
        ({"apply": lambda p, x: x[:, :1]}, "apply must return a logit for each of 2"),
    ],
)
def test_bad_input_is_named(params, arguments, message):
    with pytest.raises(ValueError, match=message):
        apgd(params, **arguments)
