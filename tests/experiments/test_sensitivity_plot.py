"""The picture of a scan."""

import math

from swapjax import Sensitivity
from swapjax.experiments import plot
from swapjax.experiments.sensitivity_plot import sensitivity_figure


def test_a_scan_is_drawn_with_its_numbers(tmp_path):
    losses = ((0.5, 0.75), (0.4, math.inf))
    table = Sensitivity(("a", "b" * 60), (6, 4), (0.5, 0.9), 0.5, losses, "wanda")
    figure = sensitivity_figure(table)
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.texts] == ["0", "0.25", "-0.1", "inf"]
    assert [len(label.get_text()) for label in axes.get_yticklabels()] == [1, 40]
    plot.save(figure, tmp_path / "scan.png")
