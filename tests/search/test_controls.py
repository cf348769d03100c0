"""Choices and scores beside sizes and random search, on tables of a few cells."""

import math

import numpy as np
import pytest
from nas_tables import CELL, arrays
from small_spaces import CLASSES, SHAPE

from swapjax import search


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    path = tmp_path_factory.mktemp("tables") / "tables.npz"
    np.savez(path, **arrays())
    return search.load_tables(path)


def test_choices_stand_beside_the_largest_and_chance(tables):
    table = tables.table("nb201", "cifar10", 200)
    worse, better = table.genotypes
    other = tables.table("nb201", "cifar10", 12).genotypes[0]
    found = search.place(table, {"a": [better, other], "b": [worse, better]}, draws=[2])
    assert list(found) == [
        *("a", "b", "most params", "most flops", "random", "best of 2 random", "best"),
    ]  # fmt: skip
    assert found["a"].cells == 1  # the other is not in the table
    assert found["a"][1::2] == pytest.approx((91, 75))
    assert math.isnan(found["a"].std)
    assert found["b"] == pytest.approx((2, 90.5, math.sqrt(0.5), 50, 0.5))
    assert found["most params"].accuracy == 91
    assert (found["most flops"].accuracy, found["most flops"].regret) == (90, 1)
    assert found["random"][:3] == (0, 90.5, 0.5)
    assert found["best of 2 random"].accuracy == found["best"].accuracy == 91
    none = search.place(table, {"c": [other]}, draws=[3])
    assert none["c"].cells == 0
    assert math.isnan(none["c"].accuracy)
    assert "best of 3 random" not in none


def test_scores_are_judged_beside_sizes(tables):
    table = tables.table("nb201", "cifar10", 200)
    found = search.rank(table, {"good": np.array([1.0, 2.0])}, resamples=5)
    assert [r.spearman.value for r in found.values()] == pytest.approx([1, 1, -1])
    assert list(found) == ["good", "params", "flops"]
    with pytest.raises(ValueError, match="flat: scores must differ to rank"):
        search.rank(table, {"flat": np.zeros(2)})


def test_whole_architectures_score_the_sum_of_their_operations(tiny, tables):
    scores = {"cell": np.arange(30.0).reshape(6, 5)}
    genotypes = [tiny.parse(CELL), tables.table("nb201", "cifar10").genotypes[0]]
    # 3x3, none, pooling, skip, none, none; none everywhere and skip on the last edge.
    wanted = [3 + 5 + 14 + 16 + 20 + 25, 0 + 5 + 10 + 15 + 20 + 26]
    assert search.add_scores(tiny, scores, genotypes).tolist() == wanted
    assert search.add_scores(tiny, scores, []).shape == (0,)


def test_sizes_are_counted_where_a_table_does_not_tell_them(tiny, tables):
    twelve, later = tables.table("nb201", "cifar10", 12), tables.of("nb201")[-1]
    counted, other, same = search.with_sizes(
        tiny, (twelve, tables.table("nb201", "cifar100", 12), later)
    )
    assert same is later
    wanted = search.count_sizes(tiny, twelve.genotypes)
    assert counted.columns["params"].tolist() == wanted["params"].tolist()
    assert other.columns["flops"] is counted.columns["flops"]
    assert search.place(counted, {})["most params"].accuracy == 40


def test_sizes_are_those_of_the_networks(tiny):
    rng = np.random.default_rng(0)
    genotypes = [tiny.decode({"cell": rng.integers(1, 5, 6)}) for _ in range(2)]
    found = search.count_sizes(tiny, genotypes, SHAPE, CLASSES)
    for i, genotype in enumerate(genotypes):
        network = tiny.network(genotype, SHAPE, CLASSES)
        assert found["params"][i] == pytest.approx(network.weights / 1e6)
        assert found["flops"][i] == pytest.approx(network.macs / 1e6)
    assert search.count_sizes(tiny, [], SHAPE, CLASSES)["params"].shape == (0,)


def test_sizes_are_right_where_edges_are_not_alike():
    space = search.mobilenet(2)
    rng = np.random.default_rng(0)
    genotypes = [space.decode({"layer": rng.integers(0, 3, 8)}) for _ in range(2)]
    found = search.count_sizes(space, genotypes, (8, 8, 1), CLASSES)
    wanted = [space.network(g, (8, 8, 1), CLASSES).weights / 1e6 for g in genotypes]
    assert found["params"] == pytest.approx(wanted)
