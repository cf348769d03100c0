"""The page about smaller networks says what its benchmark measured."""

import csv

import pytest
from pages import DOCS, ROOT


def test_the_table_is_that_of_the_file():
    path = ROOT / "benchmarks" / "results" / "shrink" / "results.csv"
    with path.open() as file:
        runs = {run["network"]: run for run in csv.DictReader(file)}
    seen = set()
    for line in (DOCS / "results" / "shrink.md").read_text().splitlines():
        name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        if name not in runs:
            continue
        groups, units, entries, left, products, error, ratio, seconds = cells
        run = runs[name]
        assert groups == run["groups"]
        assert units == f"{int(run['removed']):,} of {int(run['units']):,}"
        assert entries == f"{int(run['entries']):,}"
        assert left == f"{int(run['left']):,}"
        assert run["left"] == run["expected"]
        part = int(run["multiplications_left"]) / int(run["multiplications"])
        assert float(products) == pytest.approx(part, abs=0.0051)
        assert float(error) == pytest.approx(float(run["error"]), rel=0.06)
        assert float(run["error"]) < 1e-5
        assert float(ratio) == pytest.approx(float(run["ratio"]), abs=0.0051)
        assert float(seconds) == pytest.approx(float(run["seconds"]), abs=0.051)
        seen.add(name)
    assert seen == set(runs)
    assert float(runs["vgg16"]["ratio"]) <= 0.6
    assert float(runs["resnet50"]["ratio"]) <= 0.7
