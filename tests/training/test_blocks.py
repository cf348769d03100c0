"""Blocks of entries that live or die as one, in plans and in sparse training."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import swapjax
from swapjax import Block

BLOCK = Block(2, 3)
RULES = [
    swapjax.static(),
    swapjax.gmp(),
    swapjax.set_(),
    swapjax.rigl(),
    swapjax.granet_st(),
    swapjax.ste(),
    swapjax.acdc(),
]


def network():
    keys = jax.random.split(jax.random.key(0), 2)
    return {
        "a": {"kernel": jax.random.normal(keys[0], (8, 12)), "bias": jnp.ones(12)},
        "conv": {"kernel": jax.random.normal(keys[1], (2, 12, 6))},
    }


def blocks_of(array):
    """[blocks, entries], by a loop."""
    flat = np.asarray(array).reshape(-1, *array.shape[-2:])
    return np.stack([
        part[i : i + BLOCK.rows, j : j + BLOCK.columns].ravel()
        for part in flat
        for i in range(0, part.shape[0], BLOCK.rows)
        for j in range(0, part.shape[1], BLOCK.columns)
    ])  # fmt: skip


@pytest.mark.parametrize("allocation", ["global", "uniform", "erk"])
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9])
def test_a_plan_keeps_whole_blocks(allocation, sparsity):
    options = {"allocation": allocation, "min_keep": 7}
    plan = swapjax.plan(network(), sparsity, pattern=BLOCK, **options)
    blocks = plan.layout.total // 6
    assert plan.kept == 6 * int(blocks * (1 - sparsity) + 0.5)
    assert all(count % 6 == 0 for count in plan.keep)
    # Seven entries are two blocks.
    assert set(plan.floors) == {12}
    for level in (0.0, sparsity / 2, sparsity):
        assert all(count % 6 == 0 for count in plan.at(level).keep)
    assert "blocks of 2x3" in str(plan)


def test_an_override_counts_blocks_too():
    plan = swapjax.plan(network(), 0.5, pattern=BLOCK, overrides={"conv": 0.75})
    assert plan.keep[plan.groups[1]] == 6 * 6
    assert plan.at(0.25).keep[plan.groups[1]] % 6 == 0


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_masks_are_whole_blocks_after_every_step(rule):
    params = network()
    plan = swapjax.plan(params, 0.75, pattern=BLOCK)
    make = swapjax.constant if rule.name in ("set", "rigl") else swapjax.cubic
    tx = swapjax.sparse(
        optax.adam(0.05), rule, plan=plan, schedule=make(0, 6, every=2), steps=8,
        key=jax.random.key(1),
    )  # fmt: skip

    def loss(params):
        hidden = jnp.tanh(jnp.linspace(-1, 1, 8) @ params["a"]["kernel"])
        out = jnp.einsum(
            "i,kij->kj", hidden + params["a"]["bias"], params["conv"]["kernel"]
        )
        return jnp.sum((out - 1) ** 2)

    @jax.jit
    def step(params, state):
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for _ in range(8):
        params, state = step(params, state)
        masks = swapjax.masks_of(state)
        for name in ("a", "conv"):
            grid = blocks_of(masks[name]["kernel"])
            assert np.all(grid.any(1) == grid.all(1))
            gone = ~np.asarray(masks[name]["kernel"])
            assert not np.any(np.asarray(params[name]["kernel"])[gone])
    kept = sum(int(jnp.sum(masks[name]["kernel"])) for name in ("a", "conv"))
    assert kept == plan.kept
    swapjax.check_state(state)


def test_pruning_by_magnitude_takes_the_blocks_with_the_largest_mean():
    params = network()
    plan = swapjax.plan(params, 0.5, pattern=BLOCK, min_keep=0)
    tx = swapjax.sparse(
        optax.sgd(0.0), swapjax.gmp(), plan=plan, schedule=swapjax.one_shot(0),
        key=jax.random.key(0),
    )  # fmt: skip
    masks = swapjax.masks_of(tx.init(params))
    means = [np.abs(blocks_of(params[n]["kernel"])).mean(1) for n in ("a", "conv")]
    limit = np.sort(np.concatenate(means))[-plan.kept // 6]
    for name, mean in zip(("a", "conv"), means, strict=True):
        found = blocks_of(masks[name]["kernel"]).all(1)
        np.testing.assert_array_equal(found, mean >= limit)


def test_within_is_never_left():
    params = network()
    inside = swapjax.sparse(
        optax.sgd(0.1), swapjax.static(), key=jax.random.key(3),
        plan=swapjax.plan(params, 0.4, pattern=BLOCK),
    ).init(params).masks  # fmt: skip
    tx = swapjax.sparse(
        optax.sgd(0.1), swapjax.rigl(), within=inside, key=jax.random.key(4),
        plan=swapjax.plan(params, 0.75, pattern=BLOCK),
        schedule=swapjax.constant(0, 4, every=1),
    )  # fmt: skip
    state = tx.init(params)
    update = jax.jit(tx.update)
    for i in range(4):
        slopes = jax.tree.map(lambda x, i=i: jnp.sin(100 * x + i), network())
        updates, state = update(slopes, state, params)
        params = optax.apply_updates(params, updates)
        outside = jax.tree.map(lambda m, w: m & ~w, state.masks, inside)
        assert not any(np.any(x) for x in jax.tree.leaves(outside))


def test_what_does_not_divide_is_named():
    with pytest.raises(ValueError, match=r"blocks of 5x3: a/kernel of shape \(8, 12\)"):
        swapjax.plan(network(), 0.5, pattern=Block(5, 3))
    with pytest.raises(ValueError, match="rows must be 1 or more, got 0"):
        Block(0, 3)
    with pytest.raises(ValueError, match="sparsity: is missing"):
        swapjax.plan(network(), pattern=BLOCK)


def test_one_shot_methods_keep_whole_blocks():
    params = network()
    plan = swapjax.plan(params, 0.5, pattern=BLOCK, min_keep=0)
    masks = swapjax.magnitude_masks(params, plan=plan)
    means = [np.abs(blocks_of(params[n]["kernel"])).mean(1) for n in ("a", "conv")]
    limit = np.sort(np.concatenate(means))[-plan.kept // 6]
    for name, mean in zip(("a", "conv"), means, strict=True):
        grid = blocks_of(masks[name]["kernel"])
        np.testing.assert_array_equal(grid.any(1), mean >= limit)
        np.testing.assert_array_equal(grid.all(1), mean >= limit)
