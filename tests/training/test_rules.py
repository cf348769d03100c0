"""What rules drop and grow, against sorts with NumPy, and rules against each other."""

import inspect
import itertools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from network import kernels
from rule_runs import (
    BETA,
    GRADUAL,
    MASK_STEPS,
    RATE,
    STEADY,
    keep_at,
    make,
    ranked,
    run,
    strongest,
)
from sparse_runs import KEY, QUICK, STEPS, gradients, initial

from swapjax import constant, cubic
from swapjax.sparsity.budget import Budget
from swapjax.sparsity.schedules import Schedule
from swapjax.training import (
    MaskStep,
    acdc,
    gmp,
    granet,
    granet_st,
    masks_of,
    random_score,
    rigl,
    rules,
    set_,
    ste,
)
from swapjax.training.rules import RULES

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
    "granet-st": (granet_st(), GRADUAL, "gradient", 0.5, 0.005, STEPS),
}


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


def oracle(name, masks, given):
    """Weights, masks and what went and came back, after every update."""
    _, _, grows, first, last, end = CASES[name]
    weights = [np.array(w) for w in kernels(initial())]
    traces = [np.zeros_like(w) for w in weights]
    for t, gradient in enumerate(given, 1):
        slopes = kernels(gradient)
        due = t % 2 == 0 and 2 <= t <= end
        old = masks
        weights = [w * m for w, m in zip(weights, masks, strict=True)]
        back = [np.zeros(m.shape, bool) for m in masks]
        if due:
            everywhere = [np.ones(m.shape, bool) for m in masks]
            if name == "acdc":
                sparse_now = MASK_STEPS.index(t) % 2 == 1
                masks = strongest(weights, everywhere, 22) if sparse_now else everywhere
            if name.startswith(("gmp", "granet")):
                masks = strongest(weights, masks, keep_at(t))
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
        assert rule.name == entry.name
        if entry.source:
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


class TestOracles:
    """Known gradients, and all by hand."""

    @pytest.mark.parametrize("name", CASES)
    def test_masks_and_weights_are_those_of_sorting(self, name):
        rule, schedule, grows, *_ = CASES[name]
        trail = run(make(rule, schedule))
        start = kernels(masks_of(trail[0][1]))
        if rule.begin != "random":
            assert all(m.all() for m in start)
        returned = 0
        steps = oracle(name, start, gradients())
        for t, (weights, masks, back) in enumerate(steps, 1):
            params, state = trail[t]
            for i in range(2):
                np.testing.assert_array_equal(kernels(masks_of(state))[i], masks[i], t)
                np.testing.assert_allclose(
                    kernels(params)[i], weights[i], rtol=1e-4, atol=1e-6
                )
                # From zero, and not from what they were.
                came = masks[i] & ~kernels(masks_of(trail[t - 1][1]))[i]
                first = -RATE * kernels(gradients()[t - 1])[i] * (name != SKIPS)
                np.testing.assert_allclose(kernels(params)[i][came], first[came], 1e-5)
                returned += back[i].sum()
        assert bool(returned) == bool(grows)

    def test_straight_through_moves_dense_weights(self):
        decay = 0.1
        trail = run(make(ste(decay=decay), cubic(2, 8, every=2)))
        dense = [np.array(w) for w in kernels(initial())]
        masks = [np.ones(w.shape, bool) for w in dense]
        traces = [np.zeros_like(w) for w in dense]
        levels = {2: 72, 4: 37, 6: 23, 8: 22}
        for t, gradient in enumerate(gradients(), 1):
            for i, g in enumerate(kernels(gradient)):
                seen = g + np.float32(decay) * dense[i] * ~masks[i]
                traces[i] = seen + np.float32(BETA) * traces[i]
                dense[i] = dense[i] - np.float32(RATE) * traces[i]
            if t in levels:
                everywhere = [np.ones(w.shape, bool) for w in dense]
                masks = strongest(dense, everywhere, levels[t])
            params, state = trail[t]
            for i in range(2):
                np.testing.assert_array_equal(kernels(masks_of(state))[i], masks[i])
                np.testing.assert_allclose(
                    kernels(state.extras["dense"])[i], dense[i], rtol=1e-4, atol=1e-6
                )
                np.testing.assert_allclose(
                    kernels(params)[i], dense[i] * masks[i], rtol=1e-4, atol=1e-6
                )
                assert not kernels(params)[i][~masks[i]].any()

    def test_moments_are_new_where_weights_are_and_stay_where_they_come_back(self):
        trail = run(make(granet(), GRADUAL, optax.adam(1e-3)))
        seen = {"new": 0, "back": 0}
        for t in (2, 4, 6, 8):
            (start, before), (params, state) = trail[t - 1], trail[t]
            old, now = kernels(masks_of(before)), kernels(masks_of(state))
            pruned = strongest(kernels(start), old, keep_at(t))
            means = [kernels(s.inner[0].mu) for s in (before, state)]
            squares = [kernels(s.inner[0].nu) for s in (before, state)]
            fraction = cosine(0.5, 0.005, t, STEPS)
            for i, g in enumerate(kernels(gradients()[t - 1])):
                mask, back = exchange(kernels(start)[i], np.abs(g), pruned[i], fraction)
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
                assert kernels(params)[i][back].all()
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
            *map(kernels, (start, state.inner, masks_of(before), masks_of(state))),
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
