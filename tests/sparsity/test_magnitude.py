"""The largest weights of params in hand, against a sort in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import swapjax
from swapjax import magnitude_masks

PARAMS = {
    "a": {"kernel": jax.random.normal(jax.random.key(0), (6, 8)), "bias": jnp.ones(8)},
    "b": {"kernel": jax.random.normal(jax.random.key(1), (8, 4))},
}


def test_keeps_the_largest_of_all_leaves():
    masks = magnitude_masks(PARAMS, 0.75)
    sizes = np.abs(np.concatenate([PARAMS[k]["kernel"].ravel() for k in "ab"]))
    kept = np.concatenate([masks[k]["kernel"].ravel() for k in "ab"])
    assert kept.sum() == 20
    assert sizes[kept].min() > sizes[~kept].max()
    assert masks["a"]["bias"].shape == ()


def test_is_what_prune_does():
    pruned = swapjax.prune(None, PARAMS, sparsity=0.75, method=swapjax.magnitude())
    masks = magnitude_masks(PARAMS, 0.75)
    assert jax.tree.all(jax.tree.map(jnp.array_equal, masks, pruned.masks))


def test_follows_a_plan():
    plan = swapjax.plan(PARAMS, pattern=swapjax.NM(2, 4), overrides={"a": 0.75})
    masks = magnitude_masks(PARAMS, plan=plan)
    assert masks["a"]["kernel"].sum() == 12
    fours = masks["b"]["kernel"].reshape(2, 4, 4).sum(axis=1)
    assert (fours == 2).all()


def test_keeps_within_masks():
    first = magnitude_masks(PARAMS, 0.5)
    flipped = jax.tree.map(lambda m: m if m.ndim == 0 else ~m, first)
    second = magnitude_masks(PARAMS, 0.75, within=flipped)
    assert not any(bool((first[k]["kernel"] & second[k]["kernel"]).any()) for k in "ab")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "sparsity or plan: give one of the two, got neither"),
        ({"sparsity": 1.5}, r"sparsity must be in \[0, 1\), got 1.5"),
        (
            {"plan": swapjax.plan({"kernel": jnp.ones((2, 2))}, 0.5)},
            "params: the tree is not the one this plan was made for",
        ),
        ({"sparsity": 0.5, "within": {"a": True}}, "within: must have the tree of"),
    ],
)
def test_bad_input_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        magnitude_masks(PARAMS, **options)


def test_what_is_not_finite_is_named():
    bad = {**PARAMS, "b": {"kernel": PARAMS["b"]["kernel"].at[0, 0].set(jnp.nan)}}
    with pytest.raises(ValueError, match=r"params: NaN.* in b/kernel \(1 of 32\)"):
        magnitude_masks(bad, 0.5)
