"""From a search space to a sparse network: search, train, prune.

A cell of NAS-Bench-201's space is found without data by the flow through operations, or
drawn at random. Its network is trained dense, and pruned in one stage by magnitude and
by the regression of the command line; and the same initial weights are trained sparse
from the start. Statistics of batch norm are estimated anew on images of the training
set before accuracy on the test set is measured.

Writes results.csv after every run and goes on where it stopped.
"""

import dataclasses
import functools
import time
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from shared import RESULTS, complete_csv, console, start

import swapjax
from swapjax import search
from swapjax.core.types import Params
from swapjax.experiments import datasets, models, runner
from swapjax.loops import steps
from swapjax.sparsity import masks
from swapjax.training import fit

_SAMPLES = 1000  # images for statistics of batch norm and for the rows of regression


@dataclasses.dataclass(frozen=True)
class Options:
    """Search, train, prune."""

    cells: tuple[Literal["freeflow", "random"], ...] = ("freeflow", "random")
    """Where cells come from."""
    steps: int = 24
    """Steps in which the search removes operations."""
    channels: int = 8
    """Of the first stage: 16 in NAS-Bench-201."""
    depth: int = 1
    """Cells in each stage: 5 in NAS-Bench-201."""
    epochs: int = 30
    """Passes over the training set, dense and sparse."""
    sparsity: float = 0.8
    """The fraction of prunable weights to remove."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of search, weights and the order of examples."""
    data: str = "digits"
    """digits, or an .npz with images of three channels and sides divisible by 4."""
    out: Path = RESULTS / "search_to_sparse"
    """The folder to write to."""


@dataclasses.dataclass(frozen=True)
class Line:
    """One network: where its cell is from, and accuracies in percent.

    Attributes:
        search_seconds: of the search, compilation included.
        left: prunable weights that are not zero in the pruned networks.
    """

    cell: str
    seed: int
    genotype: str = ""
    search_seconds: float = float("nan")
    weights: int = 0
    macs: int = 0
    left: int = 0
    dense: float = float("nan")
    magnitude: float = float("nan")
    regression: float = float("nan")
    granet: float = float("nan")
    seconds: float = float("nan")

    def __str__(self) -> str:
        return f"cell by {self.cell}, seed {self.seed}"

    @property
    def key(self) -> tuple:
        """What tells it from others."""
        return self.cell, self.seed


def main(options: Options) -> None:
    """Do what is left to do, then show everything."""
    options.out.mkdir(parents=True, exist_ok=True)
    data = datasets.load(options.data)
    wanted = [Line(cell, seed) for seed in options.seeds for cell in options.cells]
    work = functools.partial(measure, options, data)
    done = complete_csv(options.out / "results.csv", wanted, work)
    console.print(report([done[line.key] for line in wanted]))
    console.print(f"Written to {options.out}.", soft_wrap=True)


def measure(options: Options, data: datasets.Dataset, line: Line) -> Line:
    """Go from the space to sparse networks."""
    started = time.perf_counter()
    space = search.nb201(options.channels, options.depth)
    height, width, channels = (*data.shape, 1)[:3]
    shape = height, width, channels
    found = choose(options, space, shape, data.classes, line)
    searched = time.perf_counter() - started
    network = space.network(found, shape, data.classes)
    model = models.from_network(str(found), network, data.shape, seed=line.seed)

    images = jnp.asarray(data.x_train[:_SAMPLES])
    again = functools.partial(
        swapjax.recalibrate_batchnorm, model.statistics, batches=[images]
    )
    judge = runner.Setting(data, model, model.params)

    def accuracy(params: Params) -> float:
        return round(runner.evaluate(judge, again(params))[0], 2)

    dense = again(train(options, data, model, line.seed))
    pruned = {
        name: swapjax.prune(
            model.loss_fn, dense, data.train, sparsity=options.sparsity, method=method,
            schedule=swapjax.one_shot(), samples=_SAMPLES, recalibrate=again,
            key=jax.random.key(line.seed),
        )
        for name, method in {
            "magnitude": swapjax.magnitude(),
            "regression": swapjax.kfac_regression(),
        }.items()
    }  # fmt: skip
    grown = train(options, data, model, line.seed, sparsity=options.sparsity)
    return dataclasses.replace(
        line,
        genotype=str(found),
        search_seconds=round(searched, 2),
        weights=network.weights,
        macs=network.macs,
        left=masks.count(pruned["magnitude"].masks)[0],
        dense=accuracy(dense),
        magnitude=accuracy(pruned["magnitude"].params),
        regression=accuracy(pruned["regression"].params),
        granet=accuracy(grown),
        seconds=round(time.perf_counter() - started, 1),
    )


def choose(
    options: Options,
    space: search.Space,
    shape: tuple[int, int, int],
    classes: int,
    line: Line,
) -> search.Genotype:
    """Search for a cell, or draw one that lets something through."""
    if line.cell == "freeflow":
        return search.remove(
            space, search.freeflow(space, shape=shape), jax.random.key(line.seed),
            shape=shape, classes=classes, steps=options.steps,
        ).genotype  # fmt: skip
    rng = np.random.default_rng(line.seed)
    (kind,) = space.kinds
    while True:
        numbers = rng.integers(len(space.ops), size=len(space.edges[kind]))
        reached = {0}  # nodes that something comes to, edges in the order of nodes
        for (source, to), op in zip(space.edges[kind], numbers, strict=True):
            if source in reached and op:
                reached.add(to)
        if space.edges[kind][-1][1] in reached:
            return space.decode({kind: numbers})


def train(
    options: Options,
    data: datasets.Dataset,
    model: models.Model,
    seed: int,
    *,
    sparsity: float | None = None,
) -> Params:
    """Train by Adam, the rate falling from 3e-3 along a cosine; sparse by GraNet."""
    batch = 64
    total = options.epochs * steps.per_epoch(data.train, batch, "batch")
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, total))
    if sparsity is not None:
        every = max(total // 60, 1)
        schedule = swapjax.cubic(0, total // 2, every=every)
        rule = swapjax.granet()
        optimizer = swapjax.sparse(
            optimizer, rule, sparsity=sparsity, schedule=schedule, steps=total,
            key=jax.random.key(seed),
        )  # fmt: skip
    return fit(
        model.training_loss, model.params, optimizer, data.train,
        epochs=options.epochs, batch=batch, key=jax.random.key(seed),
    ).params  # fmt: skip


def report(lines: list[Line]) -> str:
    """Write the table of the docs, a row a network."""
    rows = [
        "| cell | seed | weights | dense | magnitude | regression | GraNet |",
        "|---|---|---|---|---|---|---|",
    ]
    for line in lines:
        percents = (line.dense, line.magnitude, line.regression, line.granet)
        told = " | ".join(f"{percent:.2f}" for percent in percents)
        rows.append(f"| {line.cell} | {line.seed} | {line.weights:,} | {told} |")
    return "\n".join(rows)


if __name__ == "__main__":
    start(main, tyro.cli(Options))
