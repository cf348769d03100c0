"""The blocks of the Fisher."""

import jax.numpy as jnp
import numpy as np
import pytest

import swapjax
from swapjax.pruning.solvers import fisher_blocks
from swapjax.roles.role import Role
from swapjax.sparsity.layout import Layout


@pytest.mark.parametrize("axis", [-1, 0])
@pytest.mark.parametrize("size", [1, 4, 7, 100])
def test_blocks_hold_every_entry_once_output_by_output(axis, size):
    weights = (jnp.zeros((3, 4)), jnp.zeros((2, 3, 5)))
    for i, of in enumerate(fisher_blocks.partition(weights, size, axis)):
        leaf, index = weights[i], of.places
        assert of.leaf == i
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


@pytest.mark.parametrize(
    ("size", "widths"), [(4, {4}), (7, {7, 6}), (100, {12, 20, 6})]
)
def test_blocks_of_a_vector_are_those_of_its_leaves(size, widths):
    shapes = ((3, 4), (2, 4, 5), (0, 4), (4, 3), (3, 4), (6, 1))
    params = {f"a{i}": {"kernel": jnp.zeros(shape)} for i, shape in enumerate(shapes)}
    roles = [
        Role("matrix", (*["stack"] * (len(shape) - 2), "input", "output"))
        for shape in shapes
    ]
    layout = Layout.of(params, roles=roles)
    flat = layout.flat()

    def listed(layout):
        leaves = layout.split(params)
        starts = np.cumsum((0, *layout.sizes))
        found = []
        for leaf, places in fisher_blocks.partition(leaves, size, None, layout):
            for row in np.asarray(places):
                real = row[row < leaves[leaf].size]
                found.append((len(row), tuple(starts[leaf] + real)))
        return sorted(found)

    assert listed(flat) == listed(layout)
    found = fisher_blocks.partition(flat.split(params), size, None, flat)
    assert {of.places.shape[1] for of in found if len(of.places)} == widths
    assert len(found) <= len(widths) + 1  # of the empty leaf
