"""Operations go, lowest first, until a genotype is left."""

import dataclasses

import jax
import numpy as np
import pytest
from small_spaces import CLASSES, SHAPE

from swapjax import search
from swapjax.search import removal

KEY = jax.random.key(0)


def remove(space, score, **options):
    return search.remove(space, score, KEY, shape=SHAPE, classes=CLASSES, **options)


@pytest.fixture(scope="module")
def fixed(tiny):
    """Scores that are the same at all steps."""
    table = np.random.default_rng(0).permutation(30).reshape(6, 5) + 1.0
    table[:, 0] = 0
    return lambda theta, alpha: {"cell": table * np.asarray(alpha["cell"])}


@pytest.fixture(scope="module")
def pairs(tiny):
    """A space whose genotypes have two of the edges into each node, and never none."""
    return dataclasses.replace(tiny, kept=2, never=("none",))


def by_hand(table, steps, protect):
    """Remove by sorting everything anew at each step, in plain Python."""
    alive = {(e, o) for e in range(6) for o in range(1, 5)}
    total, counts = len(alive), []
    for step in range(1, steps + 1):
        safe = protect(alive)
        target = max(round(total * (len(safe) / total) ** (step / steps)), len(safe))
        for place in sorted(alive - safe, key=lambda p: table[p])[
            : len(alive) - target
        ]:
            alive.remove(place)
        counts.append(len(alive))
    return alive, tuple(counts)


@pytest.mark.parametrize("steps", [1, 3, 24])
def test_the_lowest_go_but_the_best_of_each_edge(tiny, fixed, steps):
    table = fixed(None, {"cell": np.ones((6, 5))})["cell"]

    def best(alive):
        return {
            max((p for p in alive if p[0] == e), key=lambda p: table[p])
            for e in range(6)
        }

    found = remove(tiny, fixed, steps=steps)
    alive, counts = by_hand(table, steps, best)
    left = {tuple(map(int, p)) for p in np.argwhere(found.survived["cell"] == steps)}
    assert left == alive
    assert found.counts == counts
    assert counts[-1] == 6
    assert found.genotype == tiny.genotype({"cell": table})
    np.testing.assert_array_equal(found.scores["cell"][:, 1:], table[:, 1:])


@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("scope", removal.SCOPES)
def test_as_many_edges_a_node_as_a_genotype_has(pairs, fixed, steps, scope):
    found = remove(pairs, fixed, steps=steps, scope=scope)
    assert found.counts[-1] == 5
    assert found.genotype == pairs.genotype(fixed(None, {"cell": np.ones((6, 5))}))


def test_edges_keep_pace_where_they_do_not_compete(tiny, fixed):
    found = remove(tiny, fixed, steps=2, scope="edge")
    assert found.counts == (12, 6)
    assert ((found.survived["cell"] >= 1).sum(1) == 2).all()


def test_one_step_takes_the_best_at_once_and_all_repeats(tiny):
    def score(theta, alpha):
        noise = np.asarray(theta["fc"]["kernel"]).ravel()
        return {"cell": alpha["cell"] * np.resize(noise, (6, 5))}

    once = remove(tiny, score)
    table = np.where(once.survived["cell"] < 0, -np.inf, once.scores["cell"])
    assert once.genotype == tiny.genotype({"cell": table})
    told = {"steps": 6, "redraw": True, "alpha": "random"}
    many, again = remove(tiny, score, **told), remove(tiny, score, **told)
    assert many.genotype == again.genotype
    np.testing.assert_array_equal(many.survived["cell"], again.survived["cell"])
    assert {op for _, _, op in many.genotype.of("cell")} <= set(tiny.ops) - {"none"}


def test_weights_are_drawn_anew_where_asked(tiny):
    seen = []

    def score(theta, alpha):
        seen.append(float(theta["stem"]["kernel"].sum()))
        return {"cell": np.asarray(alpha["cell"]) * np.arange(1, 6)}

    remove(tiny, score, steps=3)
    remove(tiny, score, steps=3, redraw=True)
    assert len(set(seen[:3])) == 1
    assert len(set(seen)) == 3


def test_equal_scores_go_by_the_order_of_the_space(tiny):
    found = remove(tiny, lambda theta, alpha: alpha, steps=4)
    assert {op for _, _, op in found.genotype.of("cell")} == {tiny.ops[1]}


@pytest.mark.parametrize(
    ("table", "options", "match"),
    [
        (np.nan, {}, "24 of 24 operations of cell score NaN or infinity"),
        (0.0, {}, r"best 4 operations on edge \(0, 1\) of cell tie at zero"),
        (0.0, {"keep_none": True}, "best 5 operations .* tie at zero"),
        (-np.arange(5.0), {"keep_none": True}, "all operations are none"),
        (1.0, {"steps": 0}, "steps must be 1 or more, got 0"),
        (1.0, {"scope": "cell"}, "scope must be one of global, edge, got 'cell'"),
        (1.0, {"alpha": "zeros"}, "alpha must be one of ones, random, got 'zeros'"),
    ],
)
def test_what_leaves_no_choice_is_told(tiny, table, options, match):
    with pytest.raises(ValueError, match=match):
        remove(tiny, lambda theta, alpha: {"cell": np.zeros((6, 5)) + table}, **options)


def test_scores_of_another_shape_are_told(tiny):
    for wrong in {"cell": np.ones((5, 6))}, {"normal": np.ones((6, 5))}:
        with pytest.raises(ValueError, match="scores must have shapes"):
            remove(tiny, lambda theta, alpha: wrong)  # noqa: B023
