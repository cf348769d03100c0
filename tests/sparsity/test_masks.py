"""Masks, and the trees they belong to."""

import dataclasses
import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from trees import equal

from swapjax.core import trees
from swapjax.sparsity import masks


def sparse():
    """Params and masks of them: two leaves are pruned, one is not."""
    params = {
        "a": jnp.asarray([[1.0, 2.0], [3.0, 4.0]]),
        "b": jnp.asarray([5.0, 6.0, 7.0], jnp.bfloat16),
        "c": jnp.asarray([8.0, 0.0]),
    }
    support = {
        "a": jnp.asarray([[True, False], [False, True]]),
        "b": jnp.asarray([False, True, True]),
        "c": jnp.asarray(True),
    }
    return params, support


# Masks.


def test_masked_entries_become_zero_and_dtypes_stay():
    params, support = sparse()
    applied = masks.apply_masks(params, support)
    np.testing.assert_array_equal(applied["a"], [[1, 0], [0, 4]])
    np.testing.assert_array_equal(applied["b"].astype(float), [0, 6, 7])
    np.testing.assert_array_equal(applied["c"], [8, 0])
    assert [x.dtype for x in jax.tree.leaves(applied)] == [
        x.dtype for x in jax.tree.leaves(params)
    ]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -1.0])
def test_a_masked_entry_is_a_positive_zero_whatever_it_was(dtype, value):
    params = jnp.asarray([value, value], dtype)
    applied = masks.apply_masks(params, jnp.asarray([False, True]))
    assert applied.dtype == dtype
    assert float(applied[0]) == 0
    assert not jnp.signbit(applied[0])
    np.testing.assert_equal(float(applied[1]), value)


def test_masks_are_read_off_zeros_where_leaves_are_pruned():
    params, support = sparse()
    applied = masks.apply_masks(params, support)
    assert equal(masks.from_zeros(applied, support), support)
    negative = masks.from_zeros(jnp.asarray([-0.0, 1.0]), jnp.ones(2, bool))
    np.testing.assert_array_equal(negative, [False, True])


def test_intersection_keeps_what_both_keep():
    _, support = sparse()
    other = {
        "a": jnp.asarray([[True, True], [False, False]]),
        "b": jnp.asarray(True),
        "c": jnp.asarray(True),
    }
    both = masks.intersect(support, other)
    np.testing.assert_array_equal(both["a"], [[True, False], [False, False]])
    np.testing.assert_array_equal(both["b"], support["b"])
    assert both["c"].shape == ()


def test_density_counts_prunable_entries_only():
    _, support = sparse()
    assert masks.count(support) == (4, 7)
    assert masks.density(support) == 4 / 7
    nowhere = jax.tree.map(lambda _: True, support)
    assert masks.count(nowhere) == (0, 0)
    assert masks.density(nowhere) == 1


def test_churn_counts_what_changed():
    _, support = sparse()
    flipped = jax.tree.map(jnp.logical_not, support)
    assert masks.churn(support, support) == 0
    assert masks.churn(support, flipped) == 7
    assert masks.churn(support, {**support, "b": ~support["b"]}) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d": True}, "masks: must have the tree of params"),
        ({"b": jnp.ones(3)}, r"b must be bool of shape \(3,\) or \(\), got float32"),
        ({"b": jnp.ones(4, bool)}, r"b must be .* got bool of shape \(4,\)"),
        ({"a": jnp.ones((1, 2), bool)}, r"a must be .* got bool of shape \(1, 2\)"),
        ({"c": 1}, r"c must be bool of shape \(2,\) or \(\), got int64"),
    ],
)
def test_masks_of_something_else_are_an_error(change, message):
    params, support = sparse()
    masks.check(support, params)
    masks.check(jax.tree.map(np.asarray, support), params)
    with pytest.raises(ValueError, match=message):
        masks.check({**support, **change}, params)


@given(
    st.sampled_from([(), (0,), (7,), (8,), (3, 3), (2, 0, 5), (4, 1, 6)]),
    st.integers(0, 2**32 - 1),
)
def test_packing_is_undone(shape, seed):
    size = math.prod(shape)
    mask = np.random.default_rng(seed).random(shape) < 0.5
    packed = masks.pack(mask)
    assert packed.nbytes == math.ceil(size / 8)
    back = masks.unpack(packed, shape)
    assert back.dtype == bool
    np.testing.assert_array_equal(back, mask)


@pytest.mark.parametrize(
    "packed",
    [np.zeros(1, np.uint8), np.zeros(3, np.uint8), np.zeros(2), np.zeros((2, 1))],
)
def test_bytes_of_another_mask_are_an_error(packed):
    with pytest.raises(ValueError, match=r"shape \(3, 4\) takes 2 bytes, got"):
        masks.unpack(packed, (3, 4))


# Trees.


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Layer:
    kernel: jax.Array
    bias: jax.Array


def test_leaves_are_named_by_their_paths():
    one = jnp.ones(1)
    nested = {"layers": [{"kernel": one}, (one, one)], "head": Layer(one, one)}
    assert trees.paths(nested) == (
        "head/kernel", "head/bias", "layers/0/kernel", "layers/1/0", "layers/1/1",
    )  # fmt: skip
    assert trees.paths(one) == ("",)
    assert trees.paths({}) == ()
    assert trees.paths({"fc1.weight": one}) == ("fc1.weight",)


def test_a_network_has_the_same_paths_as_a_state_and_as_a_dict():
    network = nnx.Sequential(
        nnx.Linear(2, 3, rngs=nnx.Rngs(0)), nnx.BatchNorm(3, rngs=nnx.Rngs(0))
    )
    state = nnx.state(network, nnx.Param)
    assert trees.paths(state) == trees.paths(nnx.to_pure_dict(state))
    assert trees.paths(state) == (
        "layers/0/bias", "layers/0/kernel", "layers/1/bias", "layers/1/scale",
    )  # fmt: skip


class Noisy(NamedTuple):
    value: Any
    deviation: Any


class Scale(nnx.Param):
    """A variable of a user's own kind."""


def test_fields_called_value_keep_their_name_and_those_of_flax_lose_it():
    one = jnp.ones(1)
    assert trees.paths(Noisy(one, one)) == ("value", "deviation")
    assert trees.paths({"a": Noisy(one, {"value": one})}) == (
        "a/value", "a/deviation/value",
    )  # fmt: skip
    boxed = {"k": nn.Partitioned(one, names=("x",)), "value": one}
    assert trees.paths(boxed) == ("k", "value")
    network = nnx.Dict(s=Scale(one), n=nnx.Param({"value": one, "w": one}))
    state = nnx.state(network)
    assert trees.paths(state) == ("n/value", "n/w", "s")
    assert trees.paths(jax.eval_shape(lambda: state)) == trees.paths(state)


def test_every_leaf_that_is_not_finite_is_named_and_counted():
    bad = jnp.full(1200, jnp.nan)
    leaves = [jnp.ones(3), jnp.asarray([1, jnp.inf, -jnp.inf]), bad, jnp.arange(3)]
    names = r"b \(2 of 3\), c \(1,200 of 1,200\)$"
    with pytest.raises(
        ValueError, match=f"^params: NaN or infinite entries in {names}"
    ):
        trees.require_finite("abcd", leaves, "params")
    with pytest.raises(ValueError, match=r"^x: .* in the array \(1 of 2\)"):
        trees.require_finite([""], [jnp.asarray([jnp.nan, 0], jnp.bfloat16)], "x")
    trees.require_finite("ad", [leaves[0], leaves[3]], "params")


def test_leaves_take_the_dtypes_of_others():
    params, _ = sparse()
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    assert equal(trees.cast_like(wide, params), params)
    assert trees.cast_like(wide, params)["b"].dtype == jnp.bfloat16
