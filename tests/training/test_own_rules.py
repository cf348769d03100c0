"""Rules that users write, and what is said of their mistakes."""

import itertools

import jax
import jax.numpy as jnp
import pytest
from network import kernels
from rule_runs import GRADUAL, keep_at, make, run
from sparse_runs import (
    QUICK,
    STEPS,
    brief,
    by_gradients,
    counts,
    follow,
    gradients,
    initial,
)
from trees import equal

import swapjax
from swapjax import Block, constant
from swapjax.sparsity.budget import select
from swapjax.training import Rule, check_state, masks_of, ste

OTHER = jax.random.key(11)


def at_random(step):
    """Random pruning: what a rule of one's own looks like."""
    keys = jax.random.split(step.key, len(step.weights))
    scores = [
        jax.random.uniform(k, w.shape) for k, w in zip(keys, step.weights, strict=True)
    ]
    return select(scores, step.budget, step.masks)


def sticky(step):
    """Active weights count for more."""
    scores = [
        jnp.abs(w) * jnp.where(m, 3.0, 1.0)
        for w, m in zip(step.weights, step.masks, strict=True)
    ]
    return select(scores, step.budget, step.within)


class TestOwn:
    """Rules that a user writes."""

    def test_random_pruning(self):
        trail = run(make(Rule("random", at_random, draws=True), GRADUAL))
        for t, (_, state) in enumerate(trail):
            assert sum(counts(state)) == (keep_at(t - t % 2) if t >= 2 else 72)
            if t:
                old, new = (kernels(masks_of(s)) for _, s in trail[t - 1 : t + 1])
                assert not any((n & ~o).any() for n, o in zip(new, old, strict=True))
        other = run(make(Rule("random", at_random, draws=True), GRADUAL, key=OTHER))
        assert not equal(masks_of(trail[-1][1]), masks_of(other[-1][1]))

    def test_hysteresis(self):
        masks = {}
        for name, choose in (("none", ste().choose), ("some", sticky)):
            rule = Rule(name, choose, straight_through=True)
            trail = run(make(rule, constant(0, STEPS, every=1)))
            masks[name] = [kernels(masks_of(state)) for _, state in trail]
            assert all(sum(counts(state)) == 22 for _, state in trail)
        moved = {
            name: sum(
                (a != b).sum()
                for old, new in itertools.pairwise(steps)
                for a, b in zip(old, new, strict=True)
            )
            for name, steps in masks.items()
        }
        assert 0 < moved["some"] < moved["none"]

    def test_one_that_ignores_its_budget_is_told_so(self):
        rule = Rule("mine", lambda step: step.masks)
        tx = brief(rule)
        step = by_gradients(tx, compiler_options=QUICK)
        params = initial()
        trail = follow(step, params, tx.init(params), gradients(4))
        check_state(trail[0][1])
        with pytest.raises(ValueError, match="state: fc1/kernel, fc2/kernel: The rule"):
            check_state(trail[-1][1])

    def test_one_that_leaves_within_is_told_so(self):
        choose = lambda step: select(step.weights, step.budget)  # noqa: E731
        inside = jax.tree.map(lambda x: jnp.ones(x.shape, bool), initial())
        inside["fc1"]["kernel"] = jnp.arange(54).reshape(6, 9) % 9 > 0
        tx = brief(Rule("mine", choose), within=inside)
        step = by_gradients(tx, compiler_options=QUICK)
        params = initial()
        _, state = follow(step, params, tx.init(params), gradients(4))[-1]
        with pytest.raises(ValueError, match="state: fc1/kernel: The rule chose") as e:
            check_state(state)
        assert "fc2" not in str(e.value)

    def test_one_that_keeps_less_than_its_budget_may(self):
        nothing = lambda step: [jnp.zeros_like(m) for m in step.masks]  # noqa: E731
        tx, params = brief(Rule("mine", nothing)), initial()
        _, state = tx.update(params, tx.init(params), params)
        check_state(state)

    def test_blocks(self):
        plan = swapjax.plan(initial(), 0.5, pattern=Block(3, 1))
        trail = run(make(Rule("random", at_random, draws=True), GRADUAL, plan=plan))
        for mask in kernels(masks_of(trail[-1][1])):
            blocks = mask.reshape(-1, 3, mask.shape[1])
            assert (blocks.all(1) == blocks.any(1)).all()
        assert sum(counts(trail[-1][1])) == plan.kept
