"""Sparser networks within the masks of sparse ones: entries, n:m and blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

import swapjax
from swapjax import NM, Block
from swapjax.sparsity.bounds import allowed, keep_inside, room

KEY = jax.random.key(0)
PARAMS = {
    "a": {"kernel": jax.random.normal(KEY, (8, 6)), "bias": jnp.zeros(6)},
    "b": {"kernel": jax.random.normal(jax.random.key(1), (4, 3, 8))},
}
# A third of a, with an empty group of each direction; two thirds of b.
INSIDE = {
    "a": {
        "kernel": (jax.random.uniform(jax.random.key(2), (8, 6)) < 0.4)
        .at[:4, 0].set(False).at[0].set(False),
        "bias": True,
    },
    "b": {"kernel": jax.random.uniform(jax.random.key(3), (4, 3, 8)) < 0.7},
}  # fmt: skip
NAMES = ("a", "b")


def groups(x, axis, m):
    """The entries of each group, by NumPy alone."""
    moved = np.moveaxis(np.asarray(x), axis, -1)
    return moved.reshape(*moved.shape[:-1], -1, m).sum(-1)


def train(rule, plan, within=INSIDE, steps=5, params=PARAMS):
    """The masks before and after each update."""
    make = swapjax.constant if rule.name in ("set", "rigl") else swapjax.cubic
    schedule = None if rule.choose is None else make(0, 4, every=2)
    tx = swapjax.sparse(
        optax.sgd(0.05), rule, plan=plan, schedule=schedule, within=within, key=KEY
    )
    state, found = tx.init(params), []
    update = jax.jit(tx.update)
    for i in range(steps):
        found.append(state.masks)
        slopes = jax.tree.map(lambda x, i=i: jnp.sin(100 * x + i), params)
        updates, state = update(slopes, state, params)
        params = optax.apply_updates(params, updates)
    swapjax.check_state(state, params)
    return [*found, state.masks]


def is_inside(masks):
    return not any(
        np.any(masks[n]["kernel"] & ~np.asarray(INSIDE[n]["kernel"])) for n in NAMES
    )


def total(masks):
    return sum(int(np.sum(masks[n]["kernel"])) for n in NAMES)


RULES = [swapjax.gmp(), swapjax.granet_st(), swapjax.rigl(), swapjax.static()]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_first_masks_and_all_that_follow_stay_inside(rule):
    """Also where the schedule starts with more than there is room for."""
    target = swapjax.plan(PARAMS, 0.6)
    found = train(rule, target)
    assert all(map(is_inside, found))
    assert total(found[-1]) == target.kept
    assert total(found[0]) <= total(INSIDE)


def test_random_masks_take_elsewhere_what_one_leaf_has_no_room_for():
    """Erdos-Renyi fills small leaves, of which most is out of bounds here."""
    params = {
        "small": {"kernel": jnp.ones((4, 4))},
        "large": {"kernel": jnp.ones((40, 40))},
    }
    within = {"small": {"kernel": np.eye(4, dtype=bool)}, "large": {"kernel": True}}
    for sparsity in (0.5, 0.9):
        plan = swapjax.plan(params, sparsity)
        tx = swapjax.sparse(
            optax.sgd(0.1), swapjax.static(), plan=plan, within=within, key=KEY
        )
        masks = tx.init(params).masks
        assert swapjax.density(masks) == pytest.approx(1 - sparsity, abs=1e-3)
        assert total({"a": masks["small"], "b": masks["large"]}) == round(
            1616 * (1 - sparsity)
        )
        assert int(masks["small"]["kernel"].sum()) == 4


PATTERNS = [NM(2, 4, axis=0), NM(1, 2, axis=-2), NM(3, 4, axis=0), NM(1, 2, axis=-1)]


@pytest.mark.parametrize(
    ("rule", "pattern"),
    [(swapjax.gmp(), NM(2, 4)), (swapjax.granet_st(), NM(1, 2)),
     (swapjax.rigl(), NM(3, 4, axis=0)), (swapjax.static(), NM(1, 2, axis=-1))],
    ids=str,
)  # fmt: skip
def test_a_group_with_too_few_entries_keeps_what_it_has(rule, pattern):
    # The other axis of b does not divide.
    overrides = {"^b": 0.5} if pattern.axis is None else {}
    axes = {"^b": ("input", "input", "output")}
    target = swapjax.plan(PARAMS, pattern=pattern, overrides=overrides, axes=axes)
    found = train(rule, target)
    assert all(map(is_inside, found))
    for name in NAMES:
        if name == "b" and overrides:
            assert int(found[-1]["b"]["kernel"].sum()) == 48
            continue
        axis = 0 if pattern.axis is None else pattern.axis
        there = groups(INSIDE[name]["kernel"], axis, pattern.m)
        kept = groups(found[-1][name]["kernel"], axis, pattern.m)
        np.testing.assert_array_equal(kept, np.minimum(there, pattern.n))
        assert (there < pattern.n).any()


@pytest.mark.parametrize(
    ("method", "stages"),
    [(swapjax.magnitude(), 1), (swapjax.chita(), 3), (swapjax.layerwise_obs(), 2)],
    ids=str,
)
def test_prune_tells_what_a_pattern_kept_of_a_sparse_network(method, stages):
    x = jax.random.normal(jax.random.key(4), (24, 8))
    params = {"kernel": PARAMS["a"]["kernel"]}
    inside = {"kernel": INSIDE["a"]["kernel"]}
    loss = lambda p, x: jnp.mean((jnp.tanh(x @ p["kernel"]) - 1) ** 2)  # noqa: E731
    pruned = swapjax.prune(
        loss, params, x, plan=swapjax.plan(params, pattern=NM(2, 4)), method=method,
        within=inside, stages=stages, samples=24, key=KEY,
    )  # fmt: skip
    kept = groups(pruned.masks["kernel"], -2, 4)
    np.testing.assert_array_equal(kept, np.minimum(groups(inside["kernel"], -2, 4), 2))
    assert [s.kept for s in pruned.history][-1] == kept.sum()
    assert swapjax.density(pruned.masks) == kept.sum() / 48
    assert not np.any(pruned.params["kernel"][~pruned.masks["kernel"]])


@pytest.mark.parametrize("rule", [swapjax.gmp(), swapjax.rigl()], ids=str)
def test_a_block_keeps_what_it_has(rule):
    """Blocks are counted; of one that is kept, what is outside stays away."""
    params, inside = ({"a": t["a"]} for t in (PARAMS, INSIDE))
    target = swapjax.plan(params, 0.75, pattern=Block(2, 2))
    for masks in train(rule, target, inside, params=params):
        kernel = np.asarray(masks["a"]["kernel"])
        assert not np.any(kernel & ~np.asarray(inside["a"]["kernel"]))
        blocks, there = (
            np.asarray(x).reshape(4, 2, 3, 2).sum((1, 3))
            for x in (kernel, inside["a"]["kernel"])
        )
        assert np.all((blocks == 0) | (blocks == there))
    assert np.count_nonzero(blocks) == 3
    with pytest.raises(
        ValueError, match=r"within: has 8 entries in all, in blocks of 2"
    ):
        train(rule, swapjax.plan(params, 0.5, pattern=Block(2, 2)),
              {"a": {"kernel": jnp.zeros((8, 6), bool).at[:3, 1].set(True),
                     "bias": True}}, params=params)  # fmt: skip


@given(npst.arrays(bool, (8, 6)), st.sampled_from(PATTERNS), st.floats(0, 0.95))
def test_room_is_that_of_a_loop(mask, pattern, sparsity):
    params = {"kernel": PARAMS["a"]["kernel"]}
    target = swapjax.plan(params, pattern=pattern)
    leaves = allowed({"kernel": mask}, params, target)
    counted = np.minimum(groups(mask, pattern.axis, pattern.m), pattern.n).sum()
    assert room(target, leaves) == keep_inside(target, leaves) == (counted,)
    free = swapjax.plan(params, sparsity)
    if mask.sum() < free.kept:
        with pytest.raises(
            ValueError, match=f"within: has {mask.sum()} entries in all"
        ):
            allowed({"kernel": mask}, params, free)
    else:
        kept = swapjax.magnitude_masks(params, plan=free, within={"kernel": mask})
        assert int(kept["kernel"].sum()) == free.kept
        assert not np.any(kept["kernel"] & ~mask)


@pytest.mark.parametrize(
    "within", [jnp.ones((8, 6)), jnp.ones((8, 6), jnp.int8), jnp.ones((1, 6), bool)]
)
def test_select_takes_bounds_of_its_own_shape_and_bool_only(within):
    target = swapjax.plan({"kernel": jnp.ones((8, 6))}, 0.5)
    scores = (jnp.ones((8, 6)),)
    with pytest.raises(
        ValueError, match=r"within: leaf 0 must be bool of shape \(8, 6"
    ):
        swapjax.select(scores, target.budget, (within,))
