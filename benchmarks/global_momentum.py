"""What pruning 60 times over costs a network trained by global sparse momentum.

LeNet-300-100 on MNIST, trained by momentum for some epochs, and then by momentum 0.99
with decay as the authors of GSM train LeNet: batches of 256, a learning rate of 0.01
for 160 epochs and a tenth of the one before for 40 each thrice. Once gradients reach
one weight in sixty at each step, and once all of them. In the end all but one weight
in sixty are cut, and nothing is trained after that.

Writes results.csv after every run and goes on where it stopped.
"""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import optax
import tyro
from rich.table import Table
from shared import DATA, RESULTS, read_runs, start, write_runs

import swapjax
from swapjax import datasets, experiments, models, steps
from swapjax.cli.screen import console, progress
from swapjax.experiments import Setting
from swapjax.training import fit

SPARSITY = 1 - 1 / 60
MOMENTUM, DECAY, BATCH = 0.99, 5e-4, 256


@dataclasses.dataclass(frozen=True)
class Options:
    """Train by global sparse momentum, cut, and see what is lost."""

    trainings: tuple[str, ...] = ("gsm", "plain momentum")
    """Of these two."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the initial weights and the order of examples."""
    before: int = 20
    """Epochs of training before, at momentum 0.9 and a rate that falls from 0.03."""
    epochs: tuple[int, ...] = (160, 40, 40, 40)
    """Epochs at each learning rate."""
    rate: float = 0.01
    """The first of them; each one that follows is a tenth of it."""
    data: Path = DATA / "data" / "mnist.npz"
    """An .npz with x_train, y_train, x_test, y_test."""
    out: Path = RESULTS / "global_momentum"
    """The folder to write to."""


@dataclasses.dataclass(frozen=True)
class Line:
    """One run: accuracies before and after the cut, and what went."""

    training: str
    epochs: str
    rate: float
    seed: int
    before: float = float("nan")
    after: float = float("nan")
    quantile: float = float("nan")
    left: int = 0

    @property
    def key(self) -> tuple:
        """What tells it from others."""
        return self.training, self.epochs, self.rate, self.seed


def main(options: Options) -> None:
    """Do what is left to do, then show everything."""
    options.out.mkdir(parents=True, exist_ok=True)
    data = datasets.load(options.data)
    target = options.out / "results.csv"
    done = {line.key: line for line in read_runs(target, Line)}
    epochs = "+".join(map(str, (options.before, *options.epochs)))
    wanted = [
        Line(training, epochs, options.rate, seed)
        for training in options.trainings
        for seed in options.seeds
    ]
    left = [line for line in wanted if line.key not in done]
    console.print(f"{len(wanted) - len(left)} of {len(wanted)} runs are done already.")
    for line in left:
        done[line.key] = train(line, options, data)
        write_runs(target, list(done.values()))
    console.print(table([done[line.key] for line in wanted]))
    console.print(f"Written to {options.out}.", soft_wrap=True)


def train(line: Line, options: Options, data: datasets.Dataset) -> Line:
    """One run, from initial weights to the cut."""
    model = models.create("lenet300", data.shape, data.classes, seed=line.seed)
    per_epoch = steps.per_epoch(data.train, BATCH, "batch")
    falls = optax.cosine_decay_schedule(0.03, options.before * per_epoch)
    drops = [sum(options.epochs[:i]) for i in range(1, len(options.epochs))]
    rate = optax.piecewise_constant_schedule(
        options.rate, {per_epoch * drop: 0.1 for drop in drops}
    )
    tx = optax.chain(
        optax.add_decayed_weights(DECAY),
        optax.sgd(rate, momentum=MOMENTUM, nesterov=True),
    )
    if line.training == "gsm":
        tx = optax.chain(swapjax.gsm(SPARSITY), tx)
    parts = (optax.sgd(falls, momentum=0.9), options.before), (tx, sum(options.epochs))
    params = model.params
    for i, (optimizer, epochs) in enumerate(parts):
        label = f"{line.training}, seed {line.seed}, part {i + 1} of 2"
        with progress(label, epochs * per_epoch) as (bar, task):
            params = fit(
                model.loss_fn, params, optimizer, data.train, epochs=epochs,
                batch=BATCH, key=jax.random.key(2 * line.seed + i),
                progress=lambda steps, _: bar.update(task, completed=steps),
            ).params  # fmt: skip
    cut = swapjax.prune(
        model.loss_fn, params, data.train, sparsity=SPARSITY, samples=1,
        method=swapjax.magnitude(), schedule=swapjax.one_shot(), key=jax.random.key(0),
    )  # fmt: skip
    setting = Setting(data, model, params)
    leaves = zip(jax.tree.leaves(params), jax.tree.leaves(cut.masks), strict=True)
    gone = [np.abs(np.asarray(w))[~np.asarray(m)] for w, m in leaves]
    return dataclasses.replace(
        line,
        before=round(experiments.evaluate(setting, params)[0], 4),
        after=round(experiments.evaluate(setting, cut.params)[0], 4),
        quantile=float(np.quantile(np.concatenate(gone), 0.999)),
        left=swapjax.masks.count(cut.masks)[0],
    )


def table(lines: list[Line]) -> Table:
    """What the cut costs."""
    result = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    result.add_column("trained by")
    for name in ("seed", "accuracy", "cut", "lost", "99.9 % of what goes"):
        result.add_column(name, justify="right")
    for line in lines:
        result.add_row(
            line.training, str(line.seed), f"{line.before:.2f}", f"{line.after:.2f}",
            f"{line.before - line.after:.2f}", f"{line.quantile:.2g}",
        )  # fmt: skip
    return result


if __name__ == "__main__":
    start(main, tyro.cli(Options))
