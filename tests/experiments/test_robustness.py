"""Tables and panels of what attacks and wrong labels did."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from swapjax.experiments import report, robustness
from swapjax.robust import Attempt, Evaluation
from swapjax.training import Epoch

HISTORY = [
    Epoch(
        number, number, 1.0, 80.0 + number, 0.5, {"fc1/kernel": 0.5}, 0, 1.0, "",
        # TRADES tells the accuracy of training images, a fraction.
        {"accuracy": 0.5, "robust_batch": 0.25, "memorized": 10.0 * number},
    )
    for number in (1, 2)
]  # fmt: skip
HELD = robustness.Robustness(
    0.1,
    Evaluation(
        4, 0.3, "linf", 0.75, 0.25,
        (Attempt("pgd-ce:2", 3, 1, 0.5, 0.5), Attempt("square:9", 2, 1, 0.25, None)),
        0.0, None, ("take care",), np.array([True, True, True, False]),
        np.array([[2, 1, 1, 0], [0, 2, 1, 0]], np.int8),
    ),
    ((0.05, 60.0), (0.1, 30.0)),
)  # fmt: skip


def lines(draw):
    axes = Figure().subplots()
    draw(axes)
    return {line.get_label(): line.get_ydata() for line in axes.get_lines()}


def test_the_curve_begins_at_the_clean_accuracy_and_marks_the_attacks_asked_for():
    found = lines(lambda axes: robustness.draw_radii(axes, HELD))
    assert list(found["PGD of 10 steps"]) == [75.0, 60.0, 30.0]
    assert list(found["all attacks asked for"]) == [25.0]


def test_epochs_show_what_was_tested_and_learnt_in_percent():
    found = lines(lambda axes: robustness.draw_epochs(axes, HISTORY))
    assert {name: list(values) for name, values in found.items()} == {
        "test": [81.0, 82.0],
        "test, under PGD of 5 steps": [25.0, 25.0],
        "flipped labels, as labelled": [10.0, 20.0],
    }


def test_the_report_has_percentages_and_no_arrays():
    told = HELD.to_dict()
    assert (told["clean"], told["robust"]) == (75.0, 25.0)
    assert [a["left"] for a in told["attacks"]] == [50.0, 25.0]
    assert told["radii"] == [
        {"epsilon": 0.05, "accuracy": 60.0},
        {"epsilon": 0.1, "accuracy": 30.0},
    ]
    assert told["warnings"] == ["take care"]


def test_the_table_has_a_row_for_no_attack_and_for_each():
    table = robustness.attack_table(HELD)
    assert [*map(str, table.columns[0].cells)] == ["none", "pgd-ce:2", "square:9"]
    assert [*table.columns[3].cells] == ["75.00", "50.00", "25.00"]


@pytest.mark.parametrize(("history", "more"), [(HISTORY, 2), ([], 0)])
def test_the_table_of_epochs_has_columns_of_what_all_of_them_tell(history, more):
    names = [column.header for column in report.training_table(history).columns]
    assert len(names) == 6 + more
    assert ("PGD %" in names) == ("flipped %" in names) == (more > 0)
