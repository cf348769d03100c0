"""Tables of the results say what the files of the benchmarks hold."""

import csv
import json
import math
import re
import statistics
from collections import defaultdict

import backward_blocks_report as blocks
import backward_report
import backward_vcas_report as vcas
import budgets_report
import kernels_report
import noise_report
import noisy_labels_report
import pytest
import real_report
import robust_report
import search_proxies_report
import search_report
import sparse_robust_report
from pages import DOCS, ROOT
from shared import read_runs

RESULTS = ROOT / "benchmarks" / "results"
# What a row of the page is called in the file.
ONE_STAGE = {
    "`magnitude()`": "magnitude",
    "`saliency()`": "saliency",
    "`obd()`": "obd",
    "`wanda(per_output=False)`": "wanda",
    "`woodfisher()`": "woodfisher",
    '`woodfisher(update="independent", damping=1e-6)`': "woodfisher, authors' update",
    "`cbs()`": "cbs",
    "`chita()`": "chita",
    '`chita(search="magnitude")`': "chita, magnitude",
    "`chita(block=500)`": "chita, blocks",
    "`layerwise_obs()`": "layerwise-obs",
    "`alps()`": "alps",
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
MANY_STAGES = {
    "magnitude": "magnitude",
    "`linear_regression(first_order=False)`": "linear-regression, targets only",
    "`swap(first_order=False)`": "swap, targets only",
    "`linear_regression()`": "linear-regression",
    "`swap()`": "swap",
    "magnitude, theirs / ours": "magnitude",
}
IN_TRAINING_MODE = (
    '`linear_regression(ridge="kfac", first_order=False)`, judged in training mode'
)
RESNET20 = {
    "`magnitude()`": "magnitude",
    "`obd()`": "obd",
    "`wanda(per_output=False)`": "wanda",
    "`layerwise_obs()`": "layerwise-obs",
    "`woodfisher()`": "woodfisher",
    "`chita()`": "chita",
    "`linear_regression()`": "linear-regression, first order",
    "`linear_regression(first_order=False)`": "linear-regression",
    "`swap(first_order=False)`": "swap",
    '`linear_regression(ridge="kfac", first_order=False)`': "linear-regression, kfac",
    '`linear_regression(ridge="kfac", first_order=False)`, harm in training mode': (
        "linear-regression, kfac, harm in training mode"
    ),
    IN_TRAINING_MODE: ("linear-regression, kfac, judged in training mode"),
    '`layerwise_obs(weigh="output")`': "layerwise-obs, output",
    '`layerwise_obs(weigh="equal")`': "layerwise-obs, equal",
    "`alps()`": "alps",
    '`alps(weigh="output")`': "alps, output",
}


PEERS = {
    "`swap()`": ("swap()", "SWAP, --ot", "NumPy, swap"),
    "`linear_regression(first_order=False)`": (
        "linear_regression(first_order=False)",
        "SWAP, without --ot",
        "NumPy, regression",
    ),
    '`chita(search="magnitude", damping=1e-3)`': (
        "chita(search='magnitude', damping=1e-3)",
        "CHITA, Heuristic_LS",
        "NumPy, one back-solve",
    ),
    "`chita(block=500, sweeps=1, damping=1e-3)`": (
        "chita(block=500, sweeps=1, damping=1e-3)",
        "CHITA, Heuristic_LSBlock 500",
        None,
    ),
    "`chita()`": ("chita()", None, None),
    '`woodfisher(update="independent", damping=1e-5)`': (
        "woodfisher(update='independent', damping=1e-5)",
        "WoodFisher, blocks of 1000",
        None,
    ),
    "`woodfisher()`, transformer of 98,304 weights": (
        "woodfisher(), transformer",
        None,
        None,
    ),
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


def test_many_stages():
    found = runs("mlpnet_mnist", "recipe", "method", "noise", "sparsity")
    seen, recipe = 0, "plain"
    for name, cells in rows("many-stages.md"):
        recipe = "sgd" if name.startswith("**an epoch") else recipe
        name, _, noise = name.partition(", noise ")
        if name not in MANY_STAGES:
            continue
        noise = noise.strip("()").replace(" ", "") or "clean"
        for level, cell in zip(("0.9", "0.95", "0.98"), cells, strict=True):
            values = found[recipe, MANY_STAGES[name], noise, level]
            value = float(cell.rpartition("/")[2])
            assert value == pytest.approx(statistics.mean(values), abs=0.0051), name
            seen += 1
    assert seen == 3 * 10


STAGES = "stages, to 0.9, seed 0"  # the table of those, of both networks


def test_resnet20():
    found = runs("resnet20_cifar10", "method", "norm", "stages", "sparsity")
    seen, table = [], "one stage"
    for name, cells in rows("resnet20.md"):
        table = name if name in ("statistics kept", STAGES) else table
        norm = "kept" if table == "statistics kept" else "again"
        for level, cell in zip(("0.5", "0.6", "0.7", "0.8", "0.9"), cells):  # noqa: B905
            if table != STAGES and name in RESNET20 and cell:
                values = found[RESNET20[name], norm, "1", level]
                assert float(cell) == pytest.approx(statistics.mean(values), abs=0.0051)
                seen.append((name, norm))
    assert {name for name, _ in seen} == set(RESNET20)
    assert {norm for _, norm in seen} == {"again", "kept"}


def test_stages_of_convolutional_networks():
    initial = {
        '`layerwise_obs(reference="initial")`': "layerwise-obs, initial",
        '`linear_regression(ridge="kfac", reference="initial", first_order=False)`': (
            "linear-regression, kfac, initial"
        ),
    }
    keys = "method", "stages", "sparsity", "seed"
    folders = "resnet20_cifar10", "mobilenet_cifar10"
    found = {folder: runs(folder, *keys) for folder in folders}
    told, inside = set(), False
    for name, cells in rows("resnet20.md"):
        if name == STAGES:
            inside = True
        elif name in ("statistics kept", "to"):
            inside = False
        elif inside and name != "---":
            folder = folders[name.startswith("MobileNetV1, ")]
            method = {**RESNET20, **initial}[name.removeprefix("MobileNetV1, ")]
            for stages, cell in zip("128", cells, strict=True):
                if cell:
                    told.add(key := (folder, method, stages))
                    (accuracy,) = found[folder][method, stages, "0.9", "0"]
                    assert float(cell) == pytest.approx(accuracy, abs=0.0051), key
    for folder in folders:
        for method, stages, level, seed in found[folder]:
            if (level, seed) == ("0.9", "0") and stages != "1":
                assert (folder, method, stages) in told


def test_mobilenet():
    names = {
        "`magnitude()`": "magnitude",
        '`layerwise_obs(weigh="output", order="greedy")`': (
            "layerwise-obs, output, greedy"
        ),
        '`layerwise_obs(weigh="output")`': "layerwise-obs, output",
        '`layerwise_obs(weigh="equal")`': "layerwise-obs, equal",
        '`layerwise_obs(weigh="equal", order="greedy")`': (
            "layerwise-obs, equal, greedy"
        ),
        "`layerwise_obs()`": "layerwise-obs",
        '`linear_regression(ridge="kfac", first_order=False)`': (
            "linear-regression, kfac"
        ),
        IN_TRAINING_MODE: ("linear-regression, kfac, judged in training mode"),
    }
    keys = "stages", "method", "sparsity"
    found, seen, inside = runs("mobilenet_cifar10", *keys), set(), False
    for name, cells in rows("resnet20.md"):
        inside |= name == "to"
        network, _, method = name.partition(", ")
        for level, cell in zip(("0.75", "0.8", "0.9", "0.95"), cells):  # noqa: B905
            if inside and network == "MobileNetV1" and cell:
                seen.add(key := ("1", names[method], level))
                mean = statistics.mean(found[key])
                assert float(cell) == pytest.approx(mean, abs=0.0051)
    assert seen == {key for key in found if key[0] == "1"}


def test_allocation():
    keys = "network", "method", "allocation", "sparsity"
    found, told = runs("allocation", *keys), set()
    networks = {"MLPNet": "mlpnet", "ResNet-20": "resnet20"}
    for name, cells in rows("allocation.md"):
        network, _, rest = name.partition(", ")
        if network not in networks:
            continue
        method, level = rest.split(", ")
        columns = "uniform", "erk", "global", "owl", "loss"
        for allocation, cell in zip(columns, cells, strict=True):
            key = networks[network], method, allocation, level
            assert bool(cell) == (key in found), key
            if cell:
                mean = statistics.mean(found[key])
                assert float(cell) == pytest.approx(mean, abs=0.0051), key
                told.add(key)
    assert told == set(found)


def test_peer_speed():
    found = json.loads((RESULTS / "peer_speed" / "results.json").read_text())["rows"]
    page = (DOCS / "results" / "cost.md").read_text()
    part = page.split("## Beside the authors' own code")[1].split("\n## ")[0]
    seen = 0
    for line in part.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0] not in PEERS:
            continue
        own, peer, plain = PEERS[cells[0]]
        there = [(own, "total"), (own, "cpu"), (peer, "total"), (own, "to peer"),
                 (own, "to peer, CPU"), (plain, "total")]  # fmt: skip
        for cell, (name, what) in zip(cells[1:-1], there, strict=True):
            values = found[name].get(what) if name else None
            assert cell == (f"{statistics.median(values):.3f}" if values else "")
        seen += 1
    assert seen == len(PEERS)


def test_plasticity():
    with (RESULTS / "plasticity" / "results.csv").open() as file:
        found = defaultdict(list)
        for line in csv.DictReader(file):
            gain = float(line["after"]) - float(line["before"])
            found[line["epoch"], line["rate"], line["regrown"]].append(gain)
    table = [
        row for row in rows("sparse-training.md") if row[0] in ("1", "3", "5", "7")
    ]
    assert len(table) == 4
    for epoch, cells in table:
        for rate, cell in zip(("0.5", "0.9", "0.98"), cells, strict=True):
            for regrown, part in enumerate(cell.replace("−", "-").split("/")):
                mean = statistics.mean(found[epoch, rate, str(regrown)])
                assert float(part) == pytest.approx(mean, abs=0.0051)


def test_noisy_labels():
    lines = read_runs(
        RESULTS / "noisy_labels" / "results.csv", noisy_labels_report.Line
    )
    page = (DOCS / "results" / "noisy-labels.md").read_text()
    assert noisy_labels_report.report(lines) in page
    found = runs("noisy_labels", "loss", "noise")
    (_, noises), _, *table = rows("noisy-labels.md")
    losses = {loss for loss, _ in found}
    assert {name for name, _ in table[: len(losses)]} == losses
    for name, cells in table[: len(losses)]:
        for noise, cell in zip(noises, cells, strict=True):
            if cell:
                mean = statistics.mean(found[name, noise])
                assert float(cell.split()[0]) == pytest.approx(mean, abs=0.0051)


def test_noise_attacked():
    page = (DOCS / "results" / "noise.md").read_text()
    part = page.split("can be learnt")[1].split("What is learnt")[0]
    with (RESULTS / "noise" / "attacked.csv").open() as file:
        lines = list(csv.DictReader(file))
    for line in lines:
        for field in ("clean", "as_trained", "itself"):
            assert f"{float(line[field]):.1f}" in part, (line["method"], field)
    assert len(lines) == 4


def test_robust():
    lines = read_runs(RESULTS / "robust" / "results.csv", robust_report.Line)
    page = (DOCS / "results" / "robust.md").read_text()
    assert robust_report.report(lines) in page
    found = defaultdict(list)
    for line in lines:
        if line.epochs == 6:
            found[line.framework, line.head].append(line.robust)
    _, _, *table = rows("robust.md")
    for name, (head, count, _, robust, *_) in table[: len(found)]:
        runs_of = found[name, head]
        assert int(count) == len(runs_of)
        mean = statistics.mean(runs_of)
        assert float(robust.split()[0]) == pytest.approx(mean, abs=0.051)


@pytest.mark.parametrize("made", [kernels_report, budgets_report])
def test_what_deploys(made):
    name = made.__name__.removesuffix("_report")
    lines = read_runs(RESULTS / name / "results.csv", made.Line)
    page = (DOCS / "results" / f"{name}.md").read_text()
    assert all(table in page for table in made.report(lines).split("\n\n"))


def test_damaged_files():
    found = json.loads((RESULTS / "fuzz" / "results.json").read_text())
    counts = ("refused", "same", "part", "other values", "faults")
    told = dict(rows("files.md"))
    for kind in found["kinds"]:
        *cells, slowest = told[kind["kind"]]
        assert cells == [f"{kind[name]:,}" for name in counts]
        assert float(slowest) == kind["slowest_s"]
    text = (DOCS / "results" / "files.md").read_text()
    assert f"at most {found['grown_mb']} MB" in text
    assert sum(kind[name] for kind in found["kinds"] for name in counts) >= 10_000


def numbers(text):
    """The numbers of two decimals in every row of every table."""
    tables = re.findall(r"^\|.*\|$", text, re.MULTILINE)
    return [re.findall(r"(?<![\d.])\d+\.\d\d(?![\d.])", row) for row in tables]


def within(some, others):
    """Whether others has some in their order, perhaps with more in between."""
    left = iter(others)
    return all(number in left for number in some)


@pytest.mark.parametrize("folder", ["methods", "rules"])
def test_what_a_page_measured_stands_in_the_results(folder):
    pages = (DOCS / "results").glob("*.md")
    known = [row for page in pages for row in numbers(page.read_text())]
    checked = 0
    for page in sorted((DOCS / folder).glob("*.md")):
        for row in numbers(page.read_text()):
            if len(row) > 1:
                assert any(within(row, other) for other in known), f"{page}: {row}"
                checked += 1
    assert checked > 10


def test_kills():
    with (RESULTS / "kills" / "results.csv").open() as file:
        found = list(csv.DictReader(file))
    table = [(name, cells) for name, cells in rows("kills.md") if name.startswith("`")]
    assert len(table) == 4
    for name, (begun, *cells) in table:
        some = [
            r for r in found if (r["command"], r["begun"]) == (name.strip("`"), begun)
        ]
        killed = sum(code != "0" for r in some for code in r["codes"].split())
        differ, leave = (sum(bool(r[key]) for r in some) for key in ("differs", "left"))
        assert list(map(int, cells)) == [len(some), killed, differ, leave]


def test_noise():
    runs = read_runs(RESULTS / "noise" / "results.csv", noise_report.Run)
    made = noise_report.markdown(runs)
    page = (DOCS / "results" / "noise.md").read_text()
    tables = re.findall(r"(?:^\|.*\|$\n?)+", page, re.MULTILINE)
    found = [table.strip() for table in tables if "| seeds |" in table]
    assert len(found) >= 2
    for table in found:
        assert table in made.values()


def test_sparse_robust():
    made = []
    for name in ("results", "tuning"):
        path = RESULTS / "sparse_robust" / f"{name}.csv"
        found = read_runs(path, sparse_robust_report.Line)
        made += sparse_robust_report.markdown(found).values()
    page = (DOCS / "results" / "sparse-robust.md").read_text()
    tables = re.findall(r"(?:^\|.*\|$\n?)+", page, re.MULTILINE)
    assert sorted(table.strip() for table in tables) == sorted(made)


def test_backward():
    folder = RESULTS / "backward"
    runs = read_runs(folder / "results.csv", backward_report.Run)
    layers = read_runs(folder / "layers.csv", backward_report.LayerRow)
    noise = read_runs(folder / "noise.csv", backward_report.Noise)
    page = (DOCS / "results" / "backward.md").read_text()
    for table in backward_report.markdown(runs, layers, noise):
        assert table in page


def test_sampled_back_propagation():
    page = (DOCS / "results" / "backward-sampled.md").read_text()
    lines = read_runs(RESULTS / "backward_vcas" / "results.csv", vcas.Line)
    assert vcas.report(lines) in page
    speeds = read_runs(RESULTS / "backward_blocks" / "speed.csv", blocks.Speed)
    lines = read_runs(RESULTS / "backward_blocks" / "results.csv", blocks.Line)
    assert blocks.report(speeds, lines) in page


def test_search():
    folder = RESULTS / "search"
    lines = read_runs(folder / "results.csv", search_report.Line)
    places = read_runs(folder / "places.csv", search_report.Placed)
    page = (DOCS / "results" / "search.md").read_text()
    for table in search_report.report(lines, places):
        assert table in page


def test_scores_before_training():
    folder = RESULTS / "search_proxies"
    files = (
        ("agreement", search_proxies_report.Line),
        ("published", search_proxies_report.Published),
        ("places", search_proxies_report.Place),
    )
    runs = [read_runs(folder / f"{name}.csv", kind) for name, kind in files]
    page = (DOCS / "results" / "search.md").read_text()
    for table in search_proxies_report.report(*runs):
        assert table in page


def test_real():
    page = (DOCS / "results" / "real.md").read_text()
    lines = read_runs(RESULTS / "real" / "results.csv", real_report.Run)
    for table in real_report.markdown(lines):
        assert table in page


LAYERS = {
    "`magnitude()`": "magnitude",
    "`wanda()`": "wanda",
    '`layerwise_obs(order="columns", refit=False)`': "columns",
    '`layerwise_obs(order="greedy")`': "greedy",
    "`alps()`": "alps",
}


def lines_of(folder, name="results.csv"):
    with (RESULTS / folder / name).open() as file:
        return list(csv.DictReader(file))


def test_layers_of_minilm():
    found = {(x["layer"], x["setting"], x["method"]): x for x in lines_of("alps")}
    refits = {f"{x['layer']}, {x['setting']}": x for x in lines_of("alps", "refit.csv")}
    settings, layer, seen = ("0.5", "0.7", "0.9", "2:4"), "", set()
    for name, cells in rows("alps.md"):
        if name.startswith("**"):
            layer = name.split("**")[1]
        elif name in LAYERS:
            of = [found[layer, setting, LAYERS[name]] for setting in settings]
            for x, cell in zip(of, cells, strict=False):
                told = [float(part) / 1000 for part in cell.split("/")]
                wanted = [float(x[key]) for key in ("error", "test", "best")]
                assert told == pytest.approx(wanted, abs=5.1e-7)
            mean = statistics.mean(float(x["seconds"]) for x in of)
            assert float(cells[-1]) == pytest.approx(mean, abs=0.0051)
            seen |= {(layer, setting, LAYERS[name]) for setting in settings}
        elif name in refits:
            x = refits.pop(name)
            wanted = [float(x[key]) for key in ("exact_seconds", "cg_seconds")]
            assert [float(cell) for cell in cells[:2]] == pytest.approx(
                wanted, abs=0.0051
            )
            wanted = [1000 * float(x[key]) for key in ("exact", "cg")]
            assert [float(cell) for cell in cells[2:]] == pytest.approx(
                wanted, abs=5.1e-4
            )
    assert seen == set(found)
    assert not refits


def test_refits_ahead():
    columns = "network", "method", "sparsity", "ahead"
    found = defaultdict(list)
    for x in lines_of("reconstruct"):
        found[tuple(x[key] for key in columns)].append(x)
    shown = set()
    for name, cells in rows("reconstruct.md"):
        if not re.match(r"(mlpnet|resnet20), ", name):
            continue
        network, rest = name.split(", ", 1)
        method, sparsity = rest.rsplit(", ", 1)
        for ahead, cell in zip(AHEAD[network], cells, strict=True):
            if cell:
                several = found[network, method, sparsity, ahead]
                for key, told in zip(
                    ("kept", "again"), cell.split(" / "), strict=False
                ):
                    mean = statistics.mean(float(x[key]) for x in several)
                    assert float(told) == pytest.approx(mean, abs=0.0051)
                shown.add((network, method, sparsity, ahead))
    assert shown == set(found)


AHEAD = {"mlpnet": ("-1", "0", "2"), "resnet20": ("-1", "0", "3", "10")}


def test_sequential():
    with (RESULTS / "sequential" / "results.csv").open() as file:
        found = list(csv.DictReader(file))
    table = [(name, cells) for name, cells in rows("sequential.md") if name.isdigit()]
    assert len(table) == len(found)
    for (layers, (method, *cells)), run in zip(table, found, strict=True):
        name = method.strip("`").partition("(")[0].replace("_", "-")
        assert (layers, name) == (run["layers"], run["method"].partition(",")[0])
        assert ("blocks=" in method) == run["method"].endswith("by layer")
        keys = ("prunable", "cpu", "rate", "peak", "above")
        told = [f"{float(run[key]):,.0f}" for key in keys]
        told += [f"{float(run[key]):.3f}" for key in ("before", "after")]
        assert cells == told


def test_first_calls():
    found = {(x["method"], x["network"]): x for x in lines_of("first_calls")}
    name, seen = "", set()
    for told, (network, *cells) in ((n, c) for n, c in rows("cost.md") if c):
        name = re.sub(r"[`()]", "", told).lower() or name
        x = found.get((name, network.removesuffix(" kernels")))
        if x is None:
            continue
        keys = ("first", "xla") + (("init",) if len(cells) > 3 else ()) + ("hlo",)
        numbers = [float(cell.replace(",", "")) for cell in cells]
        wanted = [float(x[key]) for key in keys]
        assert numbers == pytest.approx(wanted, abs=0.0501)
        seen.add((name, x["network"]))
    rules = ("adam", "gmp", "rigl", "granet")
    assert seen == {key for key in found if key[0] not in rules or key[1] != "12"}
