"""What pruning 60 times over costs a network trained by global sparse momentum.

LeNet-300-100 on MNIST, trained by momentum for some epochs, and then by Nesterov's
momentum of 0.99 with decay: once gradients reach one weight in sixty at each step, and
once all of them. In the end all but one weight in sixty are cut, and nothing is trained
after that. Batches, decay and learning rates are those that the authors of GSM have for
LeNet (280 epochs), or larger ones, so that what is not chosen wears off sooner.

Writes results.csv after every run and goes on where it stopped.
"""

import dataclasses
import functools
import itertools
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import numpy as np
import optax
import tyro
from rich.table import Table
from shared import DATA, RESULTS, complete_csv, console, start

import swapjax
from swapjax.experiments import datasets, models, runner
from swapjax.loops import steps
from swapjax.sparsity import masks
from swapjax.training import fit

SPARSITY = 1 - 1 / 60
BEFORE = 20  # epochs at momentum 0.9, a rate that falls from 0.03, batches of 256


class Setting(NamedTuple):
    """How to train by momentum 0.99.

    Attributes:
        batch: examples a step.
        decay: of all weights.
        phases: epochs, and the learning rate in them.
    """

    batch: int
    decay: float
    phases: tuple[tuple[int, float], ...]


SETTINGS = {
    "fast": Setting(1024, 1e-3, ((60, 0.1), (40, 0.03), (20, 0.003))),
    "authors": Setting(256, 5e-4, ((160, 1e-2), (40, 1e-3), (40, 1e-4), (40, 1e-5))),
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Train by global sparse momentum, cut, and see what is lost."""

    settings: tuple[Literal["fast", "authors"], ...] = ("fast", "authors")
    """Of these two."""
    trainings: tuple[Literal["gsm", "plain momentum"], ...] = ("gsm", "plain momentum")
    """Of these two."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the initial weights and the order of examples."""
    data: Path = DATA / "data" / "mnist.npz"
    """An .npz with x_train, y_train, x_test, y_test."""
    out: Path = RESULTS / "global_momentum"
    """The folder to write to."""


@dataclasses.dataclass(frozen=True)
class Line:
    """One run: accuracies before and after the cut, and what went.

    Attributes:
        quantile: that 999 of 1,000 weights that are cut are below.
        left: the weights that are not.
    """

    setting: str
    training: str
    seed: int
    before: float = float("nan")
    after: float = float("nan")
    quantile: float = float("nan")
    left: int = 0

    def __str__(self) -> str:
        return f"{self.setting}, {self.training}, seed {self.seed}"

    @property
    def key(self) -> tuple:
        """What tells it from others."""
        return self.setting, self.training, self.seed


def main(options: Options) -> None:
    """Do what is left to do, then show everything."""
    options.out.mkdir(parents=True, exist_ok=True)
    data = datasets.load(options.data)
    target = options.out / "results.csv"
    wanted = [
        Line(setting, training, seed)
        for setting in options.settings
        for training in options.trainings
        for seed in options.seeds
    ]
    done = complete_csv(target, wanted, functools.partial(train, data=data))
    console.print(table([done[line.key] for line in wanted]))
    console.print(f"Written to {options.out}.", soft_wrap=True)


def train(line: Line, data: datasets.Dataset) -> Line:
    """One run, from initial weights to the cut."""
    model = models.create("lenet300", data.shape, data.classes, seed=line.seed)
    setting = SETTINGS[line.setting]
    before, after = (
        steps.per_epoch(data.train, batch, "batch") for batch in (256, setting.batch)
    )
    falls = optax.cosine_decay_schedule(0.03, BEFORE * before)
    epochs, rates = zip(*setting.phases, strict=True)
    ends = (after * n for n in itertools.accumulate(epochs[:-1]))
    constant = map(optax.constant_schedule, rates)
    rate = optax.join_schedules(list(constant), list(ends))
    tx = optax.chain(
        optax.add_decayed_weights(setting.decay),
        optax.sgd(rate, momentum=0.99, nesterov=True),
    )
    if line.training == "gsm":
        tx = optax.chain(swapjax.gsm(SPARSITY), tx)
    parts = (
        (optax.sgd(falls, momentum=0.9), 256, BEFORE),
        (tx, setting.batch, sum(epochs)),
    )
    params = model.params
    for i, (optimizer, batch, length) in enumerate(parts):
        params = fit(
            model.loss_fn, params, optimizer, data.train, epochs=length, batch=batch,
            key=jax.random.key(2 * line.seed + i),
        ).params  # fmt: skip
    cut = swapjax.prune(
        model.loss_fn, params, data.train, sparsity=SPARSITY, samples=1,
        method=swapjax.magnitude(), schedule=swapjax.one_shot(), key=jax.random.key(0),
    )  # fmt: skip
    judge = runner.Setting(data, model, params)
    leaves = zip(jax.tree.leaves(params), jax.tree.leaves(cut.masks), strict=True)
    gone = [np.abs(np.asarray(w))[~np.asarray(m)] for w, m in leaves]
    return dataclasses.replace(
        line,
        before=round(runner.evaluate(judge, params)[0], 4),
        after=round(runner.evaluate(judge, cut.params)[0], 4),
        quantile=float(np.quantile(np.concatenate(gone), 0.999)),
        left=masks.count(cut.masks)[0],
    )


def table(lines: list[Line]) -> Table:
    """Tabulate what the cut costs."""
    result = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    result.add_column("setting")
    result.add_column("trained by")
    for name in ("seed", "accuracy", "cut", "lost", "99.9 % of what goes"):
        result.add_column(name, justify="right")
    for line in lines:
        result.add_row(
            line.setting, line.training, str(line.seed),
            f"{line.before:.2f}", f"{line.after:.2f}",
            f"{line.before - line.after:.2f}", f"{line.quantile:.2g}",
        )  # fmt: skip
    return result


if __name__ == "__main__":
    start(main, tyro.cli(Options))
