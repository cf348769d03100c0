"""What methods gain over linear regression: pairs, tables, heat maps."""

import dataclasses
import io
import math

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from swapjax.experiments import gains, plot
from swapjax.experiments.row import Row

ROW = Row("swap", 0.9, 0, "clean", 90.0, 0.5, 2.0, 10, 100, "converged")


def rows_of(method, accuracies, **changed):
    """A row a seed."""
    return [
        dataclasses.replace(ROW, method=method, seed=seed, accuracy=accuracy, **changed)
        for seed, accuracy in enumerate(accuracies)
    ]


def test_gains_are_of_runs_with_the_same_seed_noise_and_sparsity():
    ours, theirs = [90.0, 80.0, 73.0], [88.0, 79.0, 70.0]
    # A seed, a noise and a sparsity that the control did not do.
    rows = rows_of("swap", [*ours, 10.0]) + rows_of(gains.CONTROL, theirs)
    rows += rows_of("swap", [1.0], noise="rows:4,0.5")
    rows += rows_of("swap", [1.0], sparsity=0.5)
    (gain,) = gains.gains(rows)
    pairs = np.subtract(ours, theirs)
    assert gain[:3] == ("swap", "clean", 0.9)
    assert gain.seeds == 3
    assert gain.mean == pytest.approx(np.mean(pairs))
    assert gain.error == pytest.approx(stats.sem(pairs))
    assert str(gain) == "+2.00±0.58"


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_a_gain_is_sure_where_a_paired_t_test_says_so(seeds):
    rng = np.random.default_rng(seeds)
    told = set()
    for shift in np.linspace(0, 6, 40):
        theirs = rng.normal(80, 3, seeds)
        ours = theirs + rng.normal(shift, 1, seeds)
        (gain,) = gains.gains(rows_of("swap", ours) + rows_of(gains.CONTROL, theirs))
        assert gain.sure == (stats.ttest_rel(ours, theirs).pvalue < 0.05)
        told.add(gain.sure)
    assert told == {True, False}


def test_one_seed_is_never_sure_and_a_lost_run_is_no_gain():
    rows = rows_of("swap", [90.0]) + rows_of(gains.CONTROL, [10.0])
    (gain,) = gains.gains(rows)
    assert (str(gain), gain.sure) == ("+80.00", False)
    rows = rows_of("swap", [90.0, math.nan]) + rows_of(gains.CONTROL, [10.0, 10.0])
    (gain,) = gains.gains(rows)
    assert math.isnan(gain.mean)
    assert not gain.sure
    assert gains.gains(rows_of("swap", [90.0])) == []


def comparison():
    return [
        row
        for shift, noise in enumerate(("clean", "gaussian:4,0.5"))
        for sparsity in (0.5, 0.9)
        for row in rows_of("swap", [81.0 + shift, 82.5], noise=noise, sparsity=sparsity)
        + rows_of("magnitude", [60.0, 61.02], noise=noise, sparsity=sparsity)
        + rows_of(gains.CONTROL, [80.0, 81.0], noise=noise, sparsity=sparsity)
        if (row.method, row.noise, row.sparsity) != ("magnitude", "clean", 0.5)
    ]


def test_the_table_has_a_section_a_noise_and_a_column_a_sparsity():
    file = io.StringIO()
    table = gains.gains_table(gains.gains(comparison()))
    Console(file=file, width=80, force_terminal=True, no_color=True).print(table)
    text = file.getvalue().replace("─", "")
    bold = [part.split("\x1b[0m")[0].strip() for part in text.split("\x1b[1m")[1:]]
    assert [word for word in bold if word[0] in "+-"] == ["-19.99±0.01"] * 3
    for code in ("\x1b[1m", "\x1b[0m", "\x1b[3m"):
        text = text.replace(code, "")
    lines = [" ".join(line.split()) for line in text.splitlines() if line.strip()]
    assert lines == [
        "method 0.5 0.9",
        "clean",
        "swap +1.25±0.25 +1.25±0.25",
        "magnitude -19.99±0.01",
        "gaussian:4,0.5",
        "swap +1.75±0.25 +1.75±0.25",
        "magnitude -19.99±0.01 -19.99±0.01",
    ]


def test_heat_maps_have_a_panel_a_method_and_tell_each_gain(tmp_path):
    rows = [*comparison(), *rows_of("odd $x", [math.nan, 3.0])]
    rows += rows_of("obd", [80.0, 81.0])
    found = gains.gains(rows)
    figure = gains.gains_figure(found, title="a $_$ comparison")
    plot.save(figure, tmp_path / "gains.png")
    assert (tmp_path / "gains.png").stat().st_size > 1000
    *panels, _ = figure.axes
    assert [a.get_title() for a in panels] == ["swap", "magnitude", "odd $x", "obd"]
    texts = {(t.get_text(), t.get_weight()) for t in panels[1].texts}
    assert texts == {("-20.0", "bold")}
    assert np.isnan(panels[1].images[0].get_array().filled(np.nan)[0, 0])
    ticks = [label.get_text() for label in panels[0].get_yticklabels()]
    assert ticks == ["clean", "gaussian:4,0.5"]
