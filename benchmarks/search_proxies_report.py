"""Tell what scores before training are worth, from the lines of search_proxies.py.

python benchmarks/search_proxies_report.py [--tables PATH]

Writes agreement.csv, published.csv and places.csv beside them, and prints the rows of
the tables of docs/results/search.md, which are read from those files.
"""

import argparse
import dataclasses
import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np
from scipy import stats
from search_proxies import FOLDER, SPACES, Choice, Score, permutation
from shared import DATA, console, read_runs, write_runs

from swapjax import search

COLUMNS = {"jacob_cov": "jacov"}  # what a proxy of ours is called there
BOTH = "decorrelation and params"  # the mean of their ranks
DATASETS = ("cifar10", "cifar100", "ImageNet16-120")


@dataclasses.dataclass(frozen=True)
class Line:
    """How far a score agrees with accuracies.

    Attributes:
        space: ``"nb201"`` or ``"darts"``.
        score: ours; ``"published ..."``: a column of the tables.
        seed: of ours.
        dataset: whose accuracies.
        cells: ``"first half"``, by which scores were chosen on CIFAR-10, ``"second
            half"``; ``"all"`` of those scored, where some are not.
        count: of the architectures.
        spearman: with its bootstrap interval, low to high.
        low: see there.
        high: see there.
        kendall: tau-b.
        ndcg: of the best tenth.
    """

    space: str
    score: str
    seed: int
    dataset: str
    cells: str
    count: int
    spearman: float
    low: float
    high: float
    kendall: float
    ndcg: float


@dataclasses.dataclass(frozen=True)
class Published:
    """How far a proxy agrees with the published one.

    Attributes:
        proxy: its name here.
        cells: how many were scored.
        spearman: between the two.
    """

    proxy: str
    cells: int
    spearman: float


@dataclasses.dataclass(frozen=True)
class Place:
    """Where the choices of a search stand among all cells, by 12-epoch test accuracy.

    Attributes:
        score: of operations.
        steps: of the removal.
        dataset: of the accuracies.
        seeds: how many searches.
        none: how many of them gave no choice.
        distinct: different choices.
        accuracy: the mean, in percent.
        std: its deviation over seeds.
        percentile: the mean.
        regret: the mean, in percent.
        seconds: the median of a search, compilation left out.
    """

    score: str
    steps: int
    dataset: str
    seeds: int
    none: int
    distinct: int
    accuracy: float
    std: float
    percentile: float
    regret: float
    seconds: float


def agreement(tables: Any, scores: list[Score]) -> Iterable[Line]:
    """Judge every score, and published columns on the same cells."""
    by: dict[tuple, dict[int, float]] = defaultdict(dict)
    for run in scores:
        by[run.space, run.proxy, run.seed][run.cell] = run.score
    for space, proxy, seed in list(by):
        if proxy == "decorrelation":
            ours = by[space, proxy, seed]
            sizes = min(tables.of(space, "cifar10"), key=len).columns["params"]
            ranks = map(stats.rankdata, (list(ours.values()), sizes[list(ours)]))
            by[space, BOTH, seed] = dict(zip(ours, sum(ranks), strict=True))
    for space in SPACES:
        for dataset in DATASETS if space == "nb201" else DATASETS[:1]:
            table = min(tables.of(space, dataset), key=len)
            for name in table.columns:
                column = dict(enumerate(table.columns[name]))
                by[space, f"published {name}", 0] = column
            for (of, name, seed), found in by.items():
                if of == space:
                    yield from judge(space, name, seed, dataset, table, found)


def judge(
    space: str, name: str, seed: int, dataset: str, table: Any, found: dict
) -> Iterable[Line]:
    """Judge one score on the halves and all of the cells that it has."""
    order = [int(i) for i in permutation(len(table)) if int(i) in found]
    half = len(table) // 2
    parts = {"all": order}
    if len(order) == len(table):
        parts = {"first half": order[:half], "second half": order[half:]}
    for cells, rows in parts.items():
        accuracy = table.accuracy[rows]
        told = search.evaluate([found[i] for i in rows], accuracy, resamples=100)
        yield Line(
            space, name, seed, dataset, cells, len(rows), *told.spearman,
            told.kendall.value, told.ndcg.value,
        )  # fmt: skip


def published(tables: Any, scores: list[Score]) -> Iterable[Published]:
    """Compare with the published columns of CIFAR-10."""
    columns = min(tables.of("nb201", "cifar10"), key=len).columns
    by: dict[str, dict[int, float]] = defaultdict(dict)
    for run in scores:
        if run.space == "nb201" and run.seed == 0:
            by[run.proxy][run.cell] = run.score
    for proxy, found in by.items():
        column = columns.get(COLUMNS.get(proxy, proxy))
        if column is not None:
            theirs = column[list(found)]
            rho = stats.spearmanr(list(found.values()), theirs).statistic
            yield Published(proxy, len(found), float(rho))


def places(tables: Any, choices: list[Choice]) -> Iterable[Place]:
    """Place choices among all cells of NAS-Bench-201."""
    space = SPACES["nb201"]()
    by: dict[tuple, list[Choice]] = defaultdict(list)
    for run in choices:
        if run.space == "nb201":
            by[run.score, run.steps].append(run)
    for (score, steps), runs in by.items():
        found = [space.parse(run.genotype) for run in runs if run.genotype]
        for dataset in DATASETS:
            table = max(tables.of("nb201", dataset), key=len)
            at = search.place(table, {score: found})[score]
            seconds = float(np.median([run.seconds for run in runs]))
            std = at.std if found else math.nan
            yield Place(
                score, steps, dataset, len(runs), len(runs) - len(found),
                len(set(found)), at.accuracy, std, at.percentile, at.regret, seconds,
            )  # fmt: skip


SHOWN = (
    ("nb201", "cifar10", "first half"),
    ("nb201", "cifar10", "second half"),
    ("nb201", "cifar100", "second half"),
    ("nb201", "ImageNet16-120", "second half"),
    ("darts", "cifar10", "first half"),
    ("darts", "cifar10", "second half"),
)


def report(
    lines: list[Line], compared: list[Published], placed: list[Place]
) -> list[str]:
    """Return the tables of the page, from the lines of the files."""
    rho = {(x.score, x.seed, x.space, x.dataset, x.cells): x for x in lines}
    head = (
        "| | first half, CIFAR-10 | second half, CIFAR-10 | CIFAR-100 | ImageNet16-120 "
        "| DARTS, first half | DARTS, second half |\n|---|---|---|---|---|---|---|"
    )
    rows = []
    for score, seed in dict.fromkeys((x.score, x.seed) for x in lines):
        found = [rho.get((score, seed, *place)) for place in SHOWN]
        if any(found):
            cells = " | ".join(f"{x.spearman:.3f}" if x else "" for x in found)
            name = f"{score}, seed {seed}" if seed else score
            rows.append(f"| {name} | {cells} |")
    agreements = "\n".join([head, *rows])
    rows = [f"| `{x.proxy}` | {x.cells} | {x.spearman:.3f} |" for x in compared]
    agree = "\n".join(["| | cells | Spearman |\n|---|---|---|", *rows])
    head = (
        "| | seeds | no choice | different | accuracy | percentile | regret |\n"
        "|---|---|---|---|---|---|---|"
    )
    rows = []
    for x in placed:
        if x.dataset == DATASETS[0]:
            told = (
                f"{x.accuracy:.2f} ± {x.std:.2f} | {x.percentile:.0f} | {x.regret:.2f}"
                if x.distinct
                else " | | "
            )
            steps = "one-shot" if x.steps == 1 else f"{x.steps} steps"
            counts = f"{x.seeds} | {x.none} | {x.distinct}"
            rows.append(f"| {x.score}, {steps} | {counts} | {told} |")
    return [agreements, agree, "\n".join([head, *rows])]


def main() -> None:
    """Write the files, and print the tables of the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", default=str(DATA / "data/nas_tables.npz"))
    tables = search.load_tables(parser.parse_args().tables)
    scores = read_runs(FOLDER / "scores.csv", Score)
    lines = list(agreement(tables, scores))
    compared = list(published(tables, scores))
    placed = list(places(tables, read_runs(FOLDER / "choices.csv", Choice)))
    write_runs(FOLDER / "agreement.csv", lines)
    write_runs(FOLDER / "published.csv", compared)
    write_runs(FOLDER / "places.csv", placed)
    for table in report(lines, compared, placed):
        console.print(table, soft_wrap=True, highlight=False)


if __name__ == "__main__":
    main()
