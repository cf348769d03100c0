"""Every rule on whole channels, heads, experts and blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import unit_network as network

import swapjax
from swapjax import Head
from swapjax.training.rules import RULES

PATTERNS = list(network.PATTERNS.items())
STEPS = 6


def plan_of(pattern, include):
    return swapjax.plan(
        network.params(), 0.5, pattern=pattern, include=include, axes=network.AXES
    )


@pytest.mark.parametrize("name", RULES)
def test_masks_are_whole_units_after_every_step(name):
    # Each rule with one of the patterns: programs take long to compile.
    target = plan_of(*PATTERNS[list(RULES).index(name) % len(PATTERNS)])
    params = jax.tree.map(jnp.asarray, network.params())
    entry = RULES[name]
    schedule = entry.schedule and entry.schedule(4, 2)
    tx = swapjax.sparse(
        optax.sgd(0.05), entry.factory(), plan=target, schedule=schedule,
        steps=STEPS, key=jax.random.key(1),
    )  # fmt: skip
    rng = np.random.default_rng(0)
    slopes = jax.tree.map(lambda x: rng.normal(size=x.shape).astype("f4"), params)

    @jax.jit
    def step(params, state):
        updates, state = tx.update(slopes, state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for _ in range(STEPS):
        params, state = step(params, state)
        leaves = target.layout.leaf_masks(swapjax.masks_of(state))
        network.require_whole(target.units, leaves)
        for w, m in zip(target.layout.split(params), leaves, strict=True):
            assert not np.any(np.asarray(w)[~np.asarray(m)])
    assert sum(int(m.sum()) for m in leaves) == target.kept
    swapjax.check_state(state)


def test_first_masks_at_random_draw_a_head_once():
    target = plan_of(Head(), "attn")
    tx = swapjax.sparse(
        optax.sgd(0.1), swapjax.static(), plan=target, key=jax.random.key(0)
    )
    masks = swapjax.masks_of(tx.init(network.params()))["attn"]
    own = np.asarray(masks["query"])[0, :, 0]
    assert own.sum() == 1
    np.testing.assert_array_equal(masks["key"][0, :, 0], own)
    np.testing.assert_array_equal(masks["out"][:, 0, 0], own)


def test_gradients_go_to_whole_heads_with_gsm():
    target = plan_of(Head(), "attn")
    params = network.params()
    tx = swapjax.gsm(plan=target)
    slopes = jax.tree.map(jnp.ones_like, params)
    passed, _ = jax.jit(tx.update)(slopes, tx.init(params), params)
    leaves = tuple(g != 0 for g in target.layout.split(passed))
    network.require_whole(target.units, leaves)
    assert sum(int(m.sum()) for m in leaves) == target.kept


def test_tickets_and_plasticity_keep_whole_heads():
    target = plan_of(Head(), "attn")
    params = network.params()
    seen = []

    def train(params, masks, key):
        seen.append(target.layout.leaf_masks(masks))
        return params

    swapjax.lottery(train, params, plan=target, rate=0.3, key=jax.random.key(0))
    swapjax.pruning_plasticity(
        train, {0: params}, rates=[0.5], regrow=[True], regeneration=0.5,
        evaluate=lambda p: 0.0, plan=lambda params, rate: target,
        gradient=lambda p: jax.tree.map(jnp.sin, p), key=jax.random.key(0),
    )  # fmt: skip
    for leaves in seen:
        network.require_whole(target.units, leaves)
    for leaves in seen[-2:]:
        assert sum(int(m.sum()) for m in leaves) == target.kept
