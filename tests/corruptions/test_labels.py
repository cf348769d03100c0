"""Labels that are flipped: how many, to what, and that the mask tells which."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swapjax.corruptions import flip_labels

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
