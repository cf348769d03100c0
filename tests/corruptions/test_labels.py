"""Labels that are flipped: how many, to what, and that the mask tells which."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swapjax.corruptions import LABEL_MAPS, flip_labels

KEY = jax.random.key(0)
LABELS = jnp.arange(20_000) % 10
# Of 0.4 in 20,000 draws; five of it are not met by chance.
DEVIATION = np.sqrt(0.4 * 0.6 / 20_000)
# Class 0 to 1 or 2, class 1 to itself, class 2 mostly to 0.
MATRIX = np.array([[0.0, 0.25, 0.75], [0.0, 1.0, 0.0], [0.5, 0.2, 0.3]])


def test_symmetric_flips_reach_all_other_classes_alike():
    noisy, flipped = map(np.asarray, flip_labels(KEY, LABELS, 0.4, classes=10))
    assert noisy.dtype == LABELS.dtype
    np.testing.assert_array_equal(noisy != np.asarray(LABELS), flipped)
    assert abs(flipped.mean() - 0.4) < 5 * DEVIATION
    steps = np.bincount((noisy - np.asarray(LABELS))[flipped] % 10, minlength=10)
    assert steps[0] == 0
    expected = flipped.sum() / 9
    assert np.abs(steps[1:] - expected).max() < 5 * np.sqrt(expected)


def test_pairs_go_to_the_class_after():
    noisy, flipped = flip_labels(KEY, LABELS, 0.4, classes=10, kind="pairs")
    wanted = np.where(flipped, (np.asarray(LABELS) + 1) % 10, LABELS)
    np.testing.assert_array_equal(noisy, wanted)
    assert abs(np.mean(flipped) - 0.4) < 5 * DEVIATION


@pytest.mark.parametrize("rate", [0.5, 1])
def test_a_matrix_is_the_frequency_of_labels(rate):
    labels = np.repeat(np.arange(3), 20_000)
    noisy, flipped = flip_labels(KEY, labels, rate, classes=3, kind=MATRIX)
    np.testing.assert_array_equal(np.asarray(noisy) != labels, flipped)
    found = [np.bincount(noisy[labels == c], minlength=3) / 20_000 for c in range(3)]
    wanted = (1 - rate) * np.eye(3) + rate * MATRIX
    np.testing.assert_allclose(found, wanted, atol=5 * 0.5 / np.sqrt(20_000))
    assert not np.any(np.asarray(found)[wanted == 0])


@given(
    rate=st.floats(0, 0.99),
    classes=st.integers(2, 256),
    kind=st.sampled_from(["symmetric", "pairs"]),
    seed=st.integers(0, 2**31 - 1),
)
def test_labels_stay_in_their_classes_and_dtype(rate, classes, kind, seed):
    labels = (jnp.arange(300) * 7 % classes).astype(jnp.uint8)
    noisy, flipped = flip_labels(
        jax.random.key(seed), labels, rate, classes=classes, kind=kind
    )
    assert noisy.dtype == jnp.uint8
    assert int(noisy.max()) < classes
    np.testing.assert_array_equal(noisy != labels, flipped)


def test_one_key_flips_more_labels_at_a_higher_rate():
    _, few = flip_labels(KEY, LABELS, 0.2, classes=10)
    _, more = flip_labels(KEY, LABELS, 0.6, classes=10)
    assert bool(jnp.all(more | ~few))
    assert not bool(flip_labels(KEY, LABELS, 0, classes=10)[1].any())


@pytest.mark.parametrize("kind", ["symmetric", MATRIX], ids=["symmetric", "matrix"])
def test_jit_draws_the_same_and_keys_differ(kind):
    labels = LABELS[:300].reshape(30, 10) % 3

    def flip(key, labels):
        return flip_labels(key, labels, 0.5, classes=3, kind=kind)

    eager, again = flip(KEY, labels), jax.jit(flip)(KEY, labels)
    for a, b in zip(eager, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert bool(jnp.any(eager[0] != flip(jax.random.key(1), labels)[0]))


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.6, 0.8])
@pytest.mark.parametrize("kind", ["symmetric", "pairs", LABEL_MAPS["mnist"]])
def test_exact_noise_has_the_same_count_of_every_class(rate, kind):
    labels = np.repeat(np.arange(10), np.arange(5, 55, 5)).astype(np.int16)
    labels = np.random.default_rng(0).permutation(labels).reshape(5, -1)
    noisy, flipped = flip_labels(KEY, labels, rate, classes=10, kind=kind, exact=True)
    np.testing.assert_array_equal(np.asarray(noisy) != labels, flipped)
    assert noisy.dtype == jnp.int16
    for c in range(10):
        wanted = round(rate * 5) * (c + 1)
        if not isinstance(kind, str) and c not in kind:
            wanted = 0
        assert np.sum(np.asarray(flipped)[labels == c]) == wanted
    again = flip_labels(KEY, labels, rate, classes=10, kind=kind, exact=True)
    np.testing.assert_array_equal(again[0], noisy)
    other = flip_labels(
        jax.random.key(1), labels, rate, classes=10, kind=kind, exact=True
    )
    assert (rate == 0) == bool(jnp.all(other[1] == flipped))


def test_exact_noise_rounds_down_and_one_key_flips_more_at_a_higher_rate():
    labels = np.arange(70) % 7
    few, more = (
        np.asarray(flip_labels(KEY, labels, rate, classes=7, exact=True)[1])
        for rate in (0.29, 0.6)
    )
    assert np.bincount(labels[few]).tolist() == [2] * 7
    assert np.all(more | ~few)
    noisy = flip_labels(KEY, np.zeros(6000, int), 0.75, classes=4, exact=True)[0]
    counts = np.bincount(noisy)
    assert counts[0] == 1500
    np.testing.assert_allclose(counts[1:], 1500, atol=5 * np.sqrt(4500 * 2 / 9))


def test_exact_noise_needs_labels_that_are_known():
    def flip(labels):
        return flip_labels(KEY, labels, 0.5, classes=3, exact=True)

    with pytest.raises(ValueError, match="exact: labels must be known"):
        jax.jit(flip)(jnp.arange(6) % 3)


def test_a_mapping_moves_its_classes_alone():
    labels = np.arange(10).repeat(1000)
    kind = LABEL_MAPS["mnist"]
    noisy, flipped = flip_labels(KEY, labels, 0.4, classes=10, kind=kind)
    moved = np.asarray([kind.get(label, label) for label in range(10)])[labels]
    np.testing.assert_array_equal(noisy, np.where(flipped, moved, labels))
    shares = np.asarray(flipped).reshape(10, 1000).mean(axis=1)
    wanted = [0.4 * (c in kind) for c in range(10)]
    np.testing.assert_allclose(shares, wanted, atol=5 * np.sqrt(0.24 / 1000))


def test_maps_of_data_sets():
    for name, classes, moved in ("mnist", 10, 5), ("cifar10", 10, 5), (
        "cifar100", 100, 100
    ):  # fmt: skip
        kind = LABEL_MAPS[name]
        assert len(kind) == moved
        assert all(a != b for a, b in kind.items())
        assert {*kind, *kind.values()} <= set(range(classes))
    # In circles of the five classes of a superclass: fish, among others.
    kind, fish = LABEL_MAPS["cifar100"], [1, 32, 67, 73, 91]
    assert [kind[label] for label in fish] == [*fish[1:], fish[0]]
    for label in range(100):
        found = [label]
        while kind[found[-1]] != label:
            found.append(kind[found[-1]])
        assert len(found) == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rate": 1.0}, r"rate must be in \[0, 1\), got 1.0"),
        ({"rate": -0.1}, r"rate must be in \[0, 1\)"),
        ({"rate": float("nan")}, r"rate must be in \[0, 1\)"),
        ({"rate": "half"}, r"rate must be in \[0, 1\)"),
        ({"rate": 1.1, "kind": MATRIX}, r"rate must be in \[0, 1\], got 1.1"),
        ({"classes": 1}, "classes must be 2 or more"),
        ({"labels": [0, 3]}, r"labels must be in \[0, 3\).*got 0 to 3"),
        ({"labels": [-1, 2]}, r"labels must be in \[0, 3\).*got -1 to 2"),
        ({"labels": [0.0, 1.0]}, "labels must be integers, got float"),
        ({"kind": "random"}, "kind must be 'symmetric', 'pairs', a mapping"),
        ({"kind": None}, "kind must be ('symmetric', 'pairs', a mapping|a matrix)"),
        ({"kind": {0: 3}}, r"kind must map classes in \[0, 3\).*got 0 to 3"),
        ({"kind": {-1: 0}}, r"kind must map classes in \[0, 3\).*got -1 to 0"),
        ({"kind": {"a": 0}}, r"kind must map classes in \[0, 3\).*got 'a' to 0"),
        ({"kind": {0: 1}, "rate": 1.0}, r"rate must be in \[0, 1\), got 1.0"),
        ({"kind": MATRIX[:2]}, r"kind must be a matrix of shape \(3, 3\)"),
        ({"kind": 2 * MATRIX}, "kind must have rows that sum to 1, got 2 in row 0"),
        ({"kind": 1 - 2 * np.eye(3)}, "kind must hold probabilities, 0 or more"),
        ({"kind": np.full((3, 3), np.nan)}, "kind must hold probabilities"),
    ],
)
def test_bad_input_is_named(arguments, message):
    labels = arguments.pop("labels", [0, 1, 2])
    rate = arguments.pop("rate", 0.4)
    with pytest.raises(ValueError, match=message):
        flip_labels(KEY, np.asarray(labels), rate, **{"classes": 3, **arguments})
