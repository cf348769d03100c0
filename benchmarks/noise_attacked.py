"""What pruning on attacked images learns: the one attack, or to resist.

MLPNet on MNIST is pruned to 0.98 in 15 stages with the first-order step, on training
images that FGSM has moved by 0.1 of their range with the dense network: the cell of
`noise.py` where a step that the loss judges learns them. Each result is tested on the
test images as they are, attacked in the same way, and attacked with the result itself.

Writes attacked.csv after every run, and goes on where it stopped.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import tyro
from shared import DATA, RESULTS, complete_csv, console, start

import swapjax
from swapjax.core.types import Params
from swapjax.corruptions import fgsm
from swapjax.experiments import datasets, models, runner
from swapjax.experiments.noise import parse

METHODS = {
    "linear-regression": swapjax.linear_regression(),
    "kfac-regression": swapjax.kfac_regression(),
}
NOISE, EPSILON = parse("fgsm:0.1"), 0.1


@dataclasses.dataclass(frozen=True)
class Options:
    """Prune on attacked images, and attack what comes of it."""

    seeds: tuple[int, ...] = (0, 1)
    """Of the samples."""
    out: Path = RESULTS / "noise"
    """The folder for attacked.csv."""
    data: Path = DATA
    """The folder of data and checkpoints."""


@dataclasses.dataclass(frozen=True)
class Run:
    """One line of the results; accuracies in percent."""

    method: str
    seed: int
    clean: float = float("nan")
    as_trained: float = float("nan")
    itself: float = float("nan")

    @property
    def key(self) -> tuple:
        """What tells it from other runs."""
        return self.method, self.seed


def main(options: Options) -> None:
    """Do what is left to do, then print everything."""
    data, weights = (
        options.data / name
        for name in ("data/mnist.npz", "checkpoints/mlpnet_mnist.npz")
    )
    for path in (data, weights):
        if not path.exists():
            sys.exit(f"{path}: not there; name its folder with --data")
    mnist = datasets.load(data)
    model = models.create("mlpnet", mnist.shape, mnist.classes)
    setting = runner.set_up(mnist, model, weights=weights)
    x, y = map(jnp.asarray, mnist.test)
    low, high = mnist.box

    def attacked(params: Params) -> jnp.ndarray:
        radius = EPSILON * (high - low)
        return fgsm(model.loss_fn, params, (x, y), radius, box=(low, high))

    def accuracy(params: Params, images: jnp.ndarray) -> float:
        right = jnp.argmax(model.apply(params, images), axis=-1) == y
        return round(100 * float(np.mean(right)), 2)

    ready = attacked(setting.params)

    def measure(run: Run) -> Run:
        _, pruned = runner.run(
            setting, METHODS[run.method], sparsity=0.98, seed=run.seed, noise=NOISE,
            stages=15, samples=1000, batch=16,
        )  # fmt: skip
        network = pruned.params
        images = {"clean": x, "as_trained": ready, "itself": attacked(network)}
        found: dict[str, Any] = {
            name: accuracy(network, seen) for name, seen in images.items()
        }
        return dataclasses.replace(run, **found)

    options.out.mkdir(parents=True, exist_ok=True)
    wanted = [Run(name, seed) for seed in options.seeds for name in METHODS]
    runs = complete_csv(options.out / "attacked.csv", wanted, measure)
    console.print(
        f"Dense: {accuracy(setting.params, x)}% as they are, "
        f"{accuracy(setting.params, ready)}% attacked."
    )
    for run in runs.values():
        console.print(
            f"{run.method}, seed {run.seed}: {run.clean}% as they are, "
            f"{run.as_trained}% attacked as in training, {run.itself}% by itself."
        )


if __name__ == "__main__":
    start(main, tyro.cli(Options))
