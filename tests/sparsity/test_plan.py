"""Plans: which leaves, and counts that are exact."""

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import assume, given
from hypothesis import strategies as st

from swapjax import NM, Channel
from swapjax.sparsity.planned import planned
from swapjax.sparsity.planning import plan


def shaped(*shapes, dtype=jnp.float32):
    """Leaves w0, w1, ... that take no memory."""
    return {f"x{i}": jax.ShapeDtypeStruct(s, dtype) for i, s in enumerate(shapes)}


def network():
    return {
        "fc1": {"kernel": jnp.ones((6, 5)), "bias": jnp.ones(5)},
        "fc2": {"kernel": jnp.ones((5, 4)), "bias": jnp.ones(4)},
    }


def halves_up(value):
    return math.floor(value + Fraction(1, 2))


def counts(target):
    """What each leaf keeps, for plans without groups of several."""
    return [target.keep[group] for group in target.groups]


def levelled(total, weights, sizes, floors):
    """Shares of a total in proportion to weight x size within bounds, by bisection."""
    low, high = 0.0, 1e9
    for _ in range(300):
        level = (low + high) / 2
        shares = np.clip(level * np.array(weights) * sizes, floors, sizes)
        low, high = (level, high) if shares.sum() < total else (low, level)
    return shares


# Which leaves.


@pytest.mark.parametrize(
    ("params", "paths"),
    [
        (network(), ("fc1/kernel", "fc2/kernel")),
        (
            nnx.state(nnx.Conv(2, 3, (3, 3), rngs=nnx.Rngs(0))),
            ("kernel",),
        ),
        (
            {"conv1.weight": jnp.ones((2, 3, 3, 3)), "bn1.weight": jnp.ones(2)},
            ("conv1.weight",),
        ),
        (
            {"proj": {"my_kernel": jnp.ones((2, 2)), "weight": jnp.ones((2, 2))}},
            ("proj/weight",),
        ),
    ],
)
def test_kernels_and_weights_of_rank_two_are_prunable(params, paths):
    assert plan(params, 0.5).layout.paths == paths


@pytest.mark.parametrize(
    ("rules", "paths"),
    [
        ({"include": "bias"}, ("fc1/bias", "fc2/bias")),
        ({"include": "^fc1"}, ("fc1/bias", "fc1/kernel")),
        ({"include": ["fc1/kernel", "fc2/bias"]}, ("fc1/kernel", "fc2/bias")),
        ({"include": lambda path, leaf: leaf.size == 20}, ("fc2/kernel",)),
        ({"exclude": "fc1"}, ("fc2/kernel",)),
        ({"exclude": ["fc2", "bias"]}, ("fc1/kernel",)),
        ({"exclude": lambda path, leaf: leaf.size > 20}, ("fc2/kernel",)),
        ({"include": ".", "exclude": ("fc1",)}, ("fc2/bias", "fc2/kernel")),
    ],
)
def test_rules_take_leaves_in_and_out(rules, paths):
    assert plan(network(), 0.5, **rules).layout.paths == paths


def test_a_bare_array_has_to_be_included():
    with pytest.raises(ValueError, match="no leaf is known as a matrix"):
        plan(jnp.ones((3, 3)), 0.5)
    assert plan(jnp.ones((3, 3)), 0.5, include="^$").kept == 5


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"include": "fc3"}, "include: 'fc3' matches none of fc1/bias, fc1/kernel"),
        ({"include": ["fc1", "conv"]}, "include: 'conv' matches none"),
        ({"include": lambda path, leaf: False}, "include: the rule matches none"),
        ({"include": []}, "nothing to prune"),
        ({"exclude": "fc3"}, "exclude: 'fc3' matches none"),
        ({"exclude": lambda path, leaf: False}, "exclude: the rule matches none"),
        ({"exclude": "kernel"}, "nothing to prune of fc1/bias"),
        ({"overrides": {"fc3": 0.5}}, "overrides: 'fc3' matches none of fc1/kernel"),
        ({"overrides": {"bias": 0.5}}, "overrides: 'bias' matches none of fc1/kernel"),
        ({"include": "fc["}, r"include: 'fc\[' is not a regular expression"),
        ({"exclude": "("}, r"exclude: '\(' is not a regular expression"),
        ({"overrides": {"*": 0.5}}, r"overrides: '\*' is not a regular expression"),
        ({"overrides": {"fc1": 0.5, "kernel": 0.5}}, "two of the rules match fc1/k"),
        ({"overrides": {"fc1": 1.0}}, r"overrides\['fc1'\] must be in \[0, 1\)"),
        ({"overrides": {"fc1": 0.0}}, "can keep 20 at most and 1 at least .*not -5"),
        ({"overrides": {"fc1": 0.9}}, "can keep 20 at most and 1 at least .*not 22"),
        ({"overrides": {"fc1": 0.5, "fc2": 0.4}}, r"no other layers can keep 0"),
        ({"min_keep": 13}, r"keeps 25 of 50 entries.* 26 at least"),
        ({"min_keep": -1}, "min_keep must not be negative"),
        ({"allocation": "fair"}, "allocation must be 'global', 'uniform' or 'erk'"),
        ({"allocation": {"fc1/kernel": 0.5}}, "has no sparsity for fc2/kernel"),
        ({"allocation": {"fc1": 0.5}}, "allocation: fc1 is no layer among fc1/kernel"),
        (
            {"allocation": {"fc1/kernel": 1.5, "fc2/kernel": 0.5}},
            r"allocation\['fc1/kernel'\] must be in \[0, 1\)",
        ),
    ],
)
def test_what_cannot_be_is_an_error_before_work_starts(rules, message):
    with pytest.raises(ValueError, match=message):
        plan(network(), 0.5, **rules)


@pytest.mark.parametrize("sparsity", [1.0, -0.1, 90, math.nan, math.inf, Fraction(1)])
def test_sparsity_outside_its_range_is_an_error(sparsity):
    with pytest.raises(ValueError, match=r"sparsity must be in \[0, 1\)"):
        plan(network(), sparsity)
    with pytest.raises(ValueError, match=r"sparsity must be in \[0, 1\)"):
        plan(network(), 0.5).at(sparsity)


def test_integers_cannot_be_pruned():
    params = {"a": jnp.ones((2, 2)), "steps": jnp.arange(3)}
    with pytest.raises(TypeError, match="steps holds int32, only floats"):
        plan(params, 0.5, include=".")


def test_empty_leaves_are_harmless_among_others_only():
    params = {"a": {"kernel": jnp.ones((0, 3))}, "b": {"kernel": jnp.ones((4, 5))}}
    for allocation in ("global", "uniform", "erk"):
        target = plan(params, 0.5, allocation=allocation)
        assert (target.kept, target.floors) == (10, (0, 1))
    with pytest.raises(ValueError, match="nothing to prune, a/kernel are empty"):
        plan({"a": params["a"]}, 0.5)
    with pytest.raises(ValueError, match="no leaf is known"):
        plan({}, 0.5)


# How many entries.


@pytest.mark.parametrize(
    ("side", "sparsity", "kept"),
    [
        ((10, 10), 0.9, 10),
        ((10, 10), 0.994, 1),
        ((1, 5), 0.5, 3),
        ((1, 7), 0.5, 4),
        ((3, 3), 0.0, 9),
        ((3, 3), Fraction(1, 3), 6),
        ((4097, 4099), 0.1, 15_114_243),
        ((2**16, 2**15 - 1), 0.999, 2_147_418),
        ((2**20, 2**20), 0.999999, 1_099_512),
    ],
)
def test_counts_are_exact_at_any_size(side, sparsity, kept):
    target = plan(shaped(side), sparsity, include=".")
    assert target.kept == kept == halves_up(target.layout.total * (1 - target.sparsity))


def test_a_float_is_the_decimal_it_prints_as():
    # In binary, 1 - 0.9 is a little below a tenth and 0.3 a little below 3/10.
    assert plan(shaped((5, 1)), 0.9, include=".").sparsity == Fraction(9, 10)
    assert plan(shaped((5, 1)), 0.7, include=".").kept == 2


def test_overrides_count_towards_an_exact_total():
    params = shaped((10, 10), (20, 10), (5, 5))
    overrides = {"x0": 0.25, "x2": 0.0}
    for allocation in ("global", "uniform", "erk"):
        target = plan(
            params, 0.5, include=".", overrides=overrides, allocation=allocation
        )
        assert counts(target) == [75, 63, 25]
        assert target.kept == 163


def test_uniform_gives_each_leaf_the_same_density():
    target = plan(shaped((10, 10), (30, 10), (7,)), 0.9, include=".",
                  allocation="uniform")  # fmt: skip
    assert counts(target) == [10, 30, 1]


def test_erk_densities_follow_the_sums_of_dimensions():
    shapes = ((100, 200), (300, 50), (3, 3, 16, 64))
    target = plan(shaped(*shapes), 0.9, include=".", allocation="erk")
    weights = [sum(s) / math.prod(s) for s in shapes]
    levels = [
        kept / size / weight
        for kept, size, weight in zip(
            counts(target), target.layout.sizes, weights, strict=True
        )
    ]
    np.testing.assert_allclose(levels, levels[0], rtol=2e-3)


def test_erk_fills_small_leaves_and_gives_the_rest_to_the_others():
    target = plan(shaped((5, 4), (200, 100), (300, 100)), 0.5, include=".",
                  allocation="erk")  # fmt: skip
    small, *large = counts(target)
    assert small == 20
    assert sum(large) == 25_010 - 20
    assert large[0] / large[1] == pytest.approx(300 / 400, rel=1e-3)


@pytest.mark.parametrize("allocation", ["uniform", "erk"])
def test_an_entry_is_kept_rather_than_one_of_nothing(allocation):
    target = plan(shaped((0,), (1,)), 0.2, include=".", allocation=allocation)
    assert counts(target) == [0, 1]


def test_leaves_without_axes_are_never_pruned():
    """The scalar that would be their mask is that of a leaf never pruned."""
    params = shaped((4, 5), (), (3,))
    assert plan(params, 0.5, include=".").layout.paths == ("x0", "x2")
    assert plan(params, 0.5, include=lambda p, x: True).layout.total == 23
    assert plan(params, 0.5, include=".", exclude="x1").layout.total == 23
    with pytest.raises(
        ValueError, match=r"include: 'x1' matches only x1 of shape \(\)"
    ):
        plan(params, 0.5, include=["x0", "x1"])
    with pytest.raises(ValueError, match="leave nothing to prune of x0, x1, x2"):
        plan(params, 0.5, include=lambda path, _: path == "x1")


@pytest.mark.parametrize("allocation", ["uniform", "erk"])
def test_no_leaf_falls_below_its_floor(allocation):
    target = plan(shaped((2, 2), (3,), (90, 90)), 0.99, include=".",
                  allocation=allocation, min_keep=4)  # fmt: skip
    assert target.floors == (4, 3, 4)
    assert counts(target) == [4, 3, 81 - 7]


shapes = st.lists(
    st.lists(st.integers(0, 9), min_size=1, max_size=4).map(tuple),
    min_size=1,
    max_size=6,
).filter(lambda drawn: any(math.prod(shape) for shape in drawn))
sparsities = st.fractions(0, 1, max_denominator=10_000).filter(lambda s: s < 1)


@given(shapes, sparsities, st.sampled_from(["uniform", "erk"]), st.integers(0, 3))
def test_shares_are_exact_within_bounds_and_proportional(
    drawn, sparsity, allocation, min_keep
):
    sizes = [math.prod(shape) for shape in drawn]
    floors = [min(min_keep, size) for size in sizes]
    wanted = halves_up(sum(sizes) * (1 - sparsity))
    options = {"include": ".", "allocation": allocation, "min_keep": min_keep}
    if wanted < sum(floors):
        with pytest.raises(ValueError, match="min_keep"):
            plan(shaped(*drawn), sparsity, **options)
        return
    target = plan(shaped(*drawn), sparsity, **options)
    kept = counts(target)
    assert target.kept == wanted
    assert all(f <= k <= n for f, k, n in zip(floors, kept, sizes, strict=True))
    weights = [
        sum(s) / math.prod(s) if allocation == "erk" and s and math.prod(s) else 1.0
        for s in drawn
    ]
    reference = levelled(wanted, weights, np.array(sizes), np.array(floors))
    assert np.max(np.abs(reference - kept)) < 1 + 1e-6


@given(shapes, st.data(), sparsities, st.integers(0, 2))
def test_sparsities_by_name_share_in_proportion_to_what_they_leave(
    drawn, data, sparsity, min_keep
):
    sizes = [math.prod(shape) for shape in drawn]
    floors = [min(min_keep, size) for size in sizes]
    wanted = halves_up(sum(sizes) * (1 - sparsity))
    assume(wanted >= sum(floors))
    chosen = st.floats(0, 0.99)
    by_name = {f"x{i}": data.draw(chosen) for i in range(len(drawn))}
    options = {"include": ".", "allocation": by_name, "min_keep": min_keep}
    target = plan(shaped(*drawn), sparsity, **options)
    assert target.kept == wanted
    weights = [1 - by_name[path] for path in target.paths]
    reference = levelled(wanted, weights, np.array(sizes), np.array(floors))
    assert np.max(np.abs(reference - counts(target))) < 1 + 1e-6


def test_sparsities_by_name_are_reached_with_the_whole():
    by_name = {"x0": 0.8, "x1": 0.2}
    target = plan(shaped((10, 10), (100,)), 0.5, allocation=by_name, include=".")
    assert target.keep == (20, 80)
    assert target.at(0.25).keep == (60, 90)
    assert target.at(0.95).keep == (2, 8)
    assert "by layer" in str(target)


def test_a_leaf_names_all_its_layers_and_units_go_by_the_first():
    leaf = lambda *shape: {"kernel": jnp.ones(shape)}  # noqa: E731
    stack = {"blocks": leaf(3, 4, 8), "out": leaf(8, 8)}
    by_leaf = {"blocks/kernel": 0.25, "out/kernel": 0.625}
    target = plan(stack, 0.4, allocation=by_leaf)
    assert target.keep == (24, 24, 24, 24)
    layers = {f"blocks/kernel[{i}]": 0.25 for i in range(3)} | {"out/kernel": 0.625}
    assert plan(stack, 0.4, allocation=layers) == target
    channels = plan(stack, 0.4, allocation=by_leaf, pattern=Channel())
    assert channels.keep == (24, 24, 24, 24)
    with pytest.raises(ValueError, match="allocation: the pattern 2:4 leaves nothing"):
        plan(stack, allocation=by_leaf, pattern=NM(2, 4))


@given(
    shapes,
    st.data(),
    st.sampled_from(["global", "uniform", "erk"]),
    st.lists(sparsities, min_size=6, max_size=6),
)
def test_every_stage_on_the_way_is_exact_with_overrides(
    drawn, data, allocation, by_name
):
    chosen = data.draw(st.sets(st.integers(0, len(drawn) - 1), max_size=len(drawn)))
    sizes = [math.prod(shape) for shape in drawn]
    fixed = sum(max(halves_up(sizes[i] * (1 - by_name[i])), min(1, sizes[i]))
                for i in chosen)  # fmt: skip
    rest = [sizes[i] for i in range(len(drawn)) if i not in chosen]
    left = data.draw(st.integers(sum(min(1, n) for n in rest), sum(rest)))
    if not fixed + left:
        return
    target = plan(
        shaped(*drawn),
        1 - Fraction(fixed + left, sum(sizes)),
        include=".",
        overrides={f"^x{i}$": by_name[i] for i in chosen},
        allocation=allocation,
    )
    assert target.kept == fixed + left
    for share in data.draw(st.lists(st.fractions(0, 1), max_size=5)):
        stage = target.at(target.sparsity * share)
        assert stage.kept == halves_up(stage.layout.total * (1 - stage.sparsity))
        assert stage.kept >= target.kept
    assert target.at(target.sparsity).keep == target.keep


def test_overrides_shrink_on_the_way():
    target = plan(shaped((10, 10), (10, 30)), 0.8, include=".", overrides={"x0": 0.4})
    half = target.at(0.4)
    assert half.overrides == (Fraction(1, 5), None)
    assert counts(half) == [80, 160]
    assert counts(target.at(0)) == [100, 300]
    assert counts(plan(shaped((4, 5)), 0.5, include=".").at(0.9)) == [2]


def test_rounded_overrides_leave_the_others_no_more_than_they_have():
    # Rounded one by one, both would keep 99 of their 100 and w2 101 of its 100.
    target = plan(shaped((10, 10), (10, 10), (10, 10)), 0.2, include=".",
                  overrides={"x0": 0.3, "x1": 0.3})  # fmt: skip
    assert sorted(counts(target.at(0.0034))) == [99, 100, 100]


# What a plan says.


def test_plans_that_ask_the_same_are_equal():
    asked = plan(network(), 0.5)
    assert asked == plan(network(), 0.5)
    assert hash(asked) == hash(plan(network(), 0.5))
    assert repr(asked) == repr(plan(network(), 0.5))
    assert asked != plan({"net": network()}, 0.5)
    assert asked != plan(network(), 0.5, exclude="fc1")
    assert asked != plan(network(), 0.6)


def test_a_plan_goes_onto_a_tree_of_the_same_paths():
    params = {"w": [jnp.ones((2, 3)), jnp.ones((3, 4))]}
    made = plan(params, 0.5, include="w")
    other = {"w": tuple(params["w"])}
    moved = made.onto(other)
    assert moved.layout == made.layout.onto(other) != made.layout
    assert moved.keep == made.keep
    assert moved.onto(params) == made


def test_a_budget_has_the_counts_of_the_plan():
    budget = plan(network(), 0.5, allocation="uniform").budget
    assert budget.keep.dtype == jnp.int32
    assert budget.keep.tolist() == [15, 10]
    assert (budget.groups, budget.floors) == ((0, 1), (1, 1))


def test_printing_a_plan_tells_what_will_happen():
    text = str(plan(network(), 0.5, overrides={"fc1": 0.4}, allocation="erk"))
    assert text.splitlines() == [
        "leaf        shape  stack  inputs  outputs  entries  keeps  rule",
        "fc1/kernel    6x5              6        5       30     18  0.4",
        "fc2/kernel    5x4              5        4       20      7  erk",
        "all                                             50     25",
        "stack, inputs and outputs are told by Flax Dense kernel",
        "left out, a bias: fc1/bias, fc2/bias",
    ]
    shared = str(plan(network(), 0.5)).splitlines()
    assert shared[1].split() == ["fc1/kernel", "6x5", "6", "5", "30", "global"]


class TestPlanned:
    """A sparsity or a plan, as every door takes them."""

    def test_takes_either(self):
        params = {"kernel": jnp.ones((4, 5))}
        assert planned(params, 0.5, None).kept == 10
        made = plan(params, 0.8)
        assert planned(params, None, made) == made

    @pytest.mark.parametrize(
        ("sparsity", "given", "message"),
        [
            (None, None, "sparsity or plan: give one of the two, got neither"),
            (0.5, "plan", r"give one of the two, got sparsity=0\.5 and a plan"),
            ("plan", None, "sparsity: got a Plan; hand it over as plan="),
            (None, 0.5, r"plan must be what swapjax\.plan makes, got 0\.5"),
        ],
    )
    def test_says_what_is_wrong(self, sparsity, given, message):
        params = {"kernel": jnp.ones((4, 5))}
        made = plan(params, 0.8)
        sparsity, given = (made if x == "plan" else x for x in (sparsity, given))
        with pytest.raises(ValueError, match=message):
            planned(params, sparsity, given)
