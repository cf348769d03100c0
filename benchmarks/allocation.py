"""How layers share a budget: uniform, ERK, global, OWL and by the loss of a scan.

MLPNet on MNIST, 1,000 rows of 16 examples; ResNet-20 on CIFAR-10 (JPEG copies), 32
rows of 16 images, shortcuts not prunable, batch norm estimated anew on 4,000 training
images afterwards. One stage, no training. "loss" allocates by `swapjax.sensitivity`
with the same method and the same examples, from levels that it scans once a method and
seed; the scan of ResNet-20 keeps the statistics of batch norm. Magnitude has one seed.

Writes results.csv and scans.json after every run and goes on where it stopped; then
results.png, and beside the folder allocation-scan.png, the scan of most layers.
"""

import dataclasses
import functools
import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from matplotlib.figure import Figure
from rich.table import Table
from shared import DATA, RESULTS, complete_csv, console, start

import swapjax
from swapjax import Sensitivity
from swapjax.core import files
from swapjax.experiments import datasets, models, plot, runner
from swapjax.experiments.sensitivity_plot import sensitivity_figure
from swapjax.pruning import Method

ALLOCATIONS = ("uniform", "erk", "global", "owl", "loss")
METHODS: dict[str, Method] = {
    "magnitude": swapjax.magnitude(),
    "wanda": swapjax.wanda(per_output=False),
    "layerwise-obs": swapjax.layerwise_obs(),
}
_CALIBRATION = 4_000  # images that statistics are estimated on


@dataclasses.dataclass(frozen=True)
class Network:
    """One network, and how it is pruned."""

    data: str
    weights: str
    scale: dict[str, Any]
    sparsities: tuple[float, ...]
    levels: tuple[float, ...]
    samples: int
    seeds: tuple[int, ...]


NETWORKS = {
    "mlpnet": Network(
        "mnist.npz",
        "mlpnet_mnist.npz",
        {},
        (0.8, 0.9, 0.95),
        (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99),
        1000,
        (0, 1, 2),
    ),
    "resnet20": Network(
        "cifar10_jpeg.npz",
        "resnet20_cifar10_jpeg.npz",
        {"mean": 0.5, "std": 0.5},
        (0.8,),
        (0.5, 0.7, 0.8, 0.9, 0.95),
        32,
        (0,),
    ),
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Prune two networks with every allocation."""

    networks: tuple[str, ...] = tuple(NETWORKS)
    """Any of them."""
    methods: tuple[str, ...] = tuple(METHODS)
    """Any of these."""
    batch: int = 16
    """Examples a row."""
    out: Path = RESULTS / "allocation"
    """The folder for results.csv, scans.json and results.png."""
    data: Path = DATA / "data"
    """The folder of the data."""
    checkpoints: Path = DATA / "checkpoints"
    """The folder of the trained weights."""


@dataclasses.dataclass(frozen=True)
class Run:
    """One line of the results."""

    network: str
    method: str
    allocation: str
    sparsity: float
    seed: int
    accuracy: float = float("nan")
    loss: float = float("nan")
    least: float = float("nan")
    seconds: float = float("nan")

    def __str__(self) -> str:
        label = f"{self.network}, {self.method}, {self.allocation}"
        return f"{label}, {self.sparsity:g}, seed {self.seed}"

    @property
    def key(self) -> tuple:
        """What tells it from other runs."""
        own = self.network, self.method, self.allocation
        return *own, self.sparsity, self.seed


class Bench:
    """The networks that were loaded, and the scans that were made."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.path = options.out / "scans.json"
        found = json.loads(self.path.read_text()) if self.path.exists() else {}
        self.scans = {key: scan_of(value) for key, value in found.items()}

    @functools.cache  # noqa: B019 — one object, for as long as the process
    def setting(self, name: str) -> runner.Setting:
        """Load a network."""
        network = NETWORKS[name]
        data = datasets.load(self.options.data / network.data, **network.scale)
        model = models.create(name, data.shape, data.classes)
        weights = self.options.checkpoints / network.weights
        return runner.set_up(data, model, weights=weights)

    def plan(self, name: str, sparsity: float, allocation: Any) -> swapjax.Plan:
        """Plan, by the program of the loss."""
        setting = self.setting(name)
        first = tuple(x[: self.options.batch] for x in setting.data.train)
        return swapjax.plan(
            setting.params,
            sparsity,
            allocation=allocation,
            exclude="downsample" if name == "resnet20" else (),
            loss_fn=setting.model.loss_fn,
            batch=first,
        )

    def common(self, run: Run) -> dict[str, Any]:
        """Say what all that look at examples are given."""
        return {
            "samples": NETWORKS[run.network].samples,
            "batch": self.options.batch,
            "key": jax.random.key(run.seed),
        }

    def scan(self, run: Run) -> Sensitivity:
        """Scan once a method and seed, and keep it."""
        name = f"{run.network}, {run.method}, {run.seed}"
        if name not in self.scans:
            setting, network = self.setting(run.network), NETWORKS[run.network]
            started = time.perf_counter()
            self.scans[name] = swapjax.sensitivity(
                setting.model.loss_fn, setting.params, setting.data.train,
                levels=network.levels, method=METHODS[run.method],
                plan=self.plan(run.network, 0.5, "uniform"), **self.common(run),
            )  # fmt: skip
            console.print(f"  scan: {time.perf_counter() - started:.1f} s")
            texts = {key: scan.to_dict() for key, scan in self.scans.items()}
            files.write_text(self.path, json.dumps(texts) + "\n")
        return self.scans[name]

    def allocation(self, run: Run) -> Any:
        """Find how the layers of a run share."""
        if run.allocation == "loss":
            return self.scan(run).allocate(run.sparsity)
        if run.allocation == "owl":
            setting = self.setting(run.network)
            return swapjax.owl(
                setting.model.loss_fn, setting.params, setting.data.train,
                run.sparsity, plan=self.plan(run.network, 0.5, "uniform"),
                **self.common(run),
            )  # fmt: skip
        return run.allocation

    def measure(self, run: Run) -> Run:
        """Prune, and fill in what came of it."""
        setting, started = self.setting(run.network), time.perf_counter()
        plan = self.plan(run.network, run.sparsity, self.allocation(run))
        pruned = swapjax.prune(
            setting.model.loss_fn, setting.params, setting.data.train, plan=plan,
            method=METHODS[run.method], **self.common(run),
        )  # fmt: skip
        seconds, params = time.perf_counter() - started, pruned.params
        if run.network == "resnet20":
            images = setting.data.x_train[:_CALIBRATION]
            parts = range(0, len(images), 500)
            params = swapjax.recalibrate_batchnorm(
                setting.model.statistics,
                params,
                [jnp.asarray(images[i : i + 500]) for i in parts],
            )
        accuracy, loss = runner.evaluate(setting, params)
        sizes = dict(zip(plan.layout.layers, plan.sizes, strict=True))
        kept = pruned.history[-1].layers
        return dataclasses.replace(
            run,
            accuracy=round(accuracy, 4),
            loss=round(loss, 5),
            least=round(min(n / sizes[name] for name, n in kept.items()), 4),
            seconds=round(seconds, 2),
        )


def scan_of(fields: dict[str, Any]) -> Sensitivity:
    """Read a scan: JSON has lists for tuples."""
    losses = tuple(map(tuple, fields["losses"]))
    own = {k: tuple(fields[k]) for k in ("layers", "sizes", "levels")}
    return Sensitivity(**{**fields, **own, "losses": losses})


def main(options: Options) -> None:
    """Do what is left to do, then show everything."""
    options.out.mkdir(parents=True, exist_ok=True)
    bench = Bench(options)
    wanted = [
        Run(name, method, allocation, sparsity, seed)
        for name in options.networks
        for seed in NETWORKS[name].seeds
        for method in options.methods
        for sparsity in NETWORKS[name].sparsities
        for allocation in ALLOCATIONS
        # Magnitude sees no examples but those of a scan, which hardly tell.
        if method != "magnitude" or seed == 0
    ]
    done = complete_csv(options.out / "results.csv", wanted, bench.measure)
    runs = list(done.values())
    console.print(table(runs))
    plot.save(figure(runs), options.out / "results.png")
    if bench.scans:
        largest = max(bench.scans.values(), key=lambda scan: len(scan.layers))
        drawn = sensitivity_figure(largest)
        plot.save(drawn, options.out.parent / "allocation-scan.png")
    console.print(f"Written to {options.out}.", soft_wrap=True)


def mean(runs: list[Run], *key: Any) -> float:
    """Average over seeds; NaN without any."""
    found = [run.accuracy for run in runs if run.key[:4] == key]
    return float(np.mean(found)) if found else float("nan")


def table(runs: list[Run]) -> Table:
    """Show a line for each network, method and sparsity, a column an allocation."""
    result = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for name in ("network", "method", "sparsity", *ALLOCATIONS):
        result.add_column(name, justify="right" if name in ALLOCATIONS else "left")
    for network, method, sparsity in dict.fromkeys(
        (run.network, run.method, run.sparsity) for run in runs
    ):
        cells = [mean(runs, network, method, a, sparsity) for a in ALLOCATIONS]
        texts = [f"{cell:.2f}" for cell in cells]
        result.add_row(network, method, f"{sparsity:g}", *texts)
    return result


def figure(runs: list[Run]) -> Figure:
    """Draw a panel for each network and method, a line an allocation."""
    names = list(dict.fromkeys((run.network, run.method) for run in runs))
    rows = list(dict.fromkeys(network for network, _ in names))
    wide = max(sum(n == row for n, _ in names) for row in rows)
    result = Figure(figsize=(4.2 * wide, 3.4 * len(rows)), layout="constrained")
    grid = result.subplots(len(rows), wide, squeeze=False)
    for i, row in enumerate(rows):
        for axes, (network, method) in zip(
            grid[i], [name for name in names if name[0] == row], strict=False
        ):
            levels = sorted({r.sparsity for r in runs if r.network == network})
            for mark, allocation in zip("osD^v", ALLOCATIONS, strict=True):
                means = [mean(runs, network, method, allocation, s) for s in levels]
                axes.plot(levels, means, marker=mark, ms=5, label=allocation)
            axes.set_title(f"{network}, {method}")
            axes.set_xlabel("sparsity")
            axes.set_xticks(levels, [f"{level:g}" for level in levels])
            axes.grid(alpha=0.3)
        grid[i][0].set_ylabel("test accuracy (%)")
    grid[0][0].legend(fontsize="small")
    return result


if __name__ == "__main__":
    start(main, tyro.cli(Options))
