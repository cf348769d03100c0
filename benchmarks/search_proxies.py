"""Score the architectures of published tables before training, and search by flow.

python benchmarks/search_proxies.py [--tables PATH] [--images PATH] [--proxies NAMES]

Writes benchmarks/results/search_proxies/{scores,choices}.csv, a line a score or a
choice; what stands there is not done again. Architectures of the tables are split in
halves by a fixed permutation: scores were chosen on the first halves, by the accuracies
on CIFAR-10, and nothing else.
"""

import argparse
import dataclasses
import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from shared import DATA, RESULTS, complete, console, read_runs, write_runs

from swapjax import search
from swapjax.experiments import datasets

FOLDER = RESULTS / "search_proxies"
BATCH = 64  # real images
SOME = 24  # cells of proxies that take a second each
SEEDS = 20


@dataclasses.dataclass(frozen=True)
class Score:
    """One score of one architecture.

    Attributes:
        space: ``"nb201"`` or ``"darts"``.
        proxy: a name of the table of proxies.
        seed: of the weights and of random images.
        cell: row of the tables.
        score: NaN where it is none.
    """

    space: str
    proxy: str
    seed: int
    cell: int
    score: float = math.nan

    @property
    def key(self) -> tuple:
        """What was scored."""
        return self.space, self.proxy, self.seed, self.cell


@dataclasses.dataclass(frozen=True)
class Choice:
    """One search.

    Attributes:
        space: ``"nb201"`` or ``"darts"``.
        score: of operations, by name.
        steps: of the removal.
        seed: of the weights.
        genotype: the choice; empty where scores are not finite.
        seconds: of the search, compilation left out.
        compilation: seconds of the first call; 0 of later ones.
    """

    space: str
    score: str
    steps: int
    seed: int
    genotype: str = ""
    seconds: float = math.nan
    compilation: float = 0.0

    @property
    def key(self) -> tuple:
        """What was searched."""
        return self.space, self.score, self.steps, self.seed


class Plan(NamedTuple):
    """Architectures to score by one proxy.

    Attributes:
        space: by name.
        proxy: by name.
        cells: how many.
        side: of images, in pixels.
        examples: how many images.
        seed: of weights and images.
    """

    space: str
    proxy: str
    cells: int
    side: int = 32
    examples: int = 16
    seed: int = 0


OPERATIONS = ("freeflow",)  # architectures score their sums
PLANS = (
    Plan("nb201", "params", 245),
    Plan("nb201", "flops", 245),
    Plan("nb201", "synflow", 245),
    Plan("nb201", "decorrelation", 245, side=16),
    Plan("darts", "decorrelation", 250, side=16, examples=8),
    Plan("nb201", "grad_norm", SOME, examples=BATCH),
    Plan("nb201", "snip", SOME, examples=BATCH),
    Plan("nb201", "jacob_cov", SOME, examples=BATCH),
    Plan("nb201", "freeflow", 245),
    Plan("darts", "freeflow", 250),
    Plan("darts", "params", 250),
    Plan("darts", "flops", 250),
)


def score(plan: Plan, genotypes: list, images: str) -> dict:
    """Score the first architectures of a permutation by one proxy."""
    space = SPACES[plan.space]()
    order = permutation(len(genotypes))[: plan.cells]
    chosen = [genotypes[i] for i in order]
    if plan.proxy in OPERATIONS:
        rule = scores_of(space)[plan.proxy][0]
        table = rule(space.init(jax.random.key(plan.seed)), space.alpha())
        return lines(plan, order, search.add_scores(space, table, chosen))
    row = search.PROXIES[plan.proxy]
    data: dict[str, Any] = {}
    if plan.examples == BATCH or row.needs == "labels":
        cifar = datasets.load(images)
        x, y = cifar.x_train[: plan.examples], cifar.y_train[: plan.examples]
        data = {"images": x, "labels": y}
    found = search.score_architectures(
        space,
        chosen,
        plan.proxy,
        jax.random.key(plan.seed),
        shape=(plan.side, plan.side, 3),
        examples=plan.examples,
        deviation=search.pytorch if row.needs == "weights" else search.he,
        **data,
    )
    return lines(plan, order, found)


def lines(plan: Plan, order: np.ndarray, found: np.ndarray) -> dict:
    """Return the lines of the file, by key."""
    runs = [
        Score(plan.space, plan.proxy, plan.seed, int(i), float(x))
        for i, x in zip(order, found, strict=True)
    ]
    return {run.key: run for run in runs}


def permutation(cells: int) -> np.ndarray:
    """Return the order of a table's architectures whose first half is chosen by."""
    return np.random.default_rng(0).permutation(cells)


SPACES = {"nb201": search.nb201, "darts": search.darts}


def scores_of(space: Any) -> dict[str, Any]:
    """Return what operations are scored by: the score, and options of the removal."""
    random = {"alpha": "random"}
    return {
        "freeflow": (search.freeflow(space), {}),
        "freeflow, rescaled": (search.freeflow(space, rescale=True), {}),
        "freeflow, random alpha": (search.freeflow(space), random),
        "freeflow, float32": (search.freeflow(space, dtype="float32"), {}),
        "parity, float32": (search.synflow_ops(space), random),
        "parity, float32, alpha of ones": (search.synflow_ops(space), {}),
        "parity, float64": (search.freeflow(space, norm="train"), random),
    }


SEARCHES = (
    ("nb201", "freeflow", 1, SEEDS),
    ("nb201", "freeflow, float32", 1, SEEDS),
    ("nb201", "parity, float32", 1, SEEDS),
    ("nb201", "parity, float32, alpha of ones", 1, SEEDS),
    ("nb201", "freeflow, rescaled", 1, SEEDS),
    ("nb201", "freeflow, random alpha", 1, SEEDS),
    ("nb201", "parity, float64", 1, SEEDS),
    ("nb201", "freeflow", 24, 3),
    ("nb201", "freeflow, rescaled", 24, 3),
    ("darts", "freeflow", 1, 3),
)


def choose(wanted: tuple) -> dict:
    """Search with several seeds by one score."""
    name, scored, steps, seeds = wanted
    space = SPACES[name]()
    rule, options = scores_of(space)[scored]
    started = time.perf_counter()
    rule(space.init(jax.random.key(0)), space.alpha())
    compilation = time.perf_counter() - started
    found = {}
    for seed in range(seeds):
        run = Choice(name, scored, steps, seed, compilation=compilation * (not seed))
        started = time.perf_counter()
        try:
            chosen = search.remove(
                space, rule, jax.random.key(seed), steps=steps, **options
            )
            run = dataclasses.replace(run, genotype=str(chosen.genotype))
        except ValueError as e:
            console.print(f"  seed {seed}: {e}")
        seconds = time.perf_counter() - started
        found[run.key] = dataclasses.replace(run, seconds=seconds)
    return found


def main() -> None:
    """Score and search what is not done yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", default=str(DATA / "data/nas_tables.npz"))
    parser.add_argument("--images", default=str(DATA / "data/cifar10_jpeg.npz"))
    parser.add_argument("--proxies", nargs="*", default=[], help="only these")
    parser.add_argument("--out", type=Path, default=FOLDER)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    tables = search.load_tables(options.tables)
    path = options.out / "choices.csv"
    complete(
        () if options.proxies else SEARCHES,
        {run.key: run for run in read_runs(path, Choice)},
        choose,
        lambda done: write_runs(path, list(done.values())),
        lambda wanted: [(*wanted[:3], seed) for seed in range(wanted[3])],
    )
    path = options.out / "scores.csv"
    genotypes = {
        name: list(min(tables.of(name, "cifar10"), key=len).genotypes)
        for name in SPACES
    }
    complete(
        [plan for plan in PLANS if plan.proxy in (options.proxies or [plan.proxy])],
        {run.key: run for run in read_runs(path, Score)},
        lambda plan: score(plan, genotypes[plan.space], options.images),
        lambda done: write_runs(path, list(done.values())),
        lambda plan: [
            (plan.space, plan.proxy, plan.seed, int(i))
            for i in permutation(len(genotypes[plan.space]))[: plan.cells]
        ],
    )


if __name__ == "__main__":
    main()
