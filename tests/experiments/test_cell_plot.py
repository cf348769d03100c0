"""Pictures of cells: every edge and operation is there."""

import numpy as np
import pytest

from swapjax.experiments import plot
from swapjax.experiments.cell_plot import cell_figure
from swapjax.search.genotype import Genotype, parse

EDGES = ((0, 1), (0, 2), (1, 2))
OPS = ("none", "skip_connect", "nor_conv_3x3")
CELL = parse("|skip_connect~0|+|none~0|nor_conv_3x3~1|")


def texts(axes):
    return [text.get_text() for text in axes.texts]


def test_a_cell_shows_each_operation_and_node_beside_its_scores(tmp_path):
    scores = {"cell": np.array([[0, 1, 1e-9], [1, 0, 0], [0, 0, 0]])}
    figure = cell_figure(CELL, title="$it_1$", scores=scores, edges={"cell": EDGES},
                         ops=OPS)  # fmt: skip
    cell, heat, _ = figure.axes
    assert texts(cell) == ["skip_connect", "none", "nor_conv_3x3", "0", "1", "2"]
    assert [line.get_linestyle() for line in cell.patches] == ["-", ":", "-"]
    shown = heat.images[0].get_array()
    assert shown.tolist() == [[-6, 0, -6], [0, -6, -6], [-6, -6, -6]]
    plot.save(figure, tmp_path / "cell.png")


def test_kinds_of_cells_have_panels_and_long_names_are_cut():
    name = "an_operation_with_a_name_that_is_very_long"
    both = Genotype((("normal", ((0, 2, name),)), ("reduce", ((1, 2, "skip"),))))
    figure = cell_figure(both, title="t" * 500)
    assert [axes.get_title() for axes in figure.axes] == ["normal", "reduce"]
    drawn = texts(figure.axes[0])[0]
    assert len(drawn) <= 24
    assert drawn.startswith("an_operation")
    assert drawn.endswith("very_long")
    assert len(figure.get_suptitle()) == 140


@pytest.mark.parametrize("text", ["|none~0|", "|nor_conv_1x1~0|"])
def test_a_single_edge_can_be_drawn(text, tmp_path):
    plot.save(cell_figure(parse(text), title="one"), tmp_path / "one.png")
