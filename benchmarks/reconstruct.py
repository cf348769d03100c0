"""What re-fits for outputs some layers later bring, on masks of several methods.

MLPNet on MNIST, and ResNet-20 on CIFAR-10 (JPEG copies). Weights are pruned in one
stage on training images that the seed draws, then fitted again on others that it draws.
Batch norm keeps the statistics of the dense network while weights are fitted;
accuracies are with those kept, and with new ones of 10,000 training images.

Writes results.csv after every run and goes on where it stopped. Seconds are CPU seconds
of the re-fit, compilation included.
"""

import dataclasses
import functools
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from rich.table import Table
from shared import DATA, RESULTS, complete_csv, console, start

import swapjax
from swapjax.core.types import Params
from swapjax.experiments import datasets, models, runner
from swapjax.pruning import Method, Pruned

METHODS: dict[str, Method] = {
    "magnitude": swapjax.magnitude(),
    "chita": swapjax.chita(),
    "layerwise-obs": swapjax.layerwise_obs(),
    "alps": swapjax.alps(),
    "layerwise-obs, output": swapjax.layerwise_obs(weigh="output"),
}
CALIBRATION = 10_000


@dataclasses.dataclass(frozen=True)
class Network:
    """A network, its images, and how it is pruned and fitted again."""

    data: str
    weights: str
    methods: tuple[str, ...]
    sparsities: tuple[float, ...]
    ahead: tuple[int, ...]
    samples: int
    pruning: dict[str, Any]
    options: dict[str, Any]
    scale: dict[str, Any]


NETWORKS = {
    "mlpnet": Network(
        data="mnist.npz", weights="mlpnet_mnist.npz",
        methods=("magnitude", "chita", "layerwise-obs", "alps"),
        sparsities=(0.9, 0.95, 0.98), ahead=(0, 1, 2), samples=4000,
        pruning={"samples": 1000, "batch": 4}, options={"batch": 1000}, scale={},
    ),
    "resnet20": Network(
        data="cifar10_jpeg.npz", weights="resnet20_cifar10_jpeg.npz",
        methods=("magnitude", "layerwise-obs", "layerwise-obs, output"),
        sparsities=(0.8, 0.9), ahead=(0, 3, 10), samples=256,
        pruning={"samples": 500, "batch": 1},
        options={"batch": 64, "steps": 1, "products": 10},
        scale={"mean": 0.5, "std": 0.5},
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Options:
    """Prune networks by several methods, and fit again what is left."""

    networks: tuple[str, ...] = tuple(NETWORKS)
    """mlpnet, resnet20."""
    methods: tuple[str, ...] = ()
    """Any of those in the table; by default those that a network takes."""
    sparsities: tuple[float, ...] = ()
    """By default those that a network takes."""
    ahead: tuple[int, ...] = ()
    """How many layers later outputs are compared; by default several."""
    seeds: tuple[int, ...] = (0,)
    """Of the images."""
    out: Path = RESULTS / "reconstruct"
    """The folder for results.csv."""


@dataclasses.dataclass(frozen=True)
class Run:
    """One line of the results; ahead is -1 for what the method itself leaves."""

    network: str
    method: str
    sparsity: float
    ahead: int
    seed: int
    kept: float = float("nan")
    again: float = float("nan")
    seconds: float = 0.0

    def __str__(self) -> str:
        what = "as pruned" if self.ahead < 0 else f"{self.ahead} ahead"
        place = f"{self.network}, {self.method}, {self.sparsity:g}"
        return f"{place}, {what}, seed {self.seed}"

    @property
    def key(self) -> tuple:
        """What tells it from other runs."""
        return self.network, self.method, self.sparsity, self.ahead, self.seed


def main(options: Options) -> None:
    """Do what is left to do, then show everything."""
    options.out.mkdir(parents=True, exist_ok=True)
    wanted = [
        Run(name, method, sparsity, ahead, seed)
        for name in options.networks
        for seed in options.seeds
        for method in options.methods or NETWORKS[name].methods
        for sparsity in options.sparsities or NETWORKS[name].sparsities
        for ahead in (-1, *(options.ahead or NETWORKS[name].ahead))
    ]
    done = complete_csv(options.out / "results.csv", wanted, score)
    console.print(table([done[run.key] for run in wanted]))
    console.print(f"Written to {options.out}.", soft_wrap=True)


@functools.cache
def load(name: str) -> runner.Setting:
    """Load a network and its images."""
    network = NETWORKS[name]
    data = datasets.load(DATA / "data" / network.data, **network.scale)
    model = models.create(name, data.shape, data.classes)
    weights = DATA / "checkpoints" / network.weights
    return runner.set_up(data, model, weights=weights)


@functools.lru_cache(maxsize=1)
def prune(name: str, method: str, sparsity: float, seed: int) -> Pruned:
    """Prune a network in one stage."""
    setting, network = load(name), NETWORKS[name]
    return swapjax.prune(
        setting.model.loss_fn, setting.params, setting.data.train, sparsity=sparsity,
        method=METHODS[method], key=jax.random.key(seed), **network.pruning,
    )  # fmt: skip


def score(run: Run) -> Run:
    """Fit again, and fill in what came of it."""
    setting, network = load(run.network), NETWORKS[run.network]
    pruned = prune(run.network, run.method, run.sparsity, run.seed)
    params, started = pruned.params, time.process_time()
    if run.ahead >= 0:
        images = draw(setting.data.train, network.samples, run.seed + 1000)
        params = swapjax.reconstruct(
            setting.model.loss_fn, params, pruned.masks, images, dense=setting.params,
            ahead=run.ahead, samples=network.samples, **network.options,
        ).params  # fmt: skip
    seconds = time.process_time() - started
    kept, _ = runner.evaluate(setting, params)
    again = kept
    if setting.model.statistics is not None:
        again, _ = runner.evaluate(setting, estimated(setting, params))
    return dataclasses.replace(
        run, kept=round(kept, 2), again=round(again, 2), seconds=round(seconds, 1)
    )


def draw(data: Any, count: int, seed: int) -> Any:
    """Draw examples without replacement."""
    total = len(jax.tree.leaves(data)[0])
    index = np.random.default_rng(seed).choice(total, count, replace=False)
    return jax.tree.map(lambda x: np.asarray(x)[index], data)


def estimated(setting: runner.Setting, params: Params) -> Params:
    """Estimate the statistics of batch norm anew."""
    images = setting.data.x_train[:CALIBRATION]
    batches = np.array_split(images, CALIBRATION // 1000)
    return swapjax.recalibrate_batchnorm(setting.model.statistics, params, batches)


def table(runs: list[Run]) -> Table:
    """Lay accuracies out, statistics kept and anew, a mask a line."""
    shown = Table("network", "method", "sparsity", "ahead", "kept", "again", "s")
    for run in runs:
        cells = run.network, run.method, f"{run.sparsity:g}", str(run.ahead)
        shown.add_row(*cells, f"{run.kept:.2f}", f"{run.again:.2f}", f"{run.seconds}")
    return shown


if __name__ == "__main__":
    start(main, tyro.cli(Options))
