"""FreeFlow's cells over many seeds, beside what needs no search.

A cell of NAS-Bench-201 at one removal and at 24, operations of all edges competing or
those of one; the cells of DARTS at one removal, in supernets of 8 and of 20 cells; and
the best of 100 random cells of NAS-Bench-201 by scores of whole cells. Weights, and
random cells, are drawn anew for every seed. What cells are worth is looked up in tables
of trained architectures (--tables). Seconds are by the clock and of the CPU,
compilation apart, but where whole cells are scored.

Writes results.csv after every search and goes on where it stopped; places.csv then.
With --report it prints the tables of docs/results/search.md.
"""

import dataclasses
import functools
import math
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from search_report import BEST_OF, Line, Placed, placed, report
from shared import DATA, RESULTS, complete_csv, console, read_runs, start, write_runs

from swapjax import search

# Space, cells of the supernet, removals, scope, seeds. Without removals: the score.
PLANS = (
    ("nb201", 5, 0, "params", 10),
    ("nb201", 5, 0, "decorrelation", 10),
    ("nb201", 5, 1, "global", 20),
    ("darts", 8, 1, "global", 2),
    ("darts", 20, 1, "global", 2),
    ("nb201", 5, 24, "global", 19),
    ("nb201", 5, 24, "edge", 19),
)
SPACES = {"nb201": search.nb201, "darts": search.darts}


@dataclasses.dataclass(frozen=True)
class Options:
    """Search for cells by FreeFlow."""

    tables: Path = DATA / "data" / "nas_tables.npz"
    """Accuracies of trained architectures."""
    seeds: int = 20
    """At most so many, of those of the plan."""
    out: Path = RESULTS / "search"
    """The folder to write to."""
    report: bool = False
    """Whether to print tables of what is there already, and nothing else."""


def main(options: Options) -> None:
    """Do what is left to do, then show everything."""
    target, places = (options.out / name for name in ("results.csv", "places.csv"))
    if not options.report:
        options.out.mkdir(parents=True, exist_ok=True)
        wanted = [
            Line(space, cells, steps, scope, seed)
            for space, cells, steps, scope, seeds in PLANS
            for seed in range(min(seeds, options.seeds))
        ]
        complete_csv(target, sorted(wanted, key=rank), find)
        write_runs(places, placed(read_runs(target, Line), options.tables))
    for table in report(read_runs(target, Line), read_runs(places, Placed)):
        console.print(table, highlight=False, soft_wrap=True)


def rank(line: Line) -> tuple:
    """Order searches: those of one step, then a seed of each of the others."""
    plan = [plan[:4] for plan in PLANS].index(line.plan)
    return (0, plan, line.seed) if line.steps == 1 else (1, line.seed, plan)


def find(line: Line) -> Line:
    """Search with one seed."""
    if not line.steps:
        return best_of_random(line)
    space, score, compiled = _scored(line.space, line.cells)
    wall, cpu = time.perf_counter(), time.process_time()
    found = search.remove(
        space, score, jax.random.key(line.seed), steps=line.steps, scope=line.scope
    )
    return dataclasses.replace(
        line,
        genotype=str(found.genotype),
        seconds=round(time.perf_counter() - wall, 3),
        cpu=round(time.process_time() - cpu, 3),
        compile_seconds=compiled.pop("seconds", math.nan),
        compile_cpu=compiled.pop("cpu", math.nan),
    )


def best_of_random(line: Line) -> Line:
    """Take the best of random cells by a score of whole cells, as the table has it."""
    space, rng = SPACES[line.space](cells=line.cells), np.random.default_rng(line.seed)
    (kind,) = space.kinds
    drawn = rng.integers(len(space.ops), size=(BEST_OF, len(space.edges[kind])))
    cells = [space.decode({kind: row}) for row in drawn]
    wall, cpu = time.perf_counter(), time.process_time()
    scores = search.score_architectures(
        space, cells, line.scope, jax.random.key(line.seed), shape=(16, 16, 3)
    )
    return dataclasses.replace(
        line,
        genotype=str(cells[int(scores.argmax())]),
        seconds=round(time.perf_counter() - wall, 3),
        cpu=round(time.process_time() - cpu, 3),
    )


@functools.cache
def _scored(name: str, cells: int) -> tuple[search.Space, Any, dict[str, float]]:
    """Make the score of a space, and compile it; its first search takes the seconds."""
    space = SPACES[name](cells=cells)
    score = search.freeflow(space)
    wall, cpu = time.perf_counter(), time.process_time()
    theta = space.init(jax.random.key(0))
    score(theta, space.alpha())
    compiled = {
        "seconds": round(time.perf_counter() - wall, 2),
        "cpu": round(time.process_time() - cpu, 2),
    }
    return space, score, compiled


if __name__ == "__main__":
    start(main, tyro.cli(Options))
