"""What LeNet-300-100 on MNIST recovers after being pruned at some epoch of training.

Eight epochs of SGD with momentum 0.9, batches of 128, the learning rate 0.1 for four of
them, 0.01 for two and 0.001 for two. The network of an epoch is pruned once by
magnitude, all layers together, with half of what is left regrown where the gradient is
large or not, and trained on for two epochs at the learning rate it had. Plasticity is
the accuracy then less the accuracy before pruning.

Writes results.csv after every network of an epoch and goes on where it stopped; then
results.png.
"""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from rich.table import Table
from shared import DATA, RESULTS, complete, console, read_runs, start, write_runs

import swapjax
from swapjax.core.types import Params
from swapjax.experiments import datasets, models, plot, runner
from swapjax.experiments.runner import Setting
from swapjax.loops import steps
from swapjax.training import Recovery, Trainer, fit

RATES = (0.1,) * 4 + (0.01,) * 2 + (0.001,) * 2  # learning rates, by epoch
BATCH, EXAMPLES = 128, 10_000  # of a step, and of the gradient to regrow by


@dataclasses.dataclass(frozen=True)
class Options:
    """Measure pruning plasticity."""

    epochs: tuple[int, ...] = (1, 3, 5, 7)
    """To prune after."""
    rates: tuple[float, ...] = (0.5, 0.9, 0.98)
    """Sparsities to prune to."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the initial weights and the order of examples."""
    longer: int = 2
    """Epochs to train on."""
    data: Path = DATA / "data" / "mnist.npz"
    """An .npz with x_train, y_train, x_test, y_test."""
    out: Path = RESULTS / "plasticity"
    """The folder to write to."""


@dataclasses.dataclass(frozen=True)
class Line:
    """One network of an epoch, pruned once and trained on."""

    seed: int
    longer: int
    epoch: int
    rate: float
    regrown: int
    kept: int
    before: float
    after: float
    seconds: float

    @property
    def key(self) -> tuple:
        """What tells it from others."""
        return self.seed, self.longer, self.epoch, self.rate, self.regrown

    def recovery(self) -> Recovery:
        """As `swapjax.pruning_plasticity` gave it."""
        return Recovery(self.epoch, self.rate, bool(self.regrown), self.kept,
                        self.before, self.after, self.seconds)  # fmt: skip


class Start(NamedTuple):
    """A network to be pruned."""

    seed: int
    epoch: int

    def __str__(self) -> str:
        return f"epoch {self.epoch}, seed {self.seed}"


def main(options: Options) -> None:
    """Do what is left to do, then show everything."""
    if not set(options.epochs) <= set(range(1, len(RATES) + 1)):
        raise SystemExit(f"--epochs must be from 1 to {len(RATES)}")
    options.out.mkdir(parents=True, exist_ok=True)
    data = datasets.load(options.data)
    target = options.out / "results.csv"
    done = {line.key: line for line in read_runs(target, Line)}
    known: dict[Start, Params] = {}

    def keys(of: Start) -> list[tuple]:
        return [(of.seed, options.longer, of.epoch, rate, 1) for rate in options.rates]

    def work(of: Start) -> dict[tuple, Line]:
        left = [key[3] for key in keys(of) if key not in done]
        params = train(*of, data, known)
        more = measure(options.longer, data, *of, params, left)
        return {line.key: line for line in more}

    complete(
        [Start(seed, epoch) for seed in options.seeds for epoch in options.epochs],
        done,
        work,
        lambda done: write_runs(target, list(done.values())),
        keys,
    )
    lines = [
        done[seed, options.longer, epoch, rate, on]
        for seed in options.seeds
        for epoch in options.epochs
        for rate in options.rates
        for on in (0, 1)
    ]
    console.print(table(lines))
    title = "LeNet-300-100 on MNIST, pruned and trained on"
    found = [line.recovery() for line in lines]
    picture = plot.plasticity_figure(found, title=title)
    plot.save(picture, options.out / "results.png")
    console.print(f"Written to {options.out}.", soft_wrap=True)


def network(data: datasets.Dataset, seed: int) -> models.Model:
    """At its initial weights."""
    return models.create("lenet300", data.shape, data.classes, seed=seed)


def train(
    seed: int, epoch: int, data: datasets.Dataset, known: dict[Start, Params]
) -> Params:
    """Train the dense network up to an epoch, from the last that is known before it."""
    model = network(data, seed)
    if epoch == 0:
        return model.params
    if Start(seed, epoch) not in known:
        # Momentum starts anew at each, as it does for those that are pruned.
        known[Start(seed, epoch)] = fit(
            model.loss_fn, train(seed, epoch - 1, data, known),
            optax.sgd(RATES[epoch - 1], momentum=0.9), data.train, epochs=1,
            batch=BATCH, key=jax.random.key(100 * seed + epoch),
        ).params  # fmt: skip
    return known[Start(seed, epoch)]


def measure(
    longer: int,
    data: datasets.Dataset,
    seed: int,
    epoch: int,
    params: Params,
    rates: list[float],
) -> list[Line]:
    """Every rate, with and without regrowth."""
    model = network(data, seed)
    total = longer * steps.per_epoch(data.train, BATCH, "batch")
    settings = swapjax.FineTune(optax.sgd(RATES[epoch - 1], 0.9), total, BATCH)
    setting = Setting(data, model, params)
    some = tuple(jnp.asarray(part[:EXAMPLES]) for part in data.train)
    slope = jax.jit(lambda params: jax.grad(model.loss_fn)(params, some))
    return [
        Line(seed, longer, epoch, x.rate, int(x.regrown), x.kept,
             x.before, x.after, round(x.seconds, 2))
        for x in swapjax.pruning_plasticity(
            Trainer(model.loss_fn, data.train, settings),
            {epoch: params},
            evaluate=lambda params: round(runner.evaluate(setting, params)[0], 4),
            rates=rates,
            gradient=slope,
            key=jax.random.key(seed),
        )
    ]  # fmt: skip


def table(lines: list[Line]) -> Table:
    """Mean plasticity over seeds, and what regrowth adds to it."""
    result = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for name in ("epoch", "sparsity", "before", "pruned", "regrown", "gain"):
        result.add_column(name, justify="right")
    for epoch, rate in sorted({(line.epoch, line.rate) for line in lines}):
        cell = [line for line in lines if (line.epoch, line.rate) == (epoch, rate)]
        plain, regrown = (
            np.asarray([x.after - x.before for x in cell if x.regrown == on])
            for on in (0, 1)
        )
        gain = regrown - plain
        result.add_row(
            str(epoch), f"{rate:g}", f"{np.mean([x.before for x in cell]):.2f}",
            f"{plain.mean():+.2f}", f"{regrown.mean():+.2f}",
            f"{gain.mean():+.2f}±{gain.std(ddof=1) / np.sqrt(len(gain)):.2f}"
            if len(gain) > 1 else f"{gain.mean():+.2f}",
        )  # fmt: skip
    return result


if __name__ == "__main__":
    start(main, tyro.cli(Options))
