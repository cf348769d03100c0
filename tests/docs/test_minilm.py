"""The page of MiniLM says what the files of its benchmark hold."""

import json

import numpy as np
from pages import DOCS, ROOT
from real_minilm_report import Run, differences, markdown, read_ranks
from shared import read_runs

RESULTS = ROOT / "benchmarks" / "results" / "real_minilm"
PAGE = (DOCS / "results" / "minilm.md").read_text()


def test_the_table_is_that_of_the_runs():
    runs = read_runs(RESULTS / "results.csv", Run)
    ranks = read_ranks(RESULTS / "ranks.csv")
    assert markdown(runs, ranks) in PAGE
    assert differences(ranks) in PAGE
    at_half = {run.method: f"{run.cosine:.3f}" for run in runs if run.setting == "50%"}
    order = ("magnitude", "wanda", "layerwise-obs, columns", "alps")
    *first, last = (at_half[method] for method in order)
    assert f"{', '.join(first)} and {last} from magnitude to ALPS" in PAGE
    for run in runs:
        found = ranks[str(run)]
        assert len(found) == 500
        assert round(float(np.mean(1 / found)), 5) == run.mrr


def test_what_was_checked_holds():
    found = json.loads((RESULTS / "checks.json").read_text())
    assert f"pairs of Python {found.pop('python')}" in PAGE
    assert f"{found.pop('pairs'):,} pairs" in PAGE.replace("\n", " ")
    assert found.pop("published similarities, largest difference") < 5e-5
    assert found.pop("PyTorch, largest difference") < 2.5e-7
    assert found.pop("scanned, largest difference") < 1.5e-7
    for what, told in found.items():
        assert told == (0 if "differ" in what else True), what
