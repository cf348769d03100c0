"""Drop and grow, against sorts with NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swapjax import NM
from swapjax.training import exchange, random_score

SHAPE = (4, 2, 3)
SIZE = 24
VALUES = (np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-45, 1.0, -1.0, -2.0, 3.0)
FLOATS = st.lists(st.sampled_from(VALUES), min_size=SIZE, max_size=SIZE)
BOOLS = st.lists(st.booleans(), min_size=SIZE, max_size=SIZE)

jitted = jax.jit(exchange, static_argnames="pattern")


def best(values, places, k):
    """The k places of the largest values: NaN last, ties to the lower."""
    rank = lambda i: (np.isnan(values[i]), -np.nan_to_num(values[i]), i)  # noqa: E731
    return sorted(places, key=rank)[:k]


def oracle(weight, score, mask, drop, within=None):
    weight, score, mask = (np.asarray(a).ravel() for a in (weight, score, mask))
    weight, score = weight.astype(np.float64), score.astype(np.float64)
    active = np.flatnonzero(mask)
    drop = min(max(int(drop), 0), len(active))
    kept = best(np.abs(weight), active, len(active) - drop)
    room = np.ones(SIZE, bool) if within is None else np.asarray(within).ravel()
    free = [i for i in np.flatnonzero(room) if i not in set(kept)]
    result = np.zeros(SIZE, bool)
    result[[*kept, *best(score, free, drop)]] = True
    return result.reshape(SHAPE)


def draws(seed=0, dtype="float32"):
    keys = jax.random.split(jax.random.key(seed), 3)
    mask = jax.random.bernoulli(keys[0], 0.5, SHAPE)
    weight = jnp.where(mask, jax.random.normal(keys[1], SHAPE, dtype), 0)
    return weight, jnp.abs(jax.random.normal(keys[2], SHAPE, dtype)), mask


@given(FLOATS, FLOATS, BOOLS, st.integers(-1, SIZE + 1))
def test_exchanges_what_sorting_would(weight, score, mask, drop):
    weight, score = (
        jnp.asarray(v, jnp.float32).reshape(SHAPE) for v in (weight, score)
    )
    mask = jnp.asarray(mask).reshape(SHAPE)
    new = jitted(weight, score, mask, drop)
    np.testing.assert_array_equal(new, oracle(weight, score, mask, drop))
    assert new.sum() == mask.sum()


@given(FLOATS, FLOATS, BOOLS, BOOLS, st.integers(0, SIZE))
def test_nothing_grows_outside_of_within(weight, score, mask, within, drop):
    weight, score = (
        jnp.asarray(v, jnp.float32).reshape(SHAPE) for v in (weight, score)
    )
    mask, within = (jnp.asarray(v).reshape(SHAPE) for v in (mask, within))
    new = jitted(weight, score, mask, drop, within)
    np.testing.assert_array_equal(new, oracle(weight, score, mask, drop, within))
    assert not np.any(new & ~mask & ~within)
    inside = mask & within
    assert jitted(weight, score, inside, drop, within).sum() == inside.sum()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_keeps_to_the_order_of_every_dtype(dtype):
    weight, score, mask = draws(dtype=dtype)
    for drop in (0, 1, 5, int(mask.sum())):
        new = jitted(weight, score, mask, jnp.asarray(drop))
        np.testing.assert_array_equal(new, oracle(weight, score, mask, drop))


def test_compiled_or_not_it_is_the_same():
    weight, score, mask = draws(1)
    options = {"within": mask | (score > 0.5)}
    np.testing.assert_array_equal(
        exchange(weight, score, mask, 5, **options),
        jitted(weight, score, mask, 5, **options),
    )


def test_float64_is_told_apart_where_float32_would_tie(x64):
    weight = jnp.asarray([1.0, 1.0 + 1e-12, 0.0, 0.0])
    score = jnp.asarray([0.0, 0.0, 1.0, 1.0 + 1e-12])
    new = exchange(weight, score, weight != 0, 1)
    np.testing.assert_array_equal(new, [False, True, False, True])


def test_what_was_dropped_may_come_back_and_what_was_kept_stays():
    weight = jnp.asarray([1.0, 5.0, 0.0, 0.0])
    score = jnp.asarray([9.0, 0.0, 3.0, 2.0])
    new = exchange(weight, score, weight != 0, 1)
    np.testing.assert_array_equal(new, [True, True, False, False])


def patterned(seed, pattern):
    _, score, _ = draws(seed)
    keys = jax.random.bits(jax.random.key(seed + 100), SHAPE)
    mask = pattern.top(keys)
    dense = jax.random.normal(jax.random.key(seed + 200), SHAPE)
    return jnp.where(mask, dense, 0), score, mask


@pytest.mark.parametrize("pattern", [NM(2, 4, axis=0), NM(1, 3, axis=-1)], ids=str)
@pytest.mark.parametrize("drop", [0, 1, 3, SIZE])
def test_groups_are_filled_up_to_their_pattern(pattern, drop):
    weight, score, mask = patterned(drop, pattern)
    new = np.asarray(jitted(weight, score, mask, drop, pattern=pattern))
    active = int(mask.sum())
    kept = best(np.abs(np.ravel(weight)), np.flatnonzero(mask), max(active - drop, 0))
    places = np.arange(SIZE).reshape(SHAPE)
    for group in np.asarray(pattern.split(jnp.asarray(places))).reshape(-1, pattern.m):
        stays = [i for i in group if i in set(kept)]
        free = [i for i in group if i not in set(kept)]
        grown = best(np.ravel(score), free, pattern.n - len(stays))
        assert set(np.flatnonzero(new)) & set(group) == {*stays, *grown}


def test_groups_grow_within_only():
    pattern = NM(2, 4, axis=0)
    weight, score, mask = patterned(0, pattern)
    held = exchange(weight, score, mask, SIZE, mask, pattern=pattern)
    np.testing.assert_array_equal(held, mask)


def test_random_growth_is_by_its_key_and_reaches_every_entry():
    weight, _, mask = draws()

    def grow(key):
        return jitted(weight, random_score(key, weight), mask, 3)

    news = np.stack([grow(jax.random.key(seed)) for seed in range(200)])
    assert set(news.sum(axis=(1, 2, 3))) == {int(mask.sum())}
    np.testing.assert_array_equal(news[7], grow(jax.random.key(7)))
    assert news.any(axis=0).all()
    # Three of the entries that are free each time, all as likely as each other.
    free = int(SIZE - mask.sum() + 3)
    rates = news.mean(axis=0)[~np.asarray(mask)]
    assert np.all(np.abs(rates - 3 / free) < 5 * np.sqrt(3 / free / 200))


def test_the_extremes_of_random_scores_are_harmless():
    weight = jnp.asarray([2.0, 1.0, 0.0, 0.0])
    score = jnp.asarray([0, 0, 2**32 - 1, 0], jnp.uint32)
    within = jnp.asarray([True, True, True, False])
    new = exchange(weight, score, weight != 0, 1, within)
    np.testing.assert_array_equal(new, [True, False, True, False])


def test_a_leaf_without_entries_is_left_alone():
    empty = jnp.zeros((0, 3))
    assert exchange(empty, empty, empty != 0, 2).shape == (0, 3)


@pytest.mark.parametrize("name", ["mask", "within"])
@pytest.mark.parametrize("dtype", ["int32", "float32"])
def test_masks_that_are_not_bool_are_named(name, dtype):
    weight, score, mask = draws()
    options = {"mask": mask, "within": mask}
    options[name] = jnp.asarray(mask, dtype)
    with pytest.raises(ValueError, match=f"^{name}: must be bool, got {dtype}"):
        exchange(weight, score, drop=1, **options)


@pytest.mark.parametrize("name", ["score", "mask", "within"])
def test_shapes_that_differ_are_named(name):
    weight, score, mask = draws()
    options = {"score": score, "mask": mask, "within": mask}
    options[name] = options[name][0]
    with pytest.raises(ValueError, match=rf"{name}: must have the shape \(4, 2, 3\)"):
        exchange(weight, drop=1, **options)
