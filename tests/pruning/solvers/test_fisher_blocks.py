"""The blocks of the Fisher."""

import jax.numpy as jnp
import numpy as np
import pytest

import swapjax
from swapjax.pruning.solvers import fisher_blocks


@pytest.mark.parametrize("axis", [-1, 0])
@pytest.mark.parametrize("size", [1, 4, 7, 100])
def test_blocks_hold_every_entry_once_output_by_output(axis, size):
    weights = (jnp.zeros((3, 4)), jnp.zeros((2, 3, 5)))
    for leaf, index in zip(
        weights, fisher_blocks.partition(weights, size, axis), strict=True
    ):
        places = np.asarray(index).ravel()
        real = places[places < leaf.size]
        assert sorted(real) == list(range(leaf.size))
        outputs = np.unravel_index(real, leaf.shape)[axis]
        assert np.all(np.diff(outputs) >= 0)
        assert index.shape[1] == min(size, leaf.size)


def test_an_axis_of_layers_counts_no_outputs():
    params = {"blocks": {"kernel": jnp.zeros((3, 4, 5)), "bias": jnp.zeros((3, 5))}}
    layout = swapjax.plan(params, 0.5).layout
    with pytest.raises(ValueError, match="output_axis: 0 counts the layers of a leaf"):
        fisher_blocks.partition(layout.split(params), 4, 0, layout)
