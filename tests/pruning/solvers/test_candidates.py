"""Supports that are tried, each once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from swapjax.pruning.solvers.candidates import lowest, map_distinct, stack


def support(*kept):
    return jnp.arange(4) < kept[0], jnp.arange(6).reshape(2, 3) < kept[1]


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize(
    ("kept", "made"),
    [
        (((2, 3),), (True,)),
        (((2, 3), (3, 2), (1, 4)), (True, True, True)),
        (((2, 3), (2, 3), (2, 3)), (True, False, False)),
        (((2, 3), (2, 4), (2, 3), (2, 4)), (True, True, False, False)),
    ],
)
def test_a_support_that_equals_one_before_is_passed_over(kept, made, jit):
    calls = []

    def make(masks):
        count = sum(jnp.sum(m) for m in masks)
        jax.debug.callback(lambda: calls.append(1))
        return {"masks": masks, "count": count}, -1.0 * count, count / 2

    run = lambda supports: map_distinct(make, supports)  # noqa: E731
    supports = stack([support(*pair) for pair in kept])
    found, one, other = (jax.jit(run) if jit else run)(supports)
    jax.effects_barrier()
    assert len(calls) == sum(made)
    for i, is_made in enumerate(made):
        total = float(sum(np.sum(x[i]) for x in supports))
        assert float(found["count"][i]) == (total if is_made else 0)
        assert float(one[i]) == (-total if is_made else np.inf)
        assert float(other[i]) == (total / 2 if is_made else np.inf)


def test_nan_is_the_worst_and_of_equals_the_first_is_taken():
    assert lowest(jnp.asarray([np.nan, 2.0, 1.0, 1.0])) == 2
    assert lowest(jnp.asarray([np.nan, np.inf])) == 0
