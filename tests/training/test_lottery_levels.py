"""How many weights the levels of a lottery keep, whatever the layers."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import swapjax
from swapjax.training.lottery import _budgets


@settings(max_examples=25)
@given(
    st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=5),
    st.sampled_from(["global", "uniform", "erk"]),
    st.floats(0.0, 0.6),
    st.floats(0.05, 0.9),
)
def test_levels_only_ever_lose_and_end_exactly(shapes, allocation, sparsity, rate):
    params = {
        str(i): {"kernel": jax.ShapeDtypeStruct(shape, jnp.float32)}
        for i, shape in enumerate(shapes)
    }
    target = swapjax.plan(params, sparsity, allocation=allocation, min_keep=0)
    counts = [np.asarray(budget.keep) for budget in _budgets(target, rate)]
    sizes = np.bincount(target.groups, weights=target.layout.sizes)
    table = np.stack([sizes, *counts])
    assert np.all(np.diff(table, axis=0) <= 0)
    assert np.all(np.diff(table.sum(axis=1)) < 0)
    assert tuple(table[-1]) == target.keep
    # No more than a rounding of each leaf below the rate.
    assert np.all(
        table.sum(axis=1)[1:] >= table.sum(axis=1)[:-1] * (1 - rate) - 1 - len(sizes)
    )
