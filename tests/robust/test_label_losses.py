"""Every loss for noisy labels against NumPy in float64, and what it is known for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swapjax.robust import label_losses
from swapjax.robust.label_table import LABEL_LOSSES, LABEL_SETTINGS, SPARSE_SETTINGS

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(40, 5)) * 3
LABELS = RNG.integers(0, 5, 40)
# So that some labels are the prediction.
LABELS[::4] = LOGITS[::4].argmax(axis=1)


def softmax(z):
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def of(u, y):
    return u[np.arange(len(u)), y]


def reverse(u, y):
    e = np.clip(np.eye(u.shape[1])[y], 1e-4, 1)
    return -(u * np.log(e)).sum(axis=1)


def absolute(u, y):
    return np.abs(u - np.eye(u.shape[1])[y]).sum(axis=1)


def focal(u, gamma=0.5):
    return -((1 - u) ** gamma) * np.log(u)


def nearly_one_hot(u, m):
    h = np.eye(u.shape[1])[u.argmax(axis=1)]
    return np.maximum((u + m * h) / (1 + m), 1e-8)


def normalised(u, y):
    return -np.log(of(u, y)) / -np.log(u).sum(axis=1)


ORACLES = {
    "ce": lambda u, y: -np.log(of(u, y)),
    "fl": lambda u, y: focal(of(u, y)),
    "gce": lambda u, y: (1 - of(u, y) ** 0.7) / 0.7,
    "sce": lambda u, y: -np.log(of(u, y)) + reverse(u, y),
    "rce": reverse,
    "mae": absolute,
    "nce": normalised,
    "nfl": lambda u, y: focal(of(u, y)) / focal(u).sum(axis=1),
    "ngce": lambda u, y: (1 - of(u, y) ** 0.7) / (u.shape[1] - (u**0.7).sum(axis=1)),
    "nce+rce": lambda u, y: normalised(u, y) + reverse(u, y),
    "nce+mae": lambda u, y: normalised(u, y) + absolute(u, y),
    "nfl+rce": lambda u, y: focal(of(u, y)) / focal(u).sum(axis=1) + reverse(u, y),
    "aul": lambda u, y: ((5.5 - of(u, y)) ** 3 - 4.5**3) / 3,
    "agce": lambda u, y: (1.6**0.6 - (0.6 + of(u, y)) ** 0.6) / 0.6,
    "ece": lambda u, y: -np.log(of(nearly_one_hot(u, 1e5), y)),
    "ece+mae": lambda u, y: (
        -0.01 * np.log(of(nearly_one_hot(u, 1e5), y)) + 5 * absolute(u, y)
    ),
    "efl+mae": lambda u, y: (
        0.01 * focal(of(nearly_one_hot(u, 1e5), y), 0.1) + 5 * absolute(u, y)
    ),
}


@pytest.mark.parametrize("name", LABEL_LOSSES)
def test_a_loss_is_its_formula(name):
    found = LABEL_LOSSES[name]()(jnp.asarray(LOGITS, jnp.float32), LABELS)
    assert found.shape == (40,)
    wanted = ORACLES[name](softmax(LOGITS), LABELS)
    np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("name", LABEL_LOSSES)
def test_gradients_are_finite_at_large_logits_and_in_float64_exact(name, x64):
    loss = LABEL_LOSSES[name]()
    large = jnp.asarray([[1e3, -1e3, 0.0], [-1e3, 1e3, 1e3]], jnp.float32)
    for labels in ([0, 0], [1, 1], [2, 2]):
        labels = jnp.asarray(labels)
        found = jax.grad(lambda z, y=labels: loss(z, y).sum())(large)
        assert bool(jnp.isfinite(found).all())
    if name in ("fl", "nfl", "nfl+rce", "efl+mae"):
        return  # of which a factor counts as a constant
    z, y, step = jnp.asarray(LOGITS[:6]), jnp.asarray(LABELS[:6]), 1e-6
    slope = jax.grad(lambda z: loss(z, y).sum())(z)
    oracle = lambda z: ORACLES[name](softmax(z), LABELS[:6]).sum()  # noqa: E731
    for i, j in np.ndindex(6, 5):
        e = np.zeros((6, 5))
        e[i, j] = step
        wanted = (oracle(LOGITS[:6] + e) - oracle(LOGITS[:6] - e)) / (2 * step)
        np.testing.assert_allclose(slope[i, j], wanted, rtol=1e-5, atol=1e-7)


def class_sum(loss, logits):
    classes = logits.shape[1]
    labels = [np.full(len(logits), k) for k in range(classes)]
    return sum(loss(logits, y) for y in labels)


@pytest.mark.parametrize("name", ["nce", "nfl", "ngce"])
@given(seed=st.integers(0, 10_000), scale=st.floats(0.01, 20))
def test_normalised_losses_sum_to_one_over_labels(name, seed, scale):
    logits = np.random.default_rng(seed).normal(size=(3, 4)).astype(np.float32)
    found = class_sum(LABEL_LOSSES[name](), scale * logits)
    np.testing.assert_allclose(found, 1, rtol=1e-5)


@pytest.mark.parametrize(("name", "total"), [("mae", 8), ("rce", 9.21034 * 4)])
def test_absolute_losses_have_one_sum_over_labels(name, total):
    found = class_sum(LABEL_LOSSES[name](), LOGITS.astype(np.float32))
    np.testing.assert_allclose(found, total, rtol=1e-5)


@pytest.mark.parametrize("name", ["ce", "fl", "gce", "agce", "ece"])
def test_any_loss_has_one_sum_on_permutations_of_one_vector(name):
    one = np.asarray([3.0, -1.0, 0.5, 0.0], np.float32)
    rows = np.stack([np.random.default_rng(i).permutation(one) for i in range(8)])
    found = np.asarray(class_sum(LABEL_LOSSES[name](), rows))
    np.testing.assert_allclose(found, found[0], rtol=1e-5)
    other = class_sum(LABEL_LOSSES[name](), 2 * rows)
    assert abs(float(other[0]) - found[0]) > 0.01


def test_reverse_cross_entropy_is_an_absolute_error():
    found = label_losses.rce()(jnp.asarray(LOGITS, jnp.float32), LABELS)
    missed = 1 - of(softmax(LOGITS), LABELS)
    np.testing.assert_allclose(found, -np.log(1e-4) * missed, rtol=1e-5, atol=1e-6)


def test_the_factor_of_the_focal_loss_has_no_derivative():
    z, y = jnp.asarray(LOGITS, jnp.float32), jnp.asarray(LABELS)
    plain = jax.grad(lambda z: label_losses.ce()(z, y).sum())(z)
    found = jax.grad(lambda z: label_losses.focal(2.0)(z, y).sum())(z)
    factor = (1 - of(softmax(LOGITS), LABELS)) ** 2
    np.testing.assert_allclose(found, factor[:, None] * plain, rtol=1e-4, atol=1e-6)


def test_an_epsilon_softmax_leaves_agreeing_labels_alone():
    z = jnp.asarray([[2.0, 0.0, -1.0]])
    plain = label_losses.ce()
    found = label_losses.epsilon_softmax(1e4)
    assert float(found(z, np.asarray([0]))[0]) < 1e-4
    zero = label_losses.epsilon_softmax(0.0, floor=0.0)
    for label in range(3):
        y = np.asarray([label])
        np.testing.assert_allclose(zero(z, y), plain(z, y), rtol=1e-6)
    # Others are pushed as by cross-entropy, unless u_y is below the floor.
    slope = jax.grad(lambda z, loss, y: loss(z, jnp.asarray([y])).sum())
    np.testing.assert_allclose(slope(z, found, 1), slope(z, plain, 1), rtol=1e-5)
    far = jnp.asarray([[20.0, 0.0, 0.0]])
    assert not bool(slope(far, label_losses.epsilon_softmax(), 1).any())
    free = label_losses.epsilon_softmax(floor=0.0)
    np.testing.assert_allclose(slope(far, free, 1), slope(far, plain, 1), rtol=1e-5)


def test_losses_near_the_ends_of_their_settings():
    z = jnp.asarray(LOGITS, jnp.float32)
    nearly = label_losses.gce(1e-4)(z, LABELS)
    np.testing.assert_allclose(nearly, label_losses.ce()(z, LABELS), rtol=2e-3)
    one = label_losses.gce(1.0)(z, LABELS)
    np.testing.assert_allclose(one, label_losses.mae(1.0)(z, LABELS), rtol=1e-6)
    none = label_losses.focal(0.0)(z, LABELS)
    np.testing.assert_allclose(none, label_losses.ce()(z, LABELS), rtol=1e-6)


def test_settings_fit_their_factories():
    for settings in LABEL_SETTINGS.values():
        for name, values in settings.items():
            LABEL_LOSSES[name](**values)
    for settings in SPARSE_SETTINGS.values():
        for name, values in settings.items():
            assert name == values.loss
            LABEL_LOSSES[name](**values.settings)
    assert SPARSE_SETTINGS["mnist"]["gce"][1:] == (
        {"q": 0.01}, 0.5, 0.1, 3.0, 2.0, 5, 50, False, 3.0,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_logits_are_widened(dtype):
    found = label_losses.nce()(jnp.asarray(LOGITS, dtype), LABELS)
    assert found.dtype == jnp.float32


def test_a_label_that_is_none_is_nan_when_compiled():
    @jax.jit
    def losses(logits, labels):
        return {name: make()(logits, labels) for name, make in LABEL_LOSSES.items()}

    logits, labels = jnp.asarray(LOGITS[:3], jnp.float32), jnp.asarray([-1, 0, 5])
    for name, found in losses(logits, labels).items():
        assert jnp.isnan(found).tolist() == [True, False, True], name


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (LOGITS[:2], [0, 5], r"labels must be in \[0, 5\).*got 0 to 5"),
        (LOGITS[:2], [-1, 2], r"labels must be in \[0, 5\).*got -1 to 2"),
        (LOGITS[:2], [0.0, 1.0], "labels must be integers.*got float"),
        (LOGITS[:2], [0], r"labels must be integers of shape \(2,\)"),
        (LOGITS[:2, :1], [0, 0], r"logits must be .* 2 classes or more, got \(2, 1\)"),
        (LOGITS[0], [0], r"logits must be \[n, classes\]"),
    ],
)
def test_bad_logits_and_labels_are_named(logits, labels, message):
    with pytest.raises(ValueError, match=message):
        label_losses.ce()(logits.astype(np.float32), np.asarray(labels))


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("gce", {"q": 0}, "q must be a number above 0, got 0"),
        ("gce", {"q": "a"}, "q must be a number above 0, got 'a'"),
        ("aul", {"a": "5"}, "a must be a number, 0 or more, got '5'"),
        ("fl", {"gamma": -1}, "gamma must be a number, 0 or more, got -1"),
        ("mae", {"scale": float("nan")}, "scale must be a number above 0, got nan"),
        ("rce", {"floor": 1.0}, r"floor must be in \(0, 1\)"),
        ("aul", {"a": 1.0}, "a must be above 1, got 1.0"),
        ("agce", {"a": -1.0}, "a must be a number above 0, got -1.0"),
        ("ece", {"m": -1.0}, "m must be a number, 0 or more"),
        ("ece", {"floor": 1.0}, r"floor must be in \[0, 1\)"),
        ("nce+rce", {"alpha": -1.0}, "alpha must be a number, 0 or more"),
    ],
)
def test_bad_settings_are_named(name, settings, message):
    with pytest.raises(ValueError, match=message):
        LABEL_LOSSES[name](**settings)
