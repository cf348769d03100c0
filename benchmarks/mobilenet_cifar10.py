"""MobileNetV1 on CIFAR-10 (JPEG copies): trained once, then pruned to a quarter and on.

Trains by SGD on the images and their mirror images, which resumes after each epoch,
then prunes as `resnet20_cifar10.py` does, batch norm recalibrated. With half the
channels training takes an hour on a CPU; all of them want a GPU.

Writes training.npz after every epoch and results.csv after every run, and goes on where
it stopped; then results.png.
"""

import dataclasses
import functools
import sys
from pathlib import Path
from typing import Literal

import jax
import numpy as np
import optax
import tyro
from resnet20_cifar10 import Options as Shared
from resnet20_cifar10 import Run, figure, measure, recalibration, table
from shared import RESULTS, complete_csv, console, start

from swapjax.experiments import datasets, models, plot, runner
from swapjax.training import fit


@dataclasses.dataclass(frozen=True)
class Options(Shared):
    """Train MobileNetV1, and prune it by several methods."""

    methods: tuple[str, ...] = (
        "magnitude",
        "layerwise-obs",
        "layerwise-obs, greedy",
        "layerwise-obs, output",
        "layerwise-obs, output, greedy",
        "layerwise-obs, equal",
        "layerwise-obs, equal, greedy",
    )
    """Any of the names in the table of ResNet-20."""
    norms: tuple[str, ...] = ("again",)
    """Whether batch norm is recalibrated: again, kept."""
    stages: tuple[int, ...] = (1, 8)
    """How many."""
    sparsities: tuple[float, ...] = (0.75, 0.8, 0.9, 0.95)
    """How far."""
    network: Literal["mobilenet_v1_half", "mobilenet_v1"] = "mobilenet_v1_half"
    """Half the channels, or all of them."""
    out: Path = RESULTS / "mobilenet_cifar10"
    """The folder for training.npz, results.csv and results.png; another network needs
    another."""
    epochs: int = 20
    """Of the training: batches of 128, the rate falling from 0.05 along a cosine."""


def main(options: Options) -> None:
    """Do what is left to do, then show everything."""
    if not options.data.exists():
        sys.exit(f"{options.data}: not there; name it with --data")
    data = datasets.load(options.data, mean=0.5, std=0.5)
    options.out.mkdir(parents=True, exist_ok=True)
    setting = train(options, data)
    accuracy, loss = runner.evaluate(setting, setting.params)
    console.print(f"Dense: {accuracy:.2f}%, loss {loss:.4f}.")
    wanted = [
        Run(method, norm, stages, sparsity, seed)
        for seed in options.seeds
        for stages in options.stages
        for norm in options.norms
        for method in options.methods
        for sparsity in options.sparsities
        if method != "magnitude" or (seed == 0 and stages == 1)
    ]
    score = functools.partial(measure, options, setting, recalibration(setting))
    runs = list(complete_csv(options.out / "results.csv", wanted, score).values())
    console.print(table(runs, {}))
    plot.save(figure(runs, accuracy), options.out / "results.png")
    console.print(f"Written to {options.out}.", soft_wrap=True)


def train(options: Options, data: datasets.Dataset) -> runner.Setting:
    """Train, or take up what an earlier call has trained."""
    model = models.create(options.network, data.shape, data.classes)
    x, y = data.train
    both = np.concatenate([x, x[:, :, ::-1]]), np.concatenate([y, y])
    steps = options.epochs * (len(both[1]) // 128)
    sgd = optax.sgd(
        optax.warmup_cosine_decay_schedule(0.0, 0.05, max(1, steps // 20), steps),
        momentum=0.9,
        nesterov=True,
    )
    fitted = fit(
        model.training_loss,
        model.params,
        optax.chain(optax.add_decayed_weights(5e-4), sgd),
        both,
        epochs=options.epochs,
        batch=128,
        key=jax.random.key(0),
        checkpoint=options.out / "training.npz",
        callback=lambda epoch: console.print(
            f"epoch {epoch.epoch}: loss {epoch.loss:.4f}, {epoch.seconds:.0f} s"
        ),
    )
    setting = runner.Setting(data, model, fitted.params)
    return dataclasses.replace(setting, params=recalibration(setting)(fitted.params))


if __name__ == "__main__":
    start(main, tyro.cli(Options))
