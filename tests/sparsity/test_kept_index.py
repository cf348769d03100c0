"""Kept entries by number, against NumPy on leaves laid end to end."""

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given

from swapjax.sparsity import kept_index

SHAPES = ((3, 4), (0,), (5,), (2, 1, 2))

number = jax.jit(kept_index.number)
places_of = jax.jit(lambda numbered, start: numbered.places(start, 6))
spread = jax.jit(lambda m, v, start: kept_index.number(m).spread(v, start))


def some_masks(seed, density):
    rng = np.random.default_rng(seed)
    return tuple(rng.random(shape) < density for shape in SHAPES)


def laid(leaves):
    return np.concatenate([np.asarray(x).ravel() for x in leaves])


@given(
    seed=st.integers(0, 2**16),
    density=st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    start=st.integers(0, 25),
)
def test_places_are_those_of_leaves_laid_end_to_end(seed, density, start):
    masks = some_masks(seed, density)
    places = np.flatnonzero(laid(masks))
    numbered = number(masks)
    assert int(numbered.total) == len(places)
    got = places_of(numbered, start)
    wanted = [*places[start : start + 6], *[21] * 6][:6]
    np.testing.assert_array_equal(got, wanted)


@given(
    seed=st.integers(0, 2**16), start=st.integers(0, 25), width=st.sampled_from([1, 9])
)
def test_values_go_to_their_entries_and_zero_elsewhere(seed, start, width):
    masks = some_masks(seed, 0.5)
    got = spread(masks, np.arange(1.0, 1 + width, dtype=np.float32), start)
    wanted = np.zeros(21)
    places = np.flatnonzero(laid(masks))[start : start + width]
    wanted[places] = np.arange(1, 1 + len(places))
    np.testing.assert_array_equal(laid(got), wanted)
    assert [x.shape for x in got] == list(SHAPES)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_values_keep_their_dtype(dtype):
    got = spread(some_masks(0, 0.5), jnp.ones(4, dtype), 0)
    assert {x.dtype for x in got} == {jnp.dtype(dtype)}
