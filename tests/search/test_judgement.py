"""Ranks, random search and repeats, beside slow references that are obvious."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score

from swapjax.search.chance import random_search
from swapjax.search.genotype import Genotype
from swapjax.search.judgement import evaluate, kendall, ndcg, percentile, spearman
from swapjax.search.seeds import repeats

# Few values, so that many are tied.
VECTORS = st.integers(2, 12).flatmap(
    lambda n: st.tuples(*[st.lists(st.integers(0, 5), min_size=n, max_size=n)] * 2)
)


def ranks(values):
    """The mean place of each among all, by comparing all pairs."""
    return [
        sum(other < value for other in values)
        + (sum(other == value for other in values) + 1) / 2
        for value in values
    ]


def correlation(a, b):
    a, b = np.array(a) - np.mean(a), np.array(b) - np.mean(b)
    return sum(a * b) / math.sqrt(sum(a**2) * sum(b**2))


def tau_b(a, b):
    pairs = list(itertools.combinations(range(len(a)), 2))
    signs = [(np.sign(a[i] - a[j]), np.sign(b[i] - b[j])) for i, j in pairs]
    apart = [sum(x != 0 for x, _ in signs), sum(y != 0 for _, y in signs)]
    return sum(x * y for x, y in signs) / math.sqrt(apart[0] * apart[1])


@given(VECTORS)
def test_ranks_agree_with_all_pairs(vectors):
    a, b = (np.array(v, float) for v in vectors)
    if len(set(a)) == 1 or len(set(b)) == 1:
        assert math.isnan(spearman(a, b))
        return
    assert spearman(a, b) == pytest.approx(correlation(ranks(a), ranks(b)))
    assert kendall(a, b) == pytest.approx(tau_b(a, b))


@given(VECTORS, st.integers(1, 12))
def test_ndcg_is_that_of_scikit_learn(vectors, at):
    scores, accuracies = (np.array(v, float) for v in vectors)
    if len(set(accuracies)) == 1:
        assert math.isnan(ndcg(scores, accuracies, at=at))
        return
    gains = accuracies - accuracies.min()
    wanted = ndcg_score(gains[None], scores[None], k=at)
    assert ndcg(scores, accuracies, at=at) == pytest.approx(wanted)


@given(VECTORS, st.integers(1, 12))
def test_random_search_is_the_mean_over_all_subsets(vectors, draws):
    accuracies, validation = (np.array(v, float) for v in vectors)
    if draws > len(accuracies):
        with pytest.raises(ValueError, match="draws must be at most the"):
            random_search(accuracies, validation, draws=draws)
        return
    found = []  # one accuracy for each subset; of several that are best, their mean
    squares = []
    for subset in itertools.combinations(range(len(accuracies)), draws):
        rows = list(subset)
        best = accuracies[rows][validation[rows] == validation[rows].max()]
        found.append(best.mean())
        squares.append((best**2).mean())
    chance = random_search(accuracies, validation, draws=draws)
    assert chance.mean == pytest.approx(np.mean(found))
    spread = max(np.mean(squares) - np.mean(found) ** 2, 0.0)
    assert chance.std == pytest.approx(math.sqrt(spread), abs=1e-6)


def test_a_perfect_score_leaves_no_regret_and_its_negative_all():
    accuracies = np.array([10.0, 90.0, 50.0, 70.0])
    best = evaluate(3 * accuracies - 7, accuracies, resamples=0)
    assert (best.cells, best.chosen, best.regret) == (4, 90.0, 0.0)
    assert best.percentile == 87.5
    values = [best.spearman.value, best.kendall.value, best.ndcg.value]
    assert values == pytest.approx([1, 1, 1])
    worst = evaluate(-accuracies, accuracies, top=0.25, resamples=0)
    assert (worst.chosen, worst.regret, worst.percentile) == (10.0, 80.0, 12.5)
    assert [worst.spearman.value, worst.kendall.value] == pytest.approx([-1, -1])
    assert worst.ndcg.value == 0
    assert math.isnan(worst.spearman.low)


def test_scores_that_share_the_top_choose_their_mean():
    found = evaluate([1, 2, 2, 0], [10, 20, 40, 70], resamples=0)
    assert (found.chosen, found.regret) == (30.0, 40.0)
    assert percentile(30.0, [10, 20, 40, 70]) == 50


def test_intervals_cover_as_often_as_they_say_and_repeat():
    rng = np.random.default_rng(1)
    truth, inside = 6 / math.pi * math.asin(0.6 / 2), 0  # of normals correlated by 0.6
    for _ in range(30):
        a, noise = rng.normal(size=(2, 40))
        found = evaluate(
            a, 0.6 * a + 0.8 * noise, resamples=60, confidence=0.8
        ).spearman
        assert found.low <= found.value <= found.high
        inside += found.low <= truth <= found.high
    assert 18 <= inside <= 29
    one, two, other = (evaluate(a, noise, resamples=9, seed=s) for s in (3, 3, 4))
    assert one == two != other


@pytest.mark.parametrize(
    ("scores", "accuracies", "options", "saying"),
    [
        ([1, 2], [1, 2, 3], {}, r"of one length, 2 or more, got shapes \(2,\) and"),
        ([[1, 2]], [[1, 2]], {}, "two vectors of one length"),
        ([1], [1], {}, "two vectors of one length"),
        ([1, math.nan, 2], [1, 2, 3], {}, "scores must be finite, got 1 of 3"),
        ([0, 0, 0], [1, 2, 3], {}, "scores must differ to rank anything, got 0 for"),
        ([1, 2, 3], [7, 7, 7], {}, "accuracies must differ to rank anything, got 7"),
        ([1, 2], [1, 2], {"top": 0}, r"top must be in \(0, 1\]"),
        ([1, 2], [1, 2], {"resamples": -1}, "resamples must be 0 or more"),
        ([1, 2], [1, 2], {"confidence": 1}, "confidence must be in"),
    ],
)
def test_what_ranks_nothing_is_refused(scores, accuracies, options, saying):
    with pytest.raises(ValueError, match=saying):
        evaluate(scores, accuracies, **options)


def test_random_search_refuses_what_is_no_table():
    with pytest.raises(ValueError, match=r"got shapes \(2,\) and \(3,\)"):
        random_search([1, 2], [1, 2, 3])
    with pytest.raises(ValueError, match="must be finite"):
        random_search([1, math.inf])
    with pytest.raises(ValueError, match="draws must be 1 or more"):
        random_search([1, 2], draws=0)


def cell(*ops):
    """Of two operations on the edges (0, 1), (0, 2), (1, 2), all of which are there."""
    return Genotype((("cell", tuple(zip((0, 0, 1), (1, 2, 2), ops, strict=False))),))


def test_repeats_count_pairs():
    found = repeats([cell(*ops) for ops in ("aab", "aab", "abc", "ddd")])
    assert found[:3] == (4, 3, 2)
    assert found.same == pytest.approx(1 / 6)
    assert found.parts == pytest.approx((3 + 1 + 1 + 0 + 0 + 0) / 18)
    assert repeats([cell("a", "b")] * 2)[3:] == (1, 1)


def test_repeats_compare_edges_and_not_places():
    """In DARTS other edges may be chosen, so that equal ones stand elsewhere."""
    one = ((0, 2, "a"), (1, 2, "a"), (2, 3, "b"))
    other = ((1, 2, "a"), (2, 3, "b"), (2, 4, "a"))
    cells = [Genotype((("normal", x), ("reduce", one))) for x in (one, other)]
    assert repeats(cells).parts == pytest.approx(5 / 6)


@pytest.mark.parametrize(
    ("choices", "saying"),
    [
        (["ab"], "of 2 searches or more, got 1"),
        (["ab", "a"], r"same number of operations, 1 or more, got \[1, 2\]"),
        (["", ""], r"got \[0\]"),
    ],
)
def test_what_cannot_be_compared_is_refused(choices, saying):
    with pytest.raises(ValueError, match=saying):
        repeats([cell(*ops) for ops in choices])
