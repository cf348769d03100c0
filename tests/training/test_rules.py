"""What rules drop and grow, against sorts with NumPy, and rules against each other."""

import inspect
import itertools
import math
import re
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sparse_toy import (
    FINAL,
    KEY,
    QUICK,
    STEPS,
    by_gradients,
    counts,
    equal,
    follow,
    gradients,
    initial,
    leaves,
)

import swapjax
from swapjax import NM, constant, cubic
from swapjax.sparsity.budget import Budget
from swapjax.sparsity.schedules import Schedule
from swapjax.training import (
    MaskStep,
    acdc,
    check_state,
    gmp,
    granet,
    granet_st,
    masks_of,
    random_score,
    rigl,
    rules,
    set_,
    sparse,
    static,
    ste,
)
from swapjax.training.rules import RULES

RATE, BETA = 0.05, 0.9
MASK_STEPS = 2, 4, 6, 8
GRADUAL = cubic(2, 8, every=2, initial=0.4)
STEADY = constant(2, 8, every=2)
SKIPS = "rigl skipping"
# Rule, schedule, how entries grow, the first and last fraction, and its end.
CASES = {
    "gmp": (gmp(), GRADUAL, None, 0, 0, 8),
    "acdc": (acdc(), STEADY, None, 0, 0, 8),
    "set": (set_(fraction=0.4, anneal=False), STEADY, "random", 0.4, 0.4, 8),
    "set annealed": (set_(fraction=0.4), STEADY, "random", 0.4, 0, 8),
    "rigl": (rigl(), STEADY, "gradient", 0.3, 0, 8),
    SKIPS: (rigl(skip_update=True), STEADY, "gradient", 0.3, 0, 8),
    "granet": (granet(), GRADUAL, "gradient", 0.5, 0.005, STEPS),
    "granet at random": (granet(grow="random"), GRADUAL, "random", 0.5, 0.005, STEPS),
    "granet_st": (granet_st(), GRADUAL, "gradient", 0.5, 0.005, STEPS),
}


def make(rule, schedule, optimizer=None, **options):
    goal = {} if "plan" in options else {"sparsity": FINAL}
    settings = {**goal, "schedule": schedule, "steps": STEPS, "key": KEY}
    momentum = optax.sgd(RATE, momentum=BETA)
    return sparse(optimizer or momentum, rule, **(settings | options))


def run(tx, params=None, given=None):
    params = initial() if params is None else params
    step = by_gradients(tx, compiler_options=QUICK)
    trail = follow(step, params, tx.init(params), given or gradients())
    assert step._cache_size() == 1
    check_state(trail[-1][1])
    return trail


def ranked(values, places):
    return sorted(places, key=lambda i: (-values[i], i))


def prune(weights, masks, keep):
    """The largest entries of all leaves together, and one at least of each."""
    order = [
        (-abs(float(w.flat[i])), leaf, i)
        for leaf, (w, m) in enumerate(zip(weights, masks, strict=True))
        for i in np.flatnonzero(m)
    ]
    order.sort()
    sure = [next(e for e in order if e[1] == leaf) for leaf in range(len(weights))]
    rest = [e for e in order if e not in sure]
    new = [np.zeros(m.shape, bool) for m in masks]
    for _, leaf, i in (sure + rest)[:keep]:
        new[leaf].flat[i] = True
    return new


def exchange(weight, score, mask, fraction):
    """The new mask, and which entries went and came back."""
    weight, score = np.abs(weight).ravel(), score.ravel()
    active = list(np.flatnonzero(mask))
    stays = len(active) - math.ceil(fraction * len(active) - 1e-6)
    kept = ranked(weight, active)[:stays]
    free = [i for i in range(mask.size) if i not in kept]
    grown = ranked(score, free)[: len(active) - stays]
    new = np.zeros(mask.shape, bool)
    new.flat[kept + grown] = True
    back = np.zeros(mask.shape, bool)
    back.flat[[i for i in grown if mask.flat[i]]] = True
    return new, back


def cosine(first, last, t, end):
    return last + (first - last) * (1 + math.cos(math.pi * t / end)) / 2


def keep_at(t):
    """How many of all 72 entries the cubic schedule keeps at a mask step."""
    i = min(MASK_STEPS.index(t) if t in MASK_STEPS else 3, 3)
    left = (1 - Fraction(i, 3)) ** 3
    return math.floor(72 * (1 - Fraction(7, 10) + Fraction(3, 10) * left) + 0.5)


def oracle(name, masks, given):
    """Weights, masks and what went and came back, after every update."""
    _, _, grows, first, last, end = CASES[name]
    weights = [np.array(w) for w in leaves(initial())]
    traces = [np.zeros_like(w) for w in weights]
    for t, gradient in enumerate(given, 1):
        slopes = leaves(gradient)
        due = t % 2 == 0 and 2 <= t <= end
        old = masks
        weights = [w * m for w, m in zip(weights, masks, strict=True)]
        back = [np.zeros(m.shape, bool) for m in masks]
        if due:
            everywhere = [np.ones(m.shape, bool) for m in masks]
            if name == "acdc":
                sparse_now = MASK_STEPS.index(t) % 2 == 1
                masks = prune(weights, everywhere, 22) if sparse_now else everywhere
            if name.startswith(("gmp", "granet")):
                masks = prune(weights, masks, keep_at(t))
            if grows:
                fraction = first if first == last else cosine(first, last, t, end)
                # Nothing grows at the last update.
                fraction *= t < STEPS
                key = jax.random.fold_in(KEY, t)
                for i, (w, g) in enumerate(zip(weights, slopes, strict=True)):
                    score = np.abs(g)
                    if grows == "random":
                        draw = random_score(jax.random.fold_in(key, i), jnp.asarray(w))
                        score = np.asarray(draw).astype(np.float64)
                    masks = list(masks)
                    masks[i], back[i] = exchange(w, score, masks[i], fraction)
        for i, (g, m, n) in enumerate(zip(slopes, old, masks, strict=True)):
            # What is gone is forgotten, and what is new has nothing to remember.
            weights[i] = weights[i] * (m & n)
            traces[i] = traces[i] * (m & n)
            if not (due and name == SKIPS):
                traces[i] = np.where(n, g + np.float32(BETA) * traces[i], 0)
                weights[i] = weights[i] - np.float32(RATE) * traces[i]
        yield list(weights), masks, back


class TestTable:
    """What the table says of every rule."""

    def test_it_lists_what_the_module_gives(self):
        assert sorted(rules.__all__) == sorted(
            e.factory.__name__ for e in RULES.values()
        )
        assert {e.name for e in RULES.values()} == set(RULES)
        assert len({e.colour for e in RULES.values()}) == len(RULES)

    @pytest.mark.parametrize("entry", RULES.values(), ids=list(RULES))
    def test_a_row_speaks_of_its_rule(self, entry):
        rule = entry.factory()
        assert rule.name == entry.name.replace("-", "_")
        assert re.search(r"\d{4}, arXiv:\d{4}\.\d{5}$", entry.source)
        assert entry.source.split(", ")[-1] in inspect.getdoc(entry.factory)
        assert re.fullmatch("#[0-9a-f]{6}", entry.colour)
        assert entry.summary
        assert "\n" not in entry.summary
        assert (entry.schedule is None) == (rule.choose is None)
        assert entry.allocation == rule.allocation
        if entry.schedule is not None:
            when = entry.schedule(12, 3)
            assert isinstance(when, Schedule)
            assert (when.end, when.every) == (12, 3)
            assert entry.schedule(1, 1).mask_steps >= 1
            # What an oracle knows step by step.
            assert entry.name == "ste" or rule.name in CASES

    def test_which_draw_and_which_start_sparse(self):
        draw = {name for name, entry in RULES.items() if entry.draws}
        assert draw == {"static", "set", "rigl", "granet-st"}
        assert draw == {name for name, e in RULES.items() if e.starts_sparse}


class TestOracles:
    """Known gradients, and all by hand."""

    @pytest.mark.parametrize("name", CASES)
    def test_masks_and_weights_are_those_of_sorting(self, name):
        rule, schedule, grows, *_ = CASES[name]
        trail = run(make(rule, schedule))
        start = leaves(masks_of(trail[0][1]))
        if rule.begin != "random":
            assert all(m.all() for m in start)
        returned = 0
        steps = oracle(name, start, gradients())
        for t, (weights, masks, back) in enumerate(steps, 1):
            params, state = trail[t]
            for i in range(2):
                np.testing.assert_array_equal(leaves(masks_of(state))[i], masks[i], t)
                np.testing.assert_allclose(
                    leaves(params)[i], weights[i], rtol=1e-4, atol=1e-6
                )
                # From zero, and not from what they were.
                came = masks[i] & ~leaves(masks_of(trail[t - 1][1]))[i]
                first = -RATE * leaves(gradients()[t - 1])[i] * (name != SKIPS)
                np.testing.assert_allclose(leaves(params)[i][came], first[came], 1e-5)
                returned += back[i].sum()
        assert bool(returned) == bool(grows)

    def test_straight_through_moves_dense_weights(self):
        decay = 0.1
        trail = run(make(ste(decay=decay), cubic(2, 8, every=2)))
        dense = [np.array(w) for w in leaves(initial())]
        masks = [np.ones(w.shape, bool) for w in dense]
        traces = [np.zeros_like(w) for w in dense]
        levels = {2: 72, 4: 37, 6: 23, 8: 22}
        for t, gradient in enumerate(gradients(), 1):
            for i, g in enumerate(leaves(gradient)):
                seen = g + np.float32(decay) * dense[i] * ~masks[i]
                traces[i] = seen + np.float32(BETA) * traces[i]
                dense[i] = dense[i] - np.float32(RATE) * traces[i]
            if t in levels:
                everywhere = [np.ones(w.shape, bool) for w in dense]
                masks = prune(dense, everywhere, levels[t])
            params, state = trail[t]
            for i in range(2):
                np.testing.assert_array_equal(leaves(masks_of(state))[i], masks[i])
                np.testing.assert_allclose(
                    leaves(state.extras["dense"])[i], dense[i], rtol=1e-4, atol=1e-6
                )
                np.testing.assert_allclose(
                    leaves(params)[i], dense[i] * masks[i], rtol=1e-4, atol=1e-6
                )
                assert not leaves(params)[i][~masks[i]].any()

    def test_moments_are_new_where_weights_are_and_stay_where_they_come_back(self):
        trail = run(make(granet(), GRADUAL, optax.adam(1e-3)))
        seen = {"new": 0, "back": 0}
        for t in (2, 4, 6, 8):
            (start, before), (params, state) = trail[t - 1], trail[t]
            old, now = leaves(masks_of(before)), leaves(masks_of(state))
            pruned = prune(leaves(start), old, keep_at(t))
            means = [leaves(s.inner[0].mu) for s in (before, state)]
            squares = [leaves(s.inner[0].nu) for s in (before, state)]
            fraction = cosine(0.5, 0.005, t, STEPS)
            for i, g in enumerate(leaves(gradients()[t - 1])):
                mask, back = exchange(leaves(start)[i], np.abs(g), pruned[i], fraction)
                np.testing.assert_array_equal(mask, now[i])
                came = now[i] & ~old[i]
                # As if they had been zero so far.
                np.testing.assert_allclose(means[1][i][came], 0.1 * g[came], rtol=1e-5)
                np.testing.assert_allclose(
                    squares[1][i][came], 0.001 * g[came] ** 2, rtol=1e-4
                )
                np.testing.assert_allclose(
                    means[1][i][back],
                    (0.9 * means[0][i] + 0.1 * g)[back],
                    rtol=1e-4,
                    atol=1e-7,
                )
                assert means[0][i][back].all()
                assert leaves(params)[i][back].all()
                assert not means[1][i][~now[i]].any()
                assert not squares[1][i][~now[i]].any()
                seen["new"] += came.sum()
                seen["back"] += back.sum()
        assert all(seen.values())


@pytest.mark.parametrize("rule", [gmp(), rigl(), granet_st(), acdc()], ids=str)
def test_an_optimizer_is_shown_no_weight_that_goes_or_comes(rule):
    """Norms of params, decay and copies of them must not have what is not there."""
    spy = optax.GradientTransformation(lambda p: p, lambda g, s, p: (g, p))
    schedule = constant(1, 8, every=1) if rule.name in ("rigl", "acdc") else cubic(1, 8)
    trail = run(make(rule, schedule, spy))
    changed = 0
    for (start, before), (_, state) in itertools.pairwise(trail):
        for was, seen, old, now in zip(
            *map(leaves, (start, state.inner, masks_of(before), masks_of(state))),
            strict=True,
        ):
            np.testing.assert_array_equal(seen, was * (old & now))
            changed += (old != now).sum()
    assert changed


regenerate = jax.jit(granet().choose, compiler_options=QUICK)
VALUES = st.sampled_from((0.0, -0.0, 1.0, -1.0, 2.0, 1e-45, np.nan, np.inf))


@given(
    st.lists(VALUES, min_size=24, max_size=24),
    st.lists(st.booleans(), min_size=24, max_size=24),
    st.lists(st.booleans(), min_size=24, max_size=24),
    st.floats(0, 0.99),
    st.floats(0, 1),
)
def test_counts_are_exact_whatever_weights_and_gradients_are(
    values, active, allowed, share, fraction
):
    numbers = jnp.asarray(values, jnp.float32)
    within = np.asarray(allowed) | np.asarray(active)
    cut = lambda x: (jnp.asarray(x[:15]).reshape(3, 5), jnp.asarray(x[15:]))  # noqa: E731
    # No floors here: leaves without an active entry have none to keep.
    keep = int(share * sum(active))
    new = regenerate(
        MaskStep(
            cut(numbers), cut(numbers[::-1]), cut(np.asarray(active)), cut(within),
            Budget(jnp.asarray([keep]), (0, 0), (0, 0)), jnp.float32(fraction), KEY,
        )
    )  # fmt: skip
    assert sum(int(m.sum()) for m in new) == keep
    assert not any((m & ~w).any() for m, w in zip(new, cut(within), strict=True))


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
                leaves(s.extras["dense"]), leaves(q), leaves(p), strict=True
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
        everywhere = [np.ones(w.shape, bool) for w in leaves(dense)]
        masks = prune(leaves(dense), everywhere, 22)
        assert equal(leaves(masks_of(trail[-1][1])), masks)


PLANNED = {
    "gmp": (gmp(), GRADUAL),
    "rigl": (rigl(), STEADY),
    "granet": (granet(), GRADUAL),
}


def faint():
    """Params of which the second kernel is far smaller than the first."""
    params = initial()
    params["b"]["kernel"] *= 1e-3
    return params


@pytest.mark.parametrize("name", PLANNED)
class TestPlans:
    """What a plan promises holds after every mask step."""

    def test_patterns(self, name):
        rule, schedule = PLANNED[name]
        pattern = NM(1, 3)
        plan = swapjax.plan(initial(), pattern=pattern)
        trail = run(make(rule, schedule, plan=plan))
        for t, (_, state) in enumerate(trail):
            n = {0: 3, 1: 3, 2: 2, 3: 2}.get(t, 1) if name != "rigl" else 1
            for mask in leaves(masks_of(state)):
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
        plan = swapjax.plan(initial(), FINAL, overrides={"b/kernel": 0.5})
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
        inside = jax.tree.map(lambda x: jnp.asarray(draw(x.shape) < 0.6), initial())
        trail = run(make(rule, schedule, within=inside))
        room = sum(m.sum() for m in leaves(inside))
        for t, (_, state) in enumerate(trail):
            for mask, there in zip(
                leaves(masks_of(state)), leaves(inside), strict=True
            ):
                assert not (mask & ~there).any()
            wanted = 22 if name == "rigl" or t >= 8 else 72
            if name != "rigl" and 2 <= t < 8:
                wanted = keep_at(t - t % 2)
            assert sum(counts(state)) == min(wanted, room)
