"""N of every M: counts, ties, the way there, and what a plan makes of it."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from network import loss_fn

import swapjax
from swapjax import NM, plan
from swapjax.sparsity.budget import select


@given(
    n=st.integers(1, 6),
    extra=st.integers(0, 4),
    groups=st.integers(1, 5),
    axis=st.sampled_from([0, 1, 2, -1, -2, -3]),
    seed=st.integers(0, 2**16),
)
def test_the_best_of_every_group_are_kept(n, extra, groups, axis, seed):
    pattern, shape = NM(n, n + extra, axis), [2, 3, 4]
    shape[axis] = groups * pattern.m
    # Few values, so that there are ties: they go to the lower index.
    keys = np.random.default_rng(seed).integers(0, 4, shape)
    mask = np.asarray(jax.jit(pattern.top)(keys))
    for key, kept in zip(
        np.moveaxis(keys, axis, -1).reshape(-1, pattern.m),
        np.moveaxis(mask, axis, -1).reshape(-1, pattern.m),
        strict=True,
    ):
        expected = np.zeros(pattern.m, bool)
        expected[np.argsort(-key, kind="stable")[:n]] = True
        np.testing.assert_array_equal(kept, expected)


def test_split_and_join_are_inverse():
    x = jnp.arange(2 * 8 * 3).reshape(2, 8, 3)
    pattern = NM(1, 4, axis=1)
    assert pattern.split(x).shape == (2, 3, 2, 4)
    np.testing.assert_array_equal(pattern.join(pattern.split(x), x.shape), x)


PARAMS = {
    "fc1": {"kernel": jnp.ones((8, 6)), "bias": jnp.ones(6)},
    "fc2": {"kernel": jnp.ones((6, 3))},
}


def test_a_plan_has_the_counts_of_its_pattern():
    target = plan(PARAMS, pattern=NM(2, 4), exclude="fc2")
    assert (target.kept, target.sparsity, target.layout.total) == (
        24,
        Fraction(1, 2),
        48,
    )
    assert "2:4" in str(target)
    mixed = plan(PARAMS, 0.75, pattern=NM(1, 4), overrides={"fc2": 0.5})
    assert mixed.keep == (12, 9)
    assert mixed.sparsity == 1 - Fraction(21, 66)


def test_stages_go_there_by_whole_numbers():
    target = plan(PARAMS, pattern=NM(1, 4), exclude="fc2")
    levels = [target.at(Fraction(i, 8)) for i in range(7)]
    assert [str(level.patterns[0]) for level in levels] == [
        "4:4", "3:4", "3:4", "2:4", "2:4", "1:4", "1:4",
    ]  # fmt: skip
    assert levels[3].kept == 24
    assert target.at(target.sparsity).keep == target.keep


def test_select_obeys_pattern_and_within():
    target = plan(PARAMS, pattern=NM(2, 4), exclude="fc2")
    scores = (np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32),)
    choose = jax.jit(select)
    (mask,) = choose(scores, target.budget)
    assert np.all(np.asarray(mask).reshape(2, 4, 6).sum(1) == 2)
    inside = np.zeros((8, 6), bool)
    inside[1:4] = True
    (mask,) = choose(scores, target.budget, (inside,))
    assert np.all(np.asarray(mask).reshape(2, 4, 6).sum(1) == [[2], [0]])
    assert not np.any(mask & ~inside)


def test_prune_ends_in_the_pattern():
    keys = jax.random.split(jax.random.key(0), 3)
    params = {
        "fc1": {"kernel": jax.random.normal(keys[0], (8, 6)), "bias": jnp.ones(6)},
        "fc2": {"kernel": jax.random.normal(keys[1], (6, 3))},
    }
    data = (jax.random.normal(keys[2], (50, 8)), jnp.ones((50, 3)))
    options = {"method": swapjax.linear_regression(), "samples": 30, "key": keys[0]}
    pruned = swapjax.prune(
        loss_fn, params, data, **options,
        plan=plan(params, pattern=NM(2, 4), overrides={"fc2": 0.5}),
    )  # fmt: skip
    kernel = np.asarray(pruned.params["fc1"]["kernel"])
    assert np.all((kernel.reshape(2, 4, 6) != 0).sum(1) == 2)
    again = swapjax.prune(
        loss_fn, pruned.params, data, **options, within=pruned.masks,
        plan=plan(params, pattern=NM(1, 4), overrides={"fc2": 0.5}),
    )  # fmt: skip
    assert not np.any(again.masks["fc1"]["kernel"] & ~pruned.masks["fc1"]["kernel"])
    # A group with fewer entries than the pattern keeps, keeps what it has.
    less = swapjax.prune(
        loss_fn, params, data, **options, stages=4,
        plan=plan(params, pattern=NM(2, 4), overrides={"fc2": 0.5}),
        within={
            "fc1": {
                "kernel": jnp.ones((8, 6), bool).at[:3, 0].set(False),
                "bias": jnp.asarray(True),
            },
            "fc2": {"kernel": jnp.ones((6, 3), bool)},
        },
    )  # fmt: skip
    groups = np.asarray(less.masks["fc1"]["kernel"]).reshape(2, 4, 6).sum(1)
    assert groups.tolist() == [[1, 2, 2, 2, 2, 2], [2] * 6]
    assert less.history[-1].kept == 23 + 9


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NM(5, 4), "pattern must keep 1 to m of m, got 5 of 4"),
        (lambda: NM.parse("2/4"), "pattern must be like 2:4, got '2/4'"),
        (lambda: plan(PARAMS), "sparsity: is missing, and no pattern implies it"),
        (
            lambda: plan(PARAMS, 0.9, pattern=NM(2, 4)),
            "sparsity: the pattern 2:4 removes 0.5, got 0.9",
        ),
        (
            lambda: plan(PARAMS, pattern=NM(2, 4)),
            r"2:4: fc2/kernel of shape \(6, 3\) does not divide into groups of 4",
        ),
        (
            lambda: plan(PARAMS, pattern=NM(2, 4, axis=3)),
            "does not divide into groups of 4 along axis 3",
        ),
    ],
)
def test_what_does_not_fit_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_patterns_are_read_from_text():
    assert NM.parse(" 2:4 ") == NM(2, 4)
