"""Checks of leaves."""

import jax.numpy as jnp
import numpy as np
import pytest

from swapjax.core import trees


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("size", [1, 3, 17, 1000, 4097])
def test_one_entry_that_is_not_finite_is_found_wherever_it_is(size, dtype):
    """Beside a finite leaf of the largest numbers, whose sum would overflow."""
    numbers = np.random.default_rng(size).normal(size=size)
    largest = jnp.full(5, jnp.finfo(dtype).max, dtype)
    assert trees.are_finite((largest, jnp.asarray(numbers, dtype)))
    for place in {0, size // 3, size // 2, size - 1}:
        for value in (np.nan, np.inf, -np.inf):
            broken = numbers.copy()
            broken[place] = value
            leaves = largest, jnp.asarray(broken, dtype)
            assert not trees.are_finite(leaves)
            with pytest.raises(ValueError, match=rf"b \(1 of {size:,}\)"):
                trees.require_finite(("a", "b"), leaves, "params")


def test_leaves_without_entries_are_finite():
    assert trees.are_finite(())
    assert trees.are_finite((jnp.zeros(0), jnp.zeros((3, 0))))
