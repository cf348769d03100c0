"""Objectives of attacks against their formulas in NumPy, and what they must not see."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swapjax import robust

LABELS = np.array([0, 3, 4, 1, 2, 2])
OUTPUTS = 4 * np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
OUTPUTS[1] = [1, 2, 3, 9, 4]  # right by far


def others(row, label):
    return np.delete(row.astype(np.float64), label)


def oracle(name, row, label):
    row = row.astype(np.float64)
    rank = np.sort(row)[::-1]
    if name == "ce":
        return np.log(np.exp(row).sum()) - row[label]
    lost = others(row, label).max() - row[label]
    return lost if name == "margin" else lost / (rank[0] - rank[2])


@pytest.mark.parametrize("name", robust.OBJECTIVES)
def test_objectives_are_their_formulas(name):
    got = robust.OBJECTIVES[name](jnp.asarray(OUTPUTS), jnp.asarray(LABELS))
    wanted = [oracle(name, *pair) for pair in zip(OUTPUTS, LABELS, strict=True)]
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


def test_the_targeted_ratio_is_its_formula():
    targets = (LABELS + 1) % 5
    wanted = []
    for row, label, target in zip(OUTPUTS, LABELS, targets, strict=True):
        rank = np.sort(row)[::-1]
        width = rank[0] - (rank[2] + rank[3]) / 2
        wanted.append(-(row[label] - row[target]) / width)
    got = robust.dlr_targeted(OUTPUTS * 1.0, (LABELS, targets))
    np.testing.assert_allclose(got, wanted, rtol=1e-5)


@given(scale=st.floats(0.01, 100), shift=st.floats(-5, 5))
def test_the_ratio_sees_neither_scale_nor_shift(scale, shift):
    got = robust.dlr(scale * jnp.asarray(OUTPUTS) + shift, LABELS)
    np.testing.assert_allclose(got, robust.dlr(OUTPUTS * 1.0, LABELS), rtol=5e-3)


@pytest.mark.parametrize("name", ["margin", "dlr"])
def test_margins_are_positive_where_images_are_lost(name):
    lost = robust.OBJECTIVES[name](jnp.asarray(OUTPUTS), jnp.asarray(LABELS)) > 0
    np.testing.assert_array_equal(lost, OUTPUTS.argmax(1) != LABELS)


def test_gradients_are_finite_where_outputs_are_far_apart_or_alike():
    for outputs in (1e3 * OUTPUTS, np.zeros((6, 5), np.float32)):
        for objective in robust.OBJECTIVES.values():
            slope = jax.grad(lambda z, f=objective: jnp.sum(f(z, LABELS)))(
                jnp.asarray(outputs)
            )
            assert bool(jnp.all(jnp.isfinite(slope)))


def test_a_scale_is_one_of_outputs_and_two_of_one_are_equal():
    scaled = robust.Scaled(robust.cross_entropy, 15.0)
    cosines = jnp.asarray(OUTPUTS / np.abs(OUTPUTS).max())
    wanted = robust.cross_entropy(15 * cosines, LABELS)
    np.testing.assert_allclose(scaled(cosines, LABELS), wanted, rtol=1e-6)
    assert scaled == robust.Scaled(robust.cross_entropy, 15.0)


def test_half_precision_is_computed_in_single():
    half = jnp.asarray(OUTPUTS, jnp.bfloat16)
    for objective in robust.OBJECTIVES.values():
        assert objective(half, jnp.asarray(LABELS)).dtype == jnp.float32


@pytest.mark.parametrize(
    ("objective", "classes", "message"),
    [
        (robust.dlr, 3, "'dlr' needs outputs of 4 classes or more, got 3; 'margin'"),
        (lambda z, y: robust.dlr_targeted(z, (y, y)), 2, "'dlr-targeted' needs"),
        (robust.margin, 1, r"a logit for each of 2 classes or more, got float32\[6, 1"),
    ],
)
def test_too_few_classes_are_named(objective, classes, message):
    with pytest.raises(ValueError, match=message):
        objective(jnp.asarray(OUTPUTS[:, :classes]), jnp.zeros(6, int))


def test_labels_that_are_no_class_are_not_taken_for_another():
    wrong = jnp.asarray([-1, 3, 5, 1, 2, 2])
    found = jax.jit(robust.cross_entropy)(OUTPUTS, wrong)
    assert jnp.isnan(found).tolist() == [True, False, True, False, False, False]
    with pytest.raises(ValueError, match="labels must be in"):
        robust.cross_entropy(OUTPUTS, wrong)
