"""The tables of the page of attacks say what the files of its benchmark hold."""

import csv
from collections import defaultdict

from pages import DOCS, ROOT

RESULTS = ROOT / "benchmarks" / "results" / "attacks"
COLUMNS = ("plain", "against PGD")


def read(name):
    with (RESULTS / name).open(newline="") as file:
        return list(csv.DictReader(file))


def tables():
    """The rows of each table of the part that was measured, by its first cell."""
    page = (DOCS / "robust" / "attacks.md").read_text().partition("## Measured")[2]
    found = defaultdict(list)
    for line in page.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `"):
            found[cells[0].strip("`")].append(cells[1:])
    return found


def test_what_attacks_left():
    shown, lines = tables(), read("results.csv")
    for line in lines:
        cells = shown[line["attack"]]
        alone = line["how"] == "alone"
        row = next(c for c in cells if len(c) == (2 if alone else 4))
        at = COLUMNS.index(line["network"]) * (1 if alone else 2)
        assert row[at] == f"{100 * float(line['left']):.1f}", line
        if not alone:
            assert row[at + 1] == f"{line['fell']} of {line['tried']}"
    assert {line["network"] for line in lines} == set(COLUMNS)


def test_what_a_step_costs():
    shown, lines = tables(), read("costs.csv")
    for line in lines:
        (row,) = (c for c in shown[line["attack"]] if len(c) == 3)
        assert row[:2] == [f"{float(line[k]):.2f}" for k in ("plain", "looped")]
        assert float(line["plain"]) <= 1.1
    assert len(lines) == 5


def test_who_is_ahead():
    page = (DOCS / "robust" / "attacks.md").read_text()
    for line in read("batches.csv"):
        if line["share"] == "0.25":
            means = f"{float(line['apgd']):.3f} | {float(line['pgd']):.3f}"
            row = f"| {line['epsilon']} | {line['steps']} | {means} | {line['ahead']} |"
            assert row in page


def test_what_hidden_gradients_leave():
    page, lines = (DOCS / "robust" / "attacks.md").read_text(), read("hidden.csv")
    for attack in ("pgd-ce", "apgd-dlr", "square:2000"):
        left = [f"{100 * float(x['left']):.1f}" for x in lines if x["attack"] == attack]
        assert f"| `{attack}` | {' | '.join(left)} |" in page
