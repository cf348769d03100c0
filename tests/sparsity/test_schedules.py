"""Schedules against their formulas, in exact fractions."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swapjax.sparsity.schedules import (
    constant,
    cubic,
    exponential,
    geometric,
    linear,
    one_shot,
)

CLIMBS = (cubic, exponential, linear)
fractions = st.fractions(0, 1, max_denominator=1000).filter(lambda s: s < 1)
decimals = st.integers(0, 999).map(lambda n: n / 1000)


def formula(name, start, end, stages):
    t = np.arange(stages)
    left = {
        "cubic": (1 - t / (stages - 1)) ** 3,
        "exponential": 1 - (1 - 2.0**-t) / (1 - 2.0 ** (1 - stages)),
        "linear": 1 - t / (stages - 1),
    }[name]
    return end + (start - end) * left


@pytest.mark.parametrize("make", CLIMBS)
@pytest.mark.parametrize("stages", [2, 3, 8, 15])
def test_follows_its_formula(make, stages):
    table = make(initial=0.2).table(0.95, stages)
    wanted = formula(make.__name__, 0.2, 0.95, stages)
    np.testing.assert_allclose([float(s) for s in table], wanted, rtol=1e-12)


@given(st.sampled_from(CLIMBS), decimals, fractions, st.integers(2, 30))
def test_climbs_from_one_exact_end_to_the_other(make, initial, final, stages):
    table = make(initial=initial).table(final, stages)
    assert len(table) == stages
    assert table[0] == min(Fraction(repr(initial)), final)
    assert table[-1] == final
    assert list(table) == sorted(table)
    assert len(set(table)) == (stages if table[0] < final else 1)


@given(st.sampled_from(CLIMBS), decimals, fractions)
def test_one_stage_goes_straight_to_the_end(make, initial, final):
    assert make(initial=initial).table(final, 1) == (final,)


@pytest.mark.parametrize("make", CLIMBS)
def test_two_stages_are_the_two_ends(make):
    tenth, most = Fraction(1, 10), Fraction(95, 100)
    assert make(initial=0.1).table(0.95, 2) == (tenth, most)


@pytest.mark.parametrize("make", CLIMBS)
def test_an_initial_above_the_end_stays_at_the_end(make):
    assert make(initial=0.8).table(0.5, 4) == (Fraction(1, 2),) * 4


def test_the_defaults_start_where_they_say():
    assert cubic().table(0.9, 5)[0] == 0
    assert linear().table(0.9, 5)[0] == 0
    assert exponential().table(0.9, 5)[0] == Fraction(1, 10)


def test_exponential_halves_its_steps():
    table = exponential(initial=0.1).table(0.9, 6)
    steps = [b - a for a, b in itertools.pairwise(table)]
    assert all(a == 2 * b for a, b in itertools.pairwise(steps))


@given(fractions, st.integers(1, 120))
def test_geometric_keeps_the_same_share_at_every_stage(final, stages):
    table = geometric().table(final, stages)
    assert len(table) == stages
    assert table[-1] == final
    assert list(table) == sorted(table)
    wanted = float(1 - final) ** (np.arange(1, stages + 1) / stages)
    np.testing.assert_allclose([float(1 - s) for s in table], wanted, rtol=1e-13)


def test_geometric_is_exact_where_roots_are():
    assert geometric().table(0.99, 2) == (Fraction(9, 10), Fraction(99, 100))
    hundred = geometric().table(0.9999, 100)
    assert [hundred[t] for t in (24, 49, 74)] == [
        1 - Fraction(1, 10**k) for k in (1, 2, 3)
    ]
    assert geometric().table(0.0, 3) == (0, 0, 0)


def test_one_shot_is_at_the_end_from_the_first_stage():
    assert one_shot().table(0.9, 3) == (Fraction(9, 10),) * 3
    assert one_shot().table(0.9, 1) == (Fraction(9, 10),)


@pytest.mark.parametrize("make", CLIMBS)
@pytest.mark.parametrize("initial", [-0.1, 1.0, 2, math.nan, math.inf])
def test_an_initial_that_is_no_sparsity_is_an_error(make, initial):
    with pytest.raises(ValueError, match=r"initial must be in \[0, 1\)"):
        make(initial=initial)


@pytest.mark.parametrize("stages", [0, -3])
def test_no_stages_are_an_error(stages):
    with pytest.raises(ValueError, match=f"stages must be 1 or more, got {stages}"):
        cubic().table(0.5, stages)


def test_is_named_with_its_start():
    assert str(cubic()) == "cubic(initial=0)"
    assert str(exponential(initial=0.25)) == "exponential(initial=0.25)"


class TestSteps:
    """Schedules that count updates."""

    @given(
        st.sampled_from(CLIMBS),
        st.integers(0, 50),
        st.integers(0, 100),
        st.integers(1, 30),
        decimals,
        fractions,
    )
    def test_mask_steps_are_every_few_from_start_to_end(
        self, make, start, length, every, initial, final
    ):
        schedule = make(start, start + length, every=every, initial=initial)
        times = list(range(start, start + length + 1, every))
        assert schedule.mask_steps == len(times)
        # Levels are those of as many stages: the last mask step reaches the end.
        table = schedule.table(final, schedule.mask_steps)
        assert table == make(initial=initial).table(final, len(times))
        assert table[-1] == final

    def test_constant_and_one_shot_are_at_the_end_at_once(self):
        schedule = constant(3, 10, every=2)
        assert schedule.mask_steps == 4
        assert schedule.table(0.9, 4) == (Fraction(9, 10),) * 4
        assert one_shot(7).mask_steps == 1
        assert one_shot(7).start == one_shot(7).end == 7

    def test_stages_have_no_mask_steps(self):
        assert cubic().mask_steps == one_shot().mask_steps == 0
        assert cubic().start is one_shot().start is None

    def test_are_named_with_their_steps(self):
        named = "cubic(2, 8, every=3, initial=0.5)"
        assert str(cubic(2, 8, every=3, initial=0.5)) == named
        assert str(constant(0, 4, every=1)) == "constant(0, 4, every=1, initial=0)"
        assert str(one_shot(5)) == "one_shot(5, 5, every=1, initial=0)"

    @pytest.mark.parametrize("make", CLIMBS)
    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"start": 1}, "start, end: give both"),
            ({"end": 9}, "start, end: give both"),
            ({"every": 2}, "start, end: give both"),
            ({"start": 5, "end": 4}, "end must be 5, the start, or more, got 4"),
            ({"start": -1, "end": 4}, "start must be 0 or more"),
            ({"start": 0, "end": -2}, "end must be 0 or more"),
            ({"start": 0.5, "end": 4}, "start must be a whole number"),
            ({"start": 0, "end": 4.0}, "end must be a whole number"),
            ({"start": 0, "end": 4, "every": 0}, "every must be 1 or more"),
            ({"start": 0, "end": 4, "every": 1.5}, "every must be a whole number"),
        ],
    )
    def test_steps_that_cannot_be_are_errors(self, make, options, said):
        with pytest.raises(ValueError, match=said):
            make(**options)
