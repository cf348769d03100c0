"""Searches of FreeFlow, and the tables of docs/results/search.md."""

import dataclasses
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from swapjax import search
from swapjax.search import Genotype
from swapjax.search.genotype import parse

BEST_OF = 100  # random cells, where whole cells are scored
_EPOCHS = 12  # of the tables that hold every cell


@dataclasses.dataclass(frozen=True)
class Line:
    """One search; seconds by the clock and of the CPU.

    Those of compilation stand at the first search of a process by a supernet. Without
    removals the scope is the score by which the best of random cells was taken.
    """

    space: str
    cells: int
    steps: int
    scope: str
    seed: int
    genotype: str = ""
    seconds: float = math.nan
    cpu: float = math.nan
    compile_seconds: float = math.nan
    compile_cpu: float = math.nan

    def __str__(self) -> str:
        return f"{self.space}, {self.cells} cells, {name_of(self)}, seed {self.seed}"

    @property
    def plan(self) -> tuple:
        """What it shares with other seeds."""
        return self.space, self.cells, self.steps, self.scope

    @property
    def key(self) -> tuple:
        """What tells it from others."""
        return *self.plan, self.seed


def name_of(line: Line) -> str:
    """Say how it searched."""
    if not line.steps:
        return f"best by {line.scope} of {BEST_OF} random"
    if line.steps == 1:
        return "FreeFlow, one-shot"
    return f"FreeFlow, {line.steps} steps, {line.scope}"


@dataclasses.dataclass(frozen=True)
class Placed:
    """Where a choice stands on one data set; percentages.

    Attributes:
        name: of a search, or of what needs none.
        dataset: of the accuracies.
        seeds: how many searches; 0 for random search.
        accuracy: the mean over seeds.
        std: its deviation; NaN of one.
        percentile: of cells that it surpasses; NaN for random search.
        regret: the best accuracy less this one.
    """

    name: str
    dataset: str
    seeds: int
    accuracy: float
    std: float
    percentile: float
    regret: float


def placed(lines: Sequence[Line], tables: Path) -> list[Placed]:
    """Look up what the cells of NAS-Bench-201 are worth."""
    space, chosen = search.nb201(), dict[str, list[Genotype]]()
    for line in lines:
        if line.space == "nb201":
            chosen.setdefault(name_of(line), []).append(space.parse(line.genotype))
    judged = search.load_tables(tables).of("nb201", epochs=_EPOCHS)
    return [
        Placed(name, table.dataset, *place)
        for table in search.with_sizes(space, judged)
        for name, place in search.place(table, chosen).items()
    ]


def report(lines: Sequence[Line], places: Sequence[Placed]) -> list[str]:
    """Make the tables in Markdown: accuracies, agreement and time, cells of DARTS."""
    darts = [line for line in lines if line.space == "darts"]
    return [_worth(places), _costs(lines), _cells(darts)]


def _worth(places: Sequence[Placed]) -> str:
    """Tell accuracy, percentile and regret of cells, one column a data set."""
    datasets = list(dict.fromkeys(place.dataset for place in places))
    text = [
        f"| | seeds | {' | '.join(datasets)} |",
        "|---" * (len(datasets) + 2) + "|",
    ]
    for name in dict.fromkeys(place.name for place in places):
        some = [place for place in places if place.name == name]
        seeds = "" if math.isnan(some[0].percentile) else str(some[0].seeds)
        seeds = "" if name == "best" or name.startswith("most") else seeds
        text.append(f"| {name} | {seeds} | {' | '.join(map(_cell, some))} |")
    return "\n".join(text)


def _cell(place: Placed) -> str:
    spread = "" if math.isnan(place.std) or not place.std else f" ± {place.std:.2f}"
    share = "" if math.isnan(place.percentile) else f"{place.percentile:.0f} %, "
    return f"{place.accuracy:.2f}{spread} ({share}−{place.regret:.2f})"


def _costs(lines: Sequence[Line]) -> str:
    """Agreement over seeds, and seconds of the CPU."""
    text = [
        "| space | cells | | seeds | different | agree | search, s | compilation, s |",
        "|---" * 8 + "|",
    ]
    for plan in dict.fromkeys(line.plan for line in lines):
        some = [line for line in lines if line.plan == plan]
        texts = [line.genotype for line in some]
        agree = ""
        if len(some) > 1:
            agree = f"{search.repeats([parse(t) for t in texts]).parts:.0%}"
        compiled = [
            line.compile_cpu
            for line in lines
            if line.plan[:2] == plan[:2] and not math.isnan(line.compile_cpu)
        ]
        cpu = statistics.median(line.cpu for line in some)
        once = f"{statistics.median(compiled):.1f}" if plan[2] else ""
        text.append(
            f"| {plan[0]} | {plan[1]} | {name_of(some[0])} | {len(some)} | "
            f"{len(set(texts))} | {agree} | {cpu:.2f} | "
            f"{once} |"
        )
    return "\n".join(text)


def _cells(lines: Sequence[Line]) -> str:
    """Tell the cells of DARTS, those of the seeds that agree in one line."""
    text = ["| cells | seeds | normal | reduce |", "|---" * 4 + "|"]
    for cells in sorted({line.cells for line in lines}):
        some = [line for line in lines if line.cells == cells]
        for genotype in dict.fromkeys(line.genotype for line in some):
            seeds = sorted(line.seed for line in some if line.genotype == genotype)
            found = search.darts().parse(genotype)
            told = (
                ", ".join(f"{op} {a}→{b}" for a, b, op in found.of(kind))
                for kind in ("normal", "reduce")
            )
            text.append(
                f"| {cells} | {', '.join(map(str, seeds))} | {' | '.join(told)} |"
            )
    return "\n".join(text)
