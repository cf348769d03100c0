"""Means, differences and ranks of the study of noise, from its runs alone."""

import collections
import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from noise_kinds import KINDS
from rich.table import Table

FIRST = ", first order"
LOSS, HARM, CLEAN = ", by loss", ", harm", ", clean set"  # who judges
OWN = ", own labels"


@dataclasses.dataclass(frozen=True)
class Run:
    """One line of the results.

    Attributes:
        network: what was pruned.
        recipe: in which stages.
        kind: of noise.
        method: how.
        sparsity: how far.
        seed: of samples, noise and shuffles.
        accuracy: on the clean test set, percent.
        loss: mean cross-entropy there.
        cpu: seconds of all threads, compilation included.
        status: the worst of its stages.
    """

    network: str
    recipe: str
    kind: str
    method: str
    sparsity: float
    seed: int
    accuracy: float = float("nan")
    loss: float = float("nan")
    cpu: float = float("nan")
    status: str = ""

    def __str__(self) -> str:
        name = f"{self.network}, {self.recipe}, {self.kind}, {self.sparsity:g}"
        return f"{name}, {self.method}, seed {self.seed}"

    @property
    def key(self) -> tuple:
        """What tells it from other runs."""
        return (*self.cell, self.method, self.seed)

    @property
    def cell(self) -> tuple[str, str, str, float]:
        """What methods are compared in."""
        return self.network, self.recipe, self.kind, self.sparsity


class Mean(NamedTuple):
    """Of some numbers: their mean, its standard error and how many they are."""

    value: float
    error: float
    seeds: int

    @property
    def is_clear(self) -> bool:
        """Whether it is 0 or more than two standard errors away; never of one."""
        return self.seeds > 1 and abs(self.value) >= 2 * self.error > 0

    def __str__(self) -> str:
        return f"{self:}"

    def __format__(self, sign: str) -> str:
        """Write with two decimals; gains, in the format ``+``, have a sign.

        Gains that are not clear are in brackets.
        """
        spread = f" ± {self.error:.2f}" if self.seeds > 1 else ""
        text = f"{self.value:{sign}.2f}{spread}".replace("-", "−")
        return f"({text})" if sign and not self.is_clear else text


def mean(values: Sequence[float]) -> Mean:
    """Take the mean; of one number the standard error is infinite."""
    count = len(values)
    if not count:
        return Mean(math.nan, math.inf, 0)
    spread = float(np.std(values, ddof=1)) if count > 1 else math.inf
    return Mean(float(np.mean(values)), spread / math.sqrt(count), count)


def by_seed(runs: Sequence[Run], cell: tuple, method: str) -> dict[int, float]:
    """Look up accuracies of a method."""
    return {
        run.seed: run.accuracy
        for run in runs
        if run.cell == cell and run.method == method
    }


def baseline(method: str) -> str:
    """Name the linear regression that trains as much as a method."""
    return "linear-regression" + (FIRST if FIRST in method else "")


def bare(method: str) -> str:
    """Drop from the name of a method who judges, and whose labels."""
    for end in (LOSS, HARM, CLEAN, OWN):
        method = method.removesuffix(end)
    return method


def gain(runs: Sequence[Run], cell: tuple, method: str) -> Mean:
    """Compare with linear regression, seed by seed."""
    ours, theirs = (by_seed(runs, cell, m) for m in (method, baseline(method)))
    return mean([ours[seed] - theirs[seed] for seed in ours if seed in theirs])


def table(runs: Sequence[Run], network: str, recipe: str) -> Table:
    """Show means, and gains over linear regression, one line a cell and method."""
    result = Table(title=f"{network}, {recipe}", title_justify="left")
    for name in ("kind", "sparsity", "method", "accuracy", "gain", "seeds"):
        justify: Any = "left" if name == "method" else "right"
        result.add_column(name, justify=justify, no_wrap=True)
    group = [run for run in runs if (run.network, run.recipe) == (network, recipe)]
    for cell in ordered(group):
        for method in dict.fromkeys(run.method for run in group):
            found = mean(list(by_seed(group, cell, method).values()))
            if not found.seeds:
                continue
            more = gain(group, cell, method)
            told = f"{more:+}" if more.seeds and method != baseline(method) else ""
            names = cell[2], f"{cell[3]:g}", method
            result.add_row(*names, str(found), told, str(found.seeds))
        result.add_section()
    return result


def markdown(runs: Sequence[Run]) -> dict[str, str]:
    """Make the tables of the docs, by title.

    A table a network, recipe and sparsity, and another for methods that train. Linear
    regression has its accuracy, the others their gain over it, each with its standard
    error; in brackets what is less than two of them from 0.
    """
    found = {}
    groups = {(r.network, r.recipe, r.sparsity, FIRST in r.method) for r in runs}
    for network, recipe, sparsity, trains in sorted(groups):
        title = f"{network}, {recipe}, {sparsity:g}{FIRST if trains else ''}"
        group = [
            run
            for run in runs
            if (run.network, run.recipe, run.sparsity) == (network, recipe, sparsity)
            and (FIRST in run.method) == trains
        ]
        base = baseline(FIRST if trains else "")
        others = [m for m in dict.fromkeys(r.method for r in group) if m != base]
        names = [m.replace(FIRST, "") for m in others]
        head = ["noise", "seeds", "linear-regression", *names]
        lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
        for cell in ordered(group):
            own = mean(list(by_seed(group, cell, base).values()))
            gains = [gain(group, cell, method) for method in others]
            if own.seeds:
                told = [f"{more:+}" if more.seeds else "" for more in gains]
                row = [KINDS[cell[2]], str(own.seeds), str(own), *told]
                lines.append("| " + " | ".join(row) + " |")
        found[title] = "\n".join(lines)
    return found


def ordered(runs: Sequence[Run]) -> list[tuple]:
    """List cells in the order of kinds and sparsities."""
    place = {kind: i for i, kind in enumerate(KINDS)}
    cells = {run.cell for run in runs}
    return sorted(cells, key=lambda c: (c[0], c[1], place.get(c[2], 99), c[3]))


class Rank(NamedTuple):
    """How a method stands among others.

    Attributes:
        cells: in how many it was measured with all others.
        rank: its mean there, 1 for the best.
        tied: in how many it is the best or within 0.3 points of it, 0.5 where the best
            has less than 80 percent.
        worst: the most points that it is behind the best.
    """

    cells: int
    rank: float
    tied: int
    worst: float


def halves(runs: Sequence[Run]) -> dict[str, dict[str, Rank]]:
    """Rank methods on half of seeds and kinds, and on the other half.

    Kinds and seeds take turns in their order: of kinds the first, third and so on with
    the even seeds choose, the others with the odd seeds confirm. Methods with the
    first-order step are ranked among themselves, those with a clean set not at all.
    """
    kinds = [k for k in KINDS if any(run.kind == k for run in runs)]
    parts: dict[str, Callable[[Run], bool]] = {
        "choosing": lambda r: kinds.index(r.kind) % 2 == 0 and r.seed % 2 == 0,
        "confirming": lambda r: kinds.index(r.kind) % 2 == 1 and r.seed % 2 == 1,
        "all": lambda r: True,
    }
    found = {}
    for trains in (False, True):
        for name, belongs in parts.items():
            some = [
                run
                for run in runs
                if run.kind in kinds
                and CLEAN not in run.method
                and belongs(run)
                and (FIRST in run.method) == trains
            ]
            ranks = rank(some)
            if ranks:
                found[f"{name}{FIRST if trains else ''}"] = ranks
    return found


def rank(runs: Sequence[Run]) -> dict[str, Rank]:
    """Rank methods where they were measured on the same seeds.

    A method that lacks more than half of the cells of the one that has the most is
    left out, and then each cell without a seed that all the others have.
    """
    cells: dict[tuple, dict[str, dict[int, float]]] = {}
    for run in runs:
        cell = cells.setdefault(run.cell, {})
        cell.setdefault(run.method, {})[run.seed] = run.accuracy
    counts = collections.Counter(method for cell in cells.values() for method in cell)
    most = max(counts.values(), default=0)
    methods = [method for method, count in counts.items() if 2 * count > most]
    rows = []
    for cell in cells.values():
        shared = [cell.get(method, {}) for method in methods]
        seeds = set.intersection(*map(set, shared))
        if seeds:
            rows.append([np.mean([one[seed] for seed in seeds]) for one in shared])
    if len(methods) < 2 or not rows:
        return {}
    means = np.array(rows)
    best = means.max(axis=1, keepdims=True)
    behind = best - means
    tied = behind <= np.where(best < 80, 0.5, 0.3)
    # Of equals each has the mean of their ranks.
    above = (means[:, None, :] > means[:, :, None]).sum(axis=2)
    equal = (means[:, None, :] == means[:, :, None]).sum(axis=2)
    ranks = (1 + above + (equal - 1) / 2).mean(axis=0)
    most_behind = behind.max(axis=0)
    return {
        method: Rank(len(rows), float(ranks[i]), int(tied[:, i].sum()),
                     float(most_behind[i]))
        for i, method in enumerate(methods)
    }  # fmt: skip


def ranking(name: str, found: dict[str, Rank]) -> Table:
    """Show how methods rank."""
    cells = next(iter(found.values())).cells
    result = Table(title=f"{name}: {cells} cells", title_justify="left")
    for column in ("method", "mean rank", "best or tied", "most behind"):
        result.add_column(column, justify="left" if column == "method" else "right")
    for method, row in sorted(found.items(), key=lambda item: item[1].rank):
        result.add_row(method, f"{row.rank:.2f}", str(row.tied), f"{row.worst:.2f}")
    return result
