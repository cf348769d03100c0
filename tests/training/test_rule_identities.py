"""Rules against each other, and against what plans promise."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from network import kernels
from rule_runs import BETA, GRADUAL, RATE, STEADY, keep_at, make, run, strongest
from sparse_runs import (
    FINAL,
    QUICK,
    STEPS,
    by_gradients,
    counts,
    follow,
    gradients,
    initial,
)
from trees import equal

import swapjax
from swapjax import NM, constant
from swapjax.training import (
    acdc,
    gmp,
    granet,
    granet_st,
    masks_of,
    rigl,
    set_,
    static,
    ste,
)


class TestIdentities:
    """Rules that are others with some settings, bit for bit."""

    def test_granet_that_exchanges_nothing_is_gmp(self):
        first = run(make(gmp(), GRADUAL))
        second = run(make(granet(fraction=0), GRADUAL))
        assert equal(first, second)

    def test_granet_that_prunes_nothing_is_rigl(self):
        schedule = constant(2, STEPS, every=2)
        first = run(make(rigl(fraction=0.5, last=0.005), schedule))
        second = run(make(granet_st(), schedule))
        assert equal(first, second)

    @pytest.mark.parametrize(
        "rule", [static(), gmp(), rigl(), granet(), acdc(), set_()], ids=str
    )
    def test_no_sparsity_is_the_optimizer_alone(self, rule):
        schedule = None if rule.choose is None else STEADY
        trail = run(make(rule, schedule, optax.adamw(0.01), sparsity=0.0))
        step = by_gradients(optax.adamw(0.01), compiler_options=QUICK)
        params = initial()
        alone = follow(step, params, optax.adamw(0.01).init(params), gradients())
        for (p, s), (q, r) in zip(trail, alone, strict=True):
            assert equal(p, q)
            assert equal(s.inner, r)

    def test_the_dense_weights_of_no_sparsity_are_the_optimizer_s(self):
        """Params follow them by adding a difference, to the last bit but one."""
        trail = run(make(ste(), STEADY, optax.adamw(0.01), sparsity=0.0))
        step = by_gradients(optax.adamw(0.01), compiler_options=QUICK)
        params = initial()
        alone = follow(step, params, optax.adamw(0.01).init(params), gradients())
        for (p, s), (q, _) in zip(trail, alone, strict=True):
            for a, b, c in zip(
                kernels(s.extras["dense"]), kernels(q), kernels(p), strict=True
            ):
                np.testing.assert_allclose(a, b, rtol=1e-6)
                np.testing.assert_allclose(c, b, rtol=1e-6, atol=1e-7)

    def test_straight_through_without_decay_ignores_what_masks_hide(self):
        """Masks of a straight-through rule are those of dense training, made late."""
        trail = run(make(ste(), constant(STEPS, STEPS, every=1)))
        step = by_gradients(optax.sgd(RATE, momentum=BETA), compiler_options=QUICK)
        params = initial()
        state = optax.sgd(RATE, momentum=BETA).init(params)
        dense = follow(step, params, state, gradients())[-1][0]
        everywhere = [np.ones(w.shape, bool) for w in kernels(dense)]
        masks = strongest(kernels(dense), everywhere, 22)
        assert equal(kernels(masks_of(trail[-1][1])), masks)


PLANNED = {
    "gmp": (gmp(), GRADUAL),
    "rigl": (rigl(), STEADY),
    "granet": (granet(), GRADUAL),
}


def faint():
    """Params of which the second kernel is far smaller than the first."""
    params = initial()
    params["fc2"]["kernel"] *= 1e-3
    return params


@pytest.mark.parametrize("name", PLANNED)
class TestPlans:
    """What a plan promises holds after every mask step."""

    def test_patterns(self, name):
        rule, schedule = PLANNED[name]
        pattern = NM(1, 3, axis=0)
        plan = swapjax.plan(initial(), pattern=pattern)
        trail = run(make(rule, schedule, plan=plan))
        for t, (_, state) in enumerate(trail):
            n = {0: 3, 1: 3, 2: 2, 3: 2}.get(t, 1) if name != "rigl" else 1
            for mask in kernels(masks_of(state)):
                in_groups = np.asarray(pattern.split(jnp.asarray(mask))).sum(-1)
                assert (in_groups == n).all(), (t, in_groups)

    def test_floors(self, name):
        rule, schedule = PLANNED[name]
        plan = swapjax.plan(faint(), 0.9, min_keep=3)
        assert plan.kept == 7
        # Gradients too small to lift the second kernel.
        small = [jax.tree.map(lambda g: 1e-5 * g, tree) for tree in gradients()]
        trail = run(make(rule, schedule, plan=plan), faint(), small)
        if name != "rigl":
            assert counts(trail[-1][1]) == [4, 3]
        for t, (_, state) in enumerate(trail):
            if t >= 8:
                assert sum(counts(state)) == 7
            assert counts(state)[1] >= 3

    def test_overrides(self, name):
        rule, schedule = PLANNED[name]
        plan = swapjax.plan(initial(), FINAL, overrides={"fc2/kernel": 0.5})
        trail = run(make(rule, schedule, plan=plan))
        for t, (_, state) in enumerate(trail):
            if t >= 8 or name == "rigl":
                assert counts(state) == [13, 9]
        if name != "rigl":
            middle = plan.at(Fraction(7, 10) - Fraction(3, 10) * Fraction(8, 27))
            assert tuple(counts(trail[4][1])) == middle.keep

    def test_within(self, name):
        rule, schedule = PLANNED[name]
        draw = np.random.default_rng(3).random
        inside = jax.tree.map(
            lambda x: jnp.asarray((draw(x.shape) < 0.6) | (x.ndim < 2)), initial()
        )
        trail = run(make(rule, schedule, within=inside))
        room = sum(m.sum() for m in kernels(inside))
        for t, (_, state) in enumerate(trail):
            for mask, there in zip(
                kernels(masks_of(state)), kernels(inside), strict=True
            ):
                assert not (mask & ~there).any()
            wanted = 22 if name == "rigl" or t >= 8 else 72
            if name != "rigl" and 2 <= t < 8:
                wanted = keep_at(t - t % 2)
            assert sum(counts(state)) == min(wanted, room)
