"""Tables of the results say what the files of the benchmarks hold."""

import csv
import math
import re
import statistics
from collections import defaultdict

import pytest
from pages import DOCS, ROOT

RESULTS = ROOT / "benchmarks" / "results"
# What a row of the page is called in the file.
ONE_STAGE = {
    "`magnitude()`": "magnitude",
    "`saliency()`": "saliency",
    "`obd()`": "obd",
    "`wanda()`": "wanda",
    "`woodfisher()`": "woodfisher",
    '`woodfisher(update="independent", damping=16e-5)`': "woodfisher, authors' update",
    "`cbs()`": "cbs",
    "`chita()`": "chita",
    '`chita(search="magnitude")`': "chita, magnitude",
    "`chita(block=500)`": "chita, blocks",
    "`layerwise_obs()`": "layerwise-obs",
    "`linear_regression(first_order=False)`": "linear-regression",
    "`swap(first_order=False)`": "swap",
}
RULES = {
    "dense": "dense",
    "`static()`": "static",
    "`set_(anneal=False)`": "set, constant fraction",
    "`set_()`": "set",
    "`rigl()`": "rigl",
    "`rigl(fraction=0.5, last=0.005)`": "rigl, annealed to 0.005 from 0.5",
    "`gmp()`": "gmp",
    "`granet()`": "granet",
    "`granet_st()`": "granet-st",
    '`gmp()`, plan by `"erk"`': "gmp, by layer",
    '`granet()`, plan by `"erk"`': "granet, by layer",
    '`ste()` at every step, plan by `"erk"`': "ste, by layer",
    "`acdc()`": "acdc",
    "`snip()`, then `static(masks)`": "snip",
    "`synflow(...)`, then `static(masks)`": "synflow",
    "`grasp()`, then `static(masks)`": "grasp",
    "`random(key)`, then `static(masks)`": "random",
    "`magnitude()`, then `static(masks)`": "magnitude",
}


def rows(page):
    """The rows of a page's tables: name, cells."""
    text = (DOCS / "results" / page).read_text()
    for line in re.findall(r"^\|(.*)\|$", text, re.MULTILINE):
        name, *cells = (cell.strip() for cell in line.split("|"))
        yield name, cells


def runs(folder, *keys):
    found = defaultdict(list)
    with (RESULTS / folder / "results.csv").open() as file:
        for line in csv.DictReader(file):
            found[tuple(line[key] for key in keys)].append(float(line["accuracy"]))
    return found


def test_one_stage():
    found = runs("oneshot", "method", "stages", "sparsity")
    seen, stages = set(), "1"
    for name, cells in rows("one-stage.md"):
        stages = "15" if name == "**15 stages**" else stages
        for level, cell in zip(("0.5", "0.8", "0.9", "0.95", "0.98"), cells):  # noqa: B905
            if name in ONE_STAGE and cell:
                values = found[ONE_STAGE[name], stages, level]
                assert len(values) == 3
                assert float(cell) == pytest.approx(statistics.mean(values), abs=0.0051)
                seen.add(name)
    assert seen == set(ONE_STAGE)


def test_sparse_training():
    found = runs("sparse_training", "network", "algorithm", "sparsity")
    seen = set()
    for name, cells in rows("sparse-training.md"):
        if name not in RULES or name in seen:
            continue
        seen.add(name)
        for level, cell in zip(("0.9", "0.95", "0.98", "0.99"), cells, strict=True):
            if cell:
                level = "0.0" if name == "dense" else level
                values = found["lenet300", RULES[name], level]
                mean, error = map(float, re.findall(r"[\d.]+", cell)[:2])
                assert mean == pytest.approx(statistics.mean(values), abs=0.0051)
                spread = statistics.stdev(values) / math.sqrt(len(values))
                assert error == pytest.approx(spread, abs=0.0051)
    assert seen == set(RULES)
