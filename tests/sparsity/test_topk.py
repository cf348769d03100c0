"""Top-k against a sort of all entries with NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swapjax.sparsity.budget import Budget, select
from swapjax.sparsity.topk import sort_keys, top_k_mask, top_k_masks

SHAPES = ((3, 1, 4), (0, 5), (7,), ())
SIZE = sum(int(np.prod(shape)) for shape in SHAPES)
# Ties of all kinds, and a float32 smaller than any that is normal.
VALUES = (np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, -1e-45, 1e-30, 1.0, 1.0, -2.0, 3.0)
DTYPES = ("float32", "bfloat16", "float16", "float64")

jitted_masks = jax.jit(top_k_masks)
jitted_select = jax.jit(select)


def ranking(leaves):
    """Places of all entries, best first: NaN last, ties by leaf and flat index."""
    flat = np.concatenate([np.asarray(x).astype(np.float64).ravel() for x in leaves])
    nan = np.isnan(flat)
    return np.lexsort((np.arange(len(flat)), -np.where(nan, 0, flat), nan))


def marked(places, leaves):
    flat = np.zeros(sum(leaf.size for leaf in leaves), bool)
    flat[list(places)] = True
    ends = np.cumsum([leaf.size for leaf in leaves])[:-1]
    parts = np.split(flat, ends)
    return [p.reshape(x.shape) for p, x in zip(parts, leaves, strict=True)]


def assert_same(got, wanted):
    for mask, reference in zip(got, wanted, strict=True):
        assert mask.dtype == bool
        np.testing.assert_array_equal(mask, reference)


def as_leaves(values, dtype="float32", shapes=SHAPES):
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])[:-1]
    parts = np.split(np.asarray(values), ends)
    return tuple(
        jnp.asarray(p.reshape(s).astype(jnp.dtype(dtype)))
        for p, s in zip(parts, shapes, strict=True)
    )


def draws(dtype, seed=0):
    values = np.random.default_rng(seed).normal(size=SIZE)
    values[::3] = np.random.default_rng(seed).choice(VALUES, size=len(values[::3]))
    return as_leaves(values, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_keeps_the_k_best_for_every_k(x64, dtype):
    leaves = draws(dtype)
    order = ranking(leaves)
    for k in range(SIZE + 1):
        assert_same(jitted_masks(leaves, k), marked(order[:k], leaves))


@given(
    st.lists(st.sampled_from(VALUES), min_size=SIZE, max_size=SIZE),
    st.integers(0, SIZE),
)
def test_keeps_exactly_k_under_ties(values, k):
    leaves = as_leaves(values)
    masks = jitted_masks(leaves, k)
    assert sum(int(mask.sum()) for mask in masks) == k
    assert_same(masks, marked(ranking(leaves)[:k], leaves))


@given(
    st.lists(
        st.floats(width=32, allow_nan=True, allow_subnormal=True),
        min_size=SIZE,
        max_size=SIZE,
    ),
    st.integers(0, SIZE),
)
def test_keeps_the_k_best_of_any_floats(values, k):
    leaves = as_leaves(values)
    assert_same(jitted_masks(leaves, k), marked(ranking(leaves)[:k], leaves))


@pytest.mark.parametrize("k", [0, 1, 9, SIZE])
def test_a_traced_k_equals_a_known_one(k):
    leaves = draws("float32")
    static = jax.jit(top_k_masks, static_argnums=1)
    assert_same(static(leaves, k), jitted_masks(leaves, k))
    if k == 9:
        assert_same(top_k_masks(leaves, k), jitted_masks(leaves, k))


@pytest.mark.parametrize(
    "dtypes",
    [
        ("float32", "float32", "float64", "float32"),
        ("bfloat16", "float16", "float32", "float16"),
        ("float16", "bfloat16", "float64", "float32"),
    ],
)
def test_leaves_of_different_dtypes_compete(x64, dtypes):
    mixed = tuple(
        leaf.astype(dtype) for leaf, dtype in zip(draws("float64"), dtypes, strict=True)
    )
    order = ranking(mixed)
    for k in range(SIZE + 1):
        assert_same(jitted_masks(mixed, k), marked(order[:k], mixed))


def test_float64_is_told_apart_where_float32_would_tie(x64):
    x = jnp.asarray([1.0, 1.0 + 1e-12, 1.0 + 2e-12])
    np.testing.assert_array_equal(top_k_mask(x, 1), [False, False, True])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_subnormals_rank_by_their_value(dtype):
    tiny = np.float64(jnp.finfo(dtype).smallest_subnormal)
    x = jnp.asarray(np.array([0.0, tiny, -tiny, 2 * tiny, -0.0])).astype(dtype)
    keys = np.asarray(sort_keys(x))
    assert keys[2] < keys[0] == keys[4] < keys[1] < keys[3]


def test_ties_go_to_the_earlier_leaf_then_to_the_lower_index():
    leaves = (jnp.zeros((2, 2)), -jnp.zeros(3))
    masks = top_k_masks(leaves, 5)
    assert_same(masks, [np.ones((2, 2), bool), np.array([True, False, False])])


def test_nan_is_taken_when_nothing_else_is_left():
    x = jnp.asarray([jnp.nan, -jnp.inf, jnp.nan])
    np.testing.assert_array_equal(top_k_mask(x, 1), [False, True, False])
    np.testing.assert_array_equal(top_k_mask(x, 2), [True, True, False])


def test_nothing_to_choose_from_is_harmless():
    assert top_k_masks((), 0) == ()
    assert top_k_mask(jnp.zeros((0, 3)), 0).shape == (0, 3)


def test_every_row_under_vmap_keeps_its_own_count():
    rows = np.random.default_rng(0).choice(VALUES, (5, 8)).astype(np.float32)
    counts = jnp.asarray([0, 1, 4, 7, 8])
    masks = jax.vmap(top_k_mask)(rows, counts)
    for row, k, mask in zip(rows, counts, masks, strict=True):
        assert_same([mask], marked(ranking([row])[: int(k)], [row]))


def test_more_entries_than_an_int32_counts_are_an_error():
    most = jax.ShapeDtypeStruct((2**31 - 1,), jnp.float32)
    one = jax.ShapeDtypeStruct((1,), jnp.float32)
    assert jax.eval_shape(top_k_masks, (most,), 1)[0].shape == most.shape
    with pytest.raises(ValueError, match="2,147,483,648 entries is more than"):
        jax.eval_shape(top_k_masks, (most, one), 1)
    # Two groups of that size are no problem.
    budget = Budget(jnp.asarray([1, 1]), (0, 1), (0, 0))
    assert len(jax.eval_shape(select, (most, one), budget)) == 2


def chosen_slowly(scores, budget, within):
    """Group by group: the floors of each leaf within, then the best of the rest."""
    result = [None] * len(scores)
    for group in set(budget.groups):
        members = [i for i, g in enumerate(budget.groups) if g == group]
        leaves = [scores[i] for i in members]
        order = list(ranking(leaves))
        outside = []
        if within is not None:
            inside = np.concatenate([np.ravel(within[i]) for i in members])
            outside = [p for p in range(len(inside)) if not inside[p]]
            order = [p for p in order if inside[p]] + outside
        sound = [p for p in order if p not in set(outside)]
        leaf_of = np.repeat(np.arange(len(leaves)), [x.size for x in leaves])
        first = [
            p
            for j, i in enumerate(members)
            for p in [p for p in sound if leaf_of[p] == j][: budget.floors[i]]
        ]
        rest = [p for p in order if p not in set(first)]
        places = [*first, *rest][: int(budget.keep[group])]
        for i, mask in zip(members, marked(places, leaves), strict=True):
            result[i] = mask
    return result


FOUR = ((2, 3), (4,), (0,), (5,))


@pytest.mark.parametrize("groups", [(0, 0, 0, 0), (0, 1, 0, 0), (3, 2, 1, 0)])
@pytest.mark.parametrize("floors", [(0, 0, 0, 0), (1, 2, 0, 3)])
@given(data=st.data())
def test_every_group_keeps_its_count_floors_first(groups, floors, data):
    scores = as_leaves(
        data.draw(st.lists(st.sampled_from(VALUES), min_size=15, max_size=15)),
        shapes=FOUR,
    )
    within = as_leaves(
        data.draw(st.lists(st.booleans(), min_size=15, max_size=15)), bool, FOUR
    )
    keep = []
    for group in range(max(groups) + 1):
        members = [i for i in range(4) if groups[i] == group]
        least = sum(floors[i] for i in members)
        keep.append(data.draw(st.integers(least, sum(scores[i].size for i in members))))
    budget = Budget(jnp.asarray(keep), groups, floors)
    assert_same(
        jitted_select(scores, budget), chosen_slowly(scores, budget, within=None)
    )
    assert_same(
        jitted_select(scores, budget, within), chosen_slowly(scores, budget, within)
    )


@pytest.mark.parametrize("score", [np.nan, -np.inf])
def test_the_worst_score_within_beats_the_best_outside(score):
    scores = (jnp.asarray([5.0, score, 7.0]),)
    within = (jnp.asarray([False, True, False]),)
    budget = Budget(jnp.asarray([1]), (0,), (0,))
    assert_same(select(scores, budget, within), within)


def test_floors_hold_between_half_precisions():
    # As bfloat16 all of the ones tie; as float16 the largest is infinite.
    scores = (
        jnp.asarray([1e38, 1.0], jnp.bfloat16),
        jnp.asarray([7.0, 1.001, 1.002], jnp.float16),
    )
    budget = Budget(jnp.asarray([3]), (0, 0), (1, 1))
    wanted = [np.array([True, False]), np.array([True, False, True])]
    assert_same(select(scores, budget), wanted)
    assert_same(select(scores[::-1], budget), wanted[::-1])
