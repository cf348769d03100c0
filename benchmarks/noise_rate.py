"""The rate of SGD between stages that the study of noise calls tuned.

MLPNet on MNIST is pruned to 0.98 in 15 stages by linear regression, with an epoch of
SGD after each, as in the recipe "tuned" of `noise.py`, on clean data. The last 10,000
training images are left out and judge; neither the test images nor the study's seeds
are looked at. (The dense network was trained on all training images.)

Writes rates.csv after every run, and goes on where it stopped.
"""

import dataclasses
import time
from pathlib import Path

import noise
import numpy as np
import tyro
from shared import DATA, RESULTS, complete_csv, console, start

from swapjax.experiments import runner

_LEFT_OUT = 10_000


@dataclasses.dataclass(frozen=True)
class Options:
    """Prune with SGD between stages at several rates."""

    rates: tuple[float, ...] = (1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3)
    """Of SGD, momentum 0.5."""
    seeds: tuple[int, ...] = (100, 101)
    """Of samples and shuffles."""
    out: Path = RESULTS / "noise"
    """The folder for rates.csv."""
    data: Path = DATA
    """The folder of data and checkpoints."""


@dataclasses.dataclass(frozen=True)
class Run:
    """One line of the results; the accuracy in percent, of the images left out."""

    rate: float
    seed: int
    accuracy: float = float("nan")
    cpu: float = float("nan")

    def __str__(self) -> str:
        return f"rate {self.rate:g}, seed {self.seed}"

    @property
    def key(self) -> tuple:
        """What tells it from other runs."""
        return self.rate, self.seed


def main(options: Options) -> None:
    """Do what is left to do, then print everything."""
    network = noise.NETWORKS["mlpnet"]
    study = noise.Options(
        data=options.data / "data", checkpoints=options.data / "checkpoints"
    )
    setting = left_out(noise.set_up(study, network.name))

    def measure(run: Run) -> Run:
        started = time.process_time()
        row, _ = runner.run(
            setting,
            noise.make("linear-regression"),
            sparsity=0.98,
            seed=run.seed,
            samples=network.samples,
            batch=network.batch,
            **noise.with_sgd(network, len(setting.data.y_train), run.rate),
        )
        cpu = round(time.process_time() - started, 2)
        return dataclasses.replace(run, accuracy=round(row.accuracy, 4), cpu=cpu)

    options.out.mkdir(parents=True, exist_ok=True)
    wanted = [Run(rate, seed) for seed in options.seeds for rate in options.rates]
    runs = list(complete_csv(options.out / "rates.csv", wanted, measure).values())
    means = {
        rate: float(np.mean([run.accuracy for run in runs if run.rate == rate]))
        for rate in sorted({run.rate for run in runs})
    }
    for rate, mean in means.items():
        console.print(f"rate {rate:g}: {mean:.2f}% of the images left out")
    best = max(means, key=lambda rate: means[rate])
    console.print(f"Best: {best:g}; the study's is {noise.TUNED:g}.")


def left_out(setting: runner.Setting) -> runner.Setting:
    """Test on the last training images, and prune on the others."""
    (x, y), cut = setting.data.train, -_LEFT_OUT
    data = setting.data._replace(
        x_train=x[:cut], y_train=y[:cut], x_test=x[cut:], y_test=y[cut:]
    )
    return dataclasses.replace(setting, data=data)


if __name__ == "__main__":
    start(main, tyro.cli(Options))
