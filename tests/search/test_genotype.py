import pytest
from hypothesis import given
from hypothesis import strategies as st

from swapjax.search import Genotype, nb201
from swapjax.search.genotype import parse

TEXT = (
    "|nor_conv_3x3~0|+|none~0|skip_connect~1|"
    "+|avg_pool_3x3~0|nor_conv_1x1~1|skip_connect~2|"
)


def test_the_text_of_a_cell_is_that_of_nas_bench_201():
    genotype = nb201().parse(TEXT)
    assert str(genotype) == TEXT
    assert genotype.of("cell")[2] == (1, 2, "skip_connect")
    assert nb201().encode(TEXT)["cell"].tolist() == [3, 0, 1, 4, 2, 1]


@given(st.lists(st.integers(0, 4), min_size=6, max_size=6))
def test_numbers_texts_and_genotypes_say_the_same(numbers):
    space = nb201()
    genotype = space.decode({"cell": numbers})
    assert space.parse(str(genotype)) == genotype == space.check(genotype)
    assert space.encode(genotype)["cell"].tolist() == numbers


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "must read"),
        ("cnn", "must read"),
        ("|nor_conv_3x3~0", "must read"),
        ("|nor_conv_3x3~1|+|none~0|none~1|", "must read"),
        ("nor_conv_3x3~0|+|", "must read"),
        (
            TEXT.replace("nor_conv_1x1", "conv_7x7"),
            "operations of nb201 are .*conv_7x7",
        ),
        (TEXT.rpartition("+")[0], "node 3 of cell has 3 different edges"),
        (TEXT + "+|none~0|none~1|none~2|none~3|", "has edges"),
        (TEXT.replace("|none~0", ""), "node 2 of cell has 2 different edges"),
        (TEXT.replace("none~0", "none~1"), "node 2 of cell has 2 different edges"),
        (f"normal: {TEXT}", "cells of kind cell for nb201, got normal"),
        (3, "must be a Genotype or its text, got int"),
    ],
)
def test_what_is_no_genotype_is_told(text, match):
    with pytest.raises(ValueError, match=match):
        nb201().check(text)


def test_a_genotype_has_no_cells_of_another_kind():
    with pytest.raises(ValueError, match="cells of kind cell, not 'normal'"):
        Genotype((("cell", ()),)).of("normal")


@pytest.mark.parametrize("row", [[5] * 6, [-2] * 6, [0.5] * 6, [0] * 5])
def test_numbers_of_no_operation_are_told(row):
    with pytest.raises(ValueError, match="numbers"):
        nb201().decode({"cell": row})


def test_cells_that_are_none_are_told():
    with pytest.raises(ValueError, match="cells must be kinds with edges"):
        Genotype("x")


def test_nodes_are_whole_numbers():
    pairs = "[('max_pool_3x3', 0), ('max_pool_3x3', {})] "
    cells = ", ".join(
        f"{kind}={pairs}, {kind}_concat=[2]" for kind in ("normal", "reduce")
    )
    for node in ("0.9", "True", "'1'"):
        with pytest.raises(ValueError, match="must read"):
            parse(f"Genotype({cells.format(node, 1)})")
    assert len(parse(f"Genotype({cells.format(1, 1)})").of("normal")) == 2
