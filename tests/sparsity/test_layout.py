"""Layouts: where the prunable leaves of a tree lie."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from swapjax.sparsity.layout import Layout
from swapjax.sparsity.planning import plan


def network():
    return {
        "fc1": {"kernel": jnp.ones((6, 5)), "bias": jnp.ones(5)},
        "fc2": {"kernel": jnp.ones((5, 4)), "bias": jnp.ones(4)},
    }


def test_a_layout_names_places_and_measures_the_prunable_leaves():
    params = network()
    layout = Layout.of(params)
    assert layout.paths == ("fc1/kernel", "fc2/kernel")
    assert layout.shapes == ((6, 5), (5, 4))
    assert layout.positions == (1, 3)
    assert layout.treedef == jax.tree.structure(params)
    assert (layout.sizes, layout.total) == ((30, 20), 50)
    assert Layout.of(params, include="fc", exclude="kernel").paths == (
        "fc1/bias", "fc2/bias",
    )  # fmt: skip


def test_a_plan_holds_the_layout_of_its_params():
    params = network()
    assert plan(params, 0.5).layout == Layout.of(params)
    assert plan(params, 0.5, exclude="fc1").layout == Layout.of(params, exclude="fc1")


@pytest.mark.parametrize(
    ("leaf", "error", "message"),
    [
        (jnp.ones((2, 3), int), TypeError, "params: kernel holds int32, only floats"),
        (jnp.ones((0, 3)), ValueError, "params: nothing to prune, kernel are empty"),
        (
            jnp.ones(3),
            ValueError,
            "params: no leaf is known as a matrix .* kernel, which ",
        ),
    ],
)
def test_what_cannot_be_pruned_is_refused(leaf, error, message):
    with pytest.raises(error, match=message):
        Layout.of({"kernel": leaf})


# Static values.


def test_layouts_of_the_same_leaves_are_equal():
    layout = Layout.of(network())
    again = Layout.of(jax.tree.map(jnp.zeros_like, network()))
    assert layout == again
    assert hash(layout) == hash(again)
    assert repr(layout) == repr(again)
    wider = network()
    wider["fc2"]["kernel"] = jnp.ones((5, 7))
    assert layout != Layout.of(wider)
    assert layout != Layout.of({"net": network()})
    assert layout != Layout.of(network(), exclude="fc1")


def test_a_layout_is_static_to_compiled_code():
    traced = []

    def work(layout, params):
        traced.append(layout)
        return layout.merge(tuple(2 * leaf for leaf in layout.split(params)), params)

    work = jax.jit(work, static_argnums=0)
    doubled = work(Layout.of(network()), network())
    work(Layout.of(network()), network())
    assert len(traced) == 1
    assert float(doubled["fc1"]["kernel"].sum()) == 60


def test_a_layout_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Layout.of(network()).positions = ()


def test_shapes_will_do_for_arrays():
    shapes = jax.eval_shape(network)
    layout = Layout.of(shapes)
    assert layout == Layout.of(network())
    assert layout.split(shapes) == (shapes["fc1"]["kernel"], shapes["fc2"]["kernel"])
    assert layout.merge(layout.split(shapes), shapes) == shapes
    split = jax.eval_shape(layout.split, shapes)
    assert [leaf.shape for leaf in split] == [(6, 5), (5, 4)]


# The leaves of a tree.


def test_split_and_merge_are_inverses():
    params = network()
    layout = Layout.of(params)
    leaves = layout.split(params)
    assert [leaf.shape for leaf in leaves] == [(6, 5), (5, 4)]
    assert leaves[0] is params["fc1"]["kernel"]
    doubled = layout.merge(tuple(2 * leaf for leaf in leaves), params)
    assert float(doubled["fc1"]["kernel"].sum()) == 60
    assert doubled["fc1"]["bias"] is params["fc1"]["bias"]
    assert float(params["fc1"]["kernel"].sum()) == 30
    jax.tree.map(np.testing.assert_array_equal, layout.merge(leaves, params), params)


def test_split_wants_the_tree_and_the_shapes_that_it_was_made_for():
    params = network()
    layout = Layout.of(params)
    with pytest.raises(ValueError, match="the tree is not the one this plan was made"):
        layout.split({"fc1": params["fc1"]})
    params["fc2"]["kernel"] = jnp.ones((4, 5))
    with pytest.raises(ValueError, match=r"fc2/kernel has shape \(4, 5\), planned for"):
        layout.split(params)


def test_another_tree_is_one_clear_error():
    params, other = network(), {"net": network()}
    layout = Layout.of(params)
    leaves, trees = layout.split(params), map(jax.tree.structure, (other, params))
    said = re.escape("got {}, planned for {}".format(*trees))
    said = f"the tree is not the one this plan was made for: {said}$"
    with pytest.raises(ValueError, match=f"^params: {said}"):
        layout.split(other)
    with pytest.raises(ValueError, match=f"^params: {said}"):
        layout.merge(leaves, other)
    with pytest.raises(ValueError, match=f"^masks: {said}"):
        layout.leaf_masks(other)


def test_masks_are_true_where_nothing_is_pruned():
    params = network()
    layout = Layout.of(params)
    leaves = (jnp.zeros((6, 5), bool), jnp.ones((5, 4), bool))
    masks = layout.masks(leaves)
    assert jax.tree.structure(masks) == jax.tree.structure(params)
    assert masks["fc1"]["bias"].shape == ()
    assert bool(masks["fc1"]["bias"])
    for back, leaf in zip(layout.leaf_masks(masks), leaves, strict=True):
        np.testing.assert_array_equal(back, leaf)


def test_scalar_masks_become_full_leaves():
    layout = Layout.of(network())
    masks = jax.tree.map(lambda _: jnp.asarray(True), network())
    whole = layout.leaf_masks(masks)
    assert [m.shape for m in whole] == [(6, 5), (5, 4)]
    jax.tree.map(np.testing.assert_array_equal, whole, layout.everything())


def test_a_layout_goes_onto_a_tree_of_the_same_paths():
    params = {"w": [jnp.ones((2, 3)), jnp.ones((3, 4))]}
    other = {"w": tuple(params["w"])}
    layout = Layout.of(params, include="w")
    with pytest.raises(ValueError, match="the tree is not the one"):
        layout.split(other)
    moved = layout.onto(other)
    assert moved == Layout.of(other, include="w")
    assert moved.split(other) == other["w"]
    # A tree of other paths is left to split, which says what is wrong.
    assert layout.onto(network()) == layout


def test_a_layout_goes_onto_a_whole_module_from_its_arrays_alone():
    arrays = {"act": None, "kernel": jnp.ones((2, 3)), "last": None}
    whole = {**arrays, "act": jnp.zeros(()), "last": jnp.zeros(4)}
    moved = Layout.of(arrays).onto(whole)
    assert (moved.positions, moved.paths) == ((1,), ("kernel",))
    assert moved.split(whole)[0] is whole["kernel"]
    assert moved.onto(arrays) == Layout.of(arrays)


def test_leaves_of_other_shapes_are_refused():
    params = {"a": {"kernel": jnp.ones((2, 3))}, "b": {"kernel": jnp.ones((3, 2))}}
    layout = Layout.of(params)
    for leaves in ((jnp.ones((2, 3)),), (jnp.ones(6), jnp.ones((3, 2)))):
        with pytest.raises(ValueError, match="leaves: must be a/kernel, b/kernel of"):
            layout.merge(leaves, params)
        with pytest.raises(ValueError, match="leaves: must be a/kernel, b/kernel of"):
            layout.masks(leaves)
