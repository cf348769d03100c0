"""Every method on ResNet-20 and CIFAR-10 (JPEG copies), in one stage and in several.

500 rows of 16 training images each, as CHITA's code takes them; the convolutions and
the classifier are prunable, 268,336 weights, the shortcuts are not. No method trains in
between, but the first-order step of linear regression follows the mean gradient unless
it is off. Batch norm keeps its statistics ("kept"), or estimates them anew on 10,000
training images after each stage ("again"). "batch statistics" marks methods whose rows
are gradients of the loss in training mode, where the scale of a kernel means nothing;
"judged in training mode" those whose re-fits that loss judges; "harm in training
mode" those that the harm judges by the statistics of each row, as the command has it.

Writes results.csv after every run and goes on where it stopped; then results.png.
"""

import dataclasses
import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from matplotlib.figure import Figure
from rich.table import Table
from shared import DATA, RESULTS, complete_csv, console, start

import swapjax
from swapjax.core.types import Params
from swapjax.experiments import datasets, models, plot, runner
from swapjax.pruning import Method


class Entry(NamedTuple):
    """A method, and what of it takes the loss in training mode.

    Attributes:
        method: how to prune.
        rows: whether its rows are gradients of that loss.
        judge: what of that loss judges, in the place of what the method asks for.
    """

    method: Method
    rows: bool = False
    judge: Literal["loss", "harm"] | None = None


METHODS: dict[str, Entry] = {
    "magnitude": Entry(swapjax.magnitude()),
    "obd": Entry(swapjax.obd()),
    "wanda": Entry(swapjax.wanda(per_output=False)),
    "woodfisher": Entry(swapjax.woodfisher()),
    "cbs": Entry(swapjax.cbs()),
    "chita": Entry(swapjax.chita()),
    "chita, batch statistics": Entry(swapjax.chita(), rows=True),
    "linear-regression": Entry(swapjax.linear_regression(first_order=False)),
    "linear-regression, first order": Entry(swapjax.linear_regression()),
    "linear-regression, first order, batch statistics": Entry(
        swapjax.linear_regression(), rows=True
    ),
    "linear-regression, kfac": Entry(
        swapjax.linear_regression(ridge="kfac", first_order=False)
    ),
    "linear-regression, kfac, judged in training mode": Entry(
        swapjax.linear_regression(ridge="kfac", first_order=False), judge="loss"
    ),
    "linear-regression, kfac, harm in training mode": Entry(
        swapjax.linear_regression(ridge="kfac", first_order=False), judge="harm"
    ),
    "linear-regression, kfac, initial": Entry(
        swapjax.linear_regression(ridge="kfac", reference="initial", first_order=False)
    ),
    "linear-regression, kfac, batch statistics": Entry(
        swapjax.linear_regression(ridge="kfac", first_order=False), rows=True
    ),
    "linear-regression, kfac, kappa 32, batch statistics": Entry(
        swapjax.linear_regression(ridge="kfac", kappa=32.0, first_order=False),
        rows=True,
    ),
    "swap": Entry(swapjax.swap(first_order=False)),
    "layerwise-obs": Entry(swapjax.layerwise_obs()),
    "layerwise-obs, greedy": Entry(swapjax.layerwise_obs(order="greedy")),
    "layerwise-obs, initial": Entry(swapjax.layerwise_obs(reference="initial")),
    "layerwise-obs, output": Entry(swapjax.layerwise_obs(weigh="output")),
    "layerwise-obs, output, greedy": Entry(
        swapjax.layerwise_obs(weigh="output", order="greedy")
    ),
    "layerwise-obs, equal": Entry(swapjax.layerwise_obs(weigh="equal")),
    "layerwise-obs, equal, greedy": Entry(
        swapjax.layerwise_obs(weigh="equal", order="greedy")
    ),
    "alps": Entry(swapjax.alps()),
    "alps, output": Entry(swapjax.alps(weigh="output")),
}
# Recalibrated means that the best method must reach, in one stage and in up to eight.
GOALS = {1: {0.7: 86.0, 0.8: 81.0, 0.9: 60.0}, 8: {0.7: 87.0, 0.8: 84.0, 0.9: 70.0}}
_CALIBRATION = 10_000  # images that statistics are estimated on


@dataclasses.dataclass(frozen=True)
class Options:
    """Prune ResNet-20 by every method, and hold the results against peers."""

    methods: tuple[str, ...] = tuple(METHODS)
    """Any of the names in the table."""
    norms: tuple[str, ...] = ("again", "kept")
    """Whether batch norm is recalibrated: again, kept."""
    stages: tuple[int, ...] = (1, 2, 4, 8)
    """How many."""
    sparsities: tuple[float, ...] = (0.5, 0.6, 0.7, 0.8, 0.9)
    """How far."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the samples."""
    samples: int = 500
    """Rows a stage."""
    batch: int = 16
    """Images a row."""
    out: Path = RESULTS / "resnet20_cifar10"
    """The folder for results.csv and results.png."""
    data: Path = DATA / "data" / "cifar10_jpeg.npz"
    """The images."""
    checkpoint: Path = DATA / "checkpoints" / "resnet20_cifar10_jpeg.npz"
    """The trained weights."""
    peers: Path = DATA / "reference" / "peers.json"
    """What the authors' code scored."""


@dataclasses.dataclass(frozen=True)
class Run:
    """One line of the results."""

    method: str
    norm: str
    stages: int
    sparsity: float
    seed: int
    accuracy: float = float("nan")
    seconds: float = float("nan")
    status: str = ""
    least: float = float("nan")
    device: str = ""

    def __str__(self) -> str:
        label = f"{self.method}, {self.sparsity:g}, {self.stages} stages"
        return f"{label}, batch norm {self.norm}, seed {self.seed}"

    @property
    def key(self) -> tuple:
        """What tells it from other runs."""
        return self.method, self.norm, self.stages, self.sparsity, self.seed


def main(options: Options) -> None:
    """Do what is left to do, then show everything."""
    for path in (options.data, options.checkpoint):
        if not path.exists():
            sys.exit(f"{path}: not there; name it with --data or --checkpoint")
    data = datasets.load(options.data, mean=0.5, std=0.5)
    model = models.create("resnet20", data.shape, data.classes)
    setting = runner.set_up(data, model, weights=options.checkpoint)
    accuracy, loss = runner.evaluate(setting, setting.params)
    console.print(f"Dense: {accuracy:.2f}%, loss {loss:.4f}.")
    options.out.mkdir(parents=True, exist_ok=True)
    target = options.out / "results.csv"
    wanted = [
        Run(method, norm, stages, sparsity, seed)
        for seed in options.seeds
        for stages in options.stages
        for norm in options.norms
        for method in options.methods
        for sparsity in options.sparsities
        # Magnitude without statistics sees no images, and no stages.
        if method != "magnitude" or (seed == 0 and (stages == 1 or norm == "again"))
    ]
    again = recalibration(setting)
    score = functools.partial(measure, options, setting, again)
    runs = list(complete_csv(target, wanted, score).values())
    peers = read_peers(options.peers) if options.peers.exists() else {}
    console.print(table(runs, peers))
    show_goals(runs)
    plot.save(figure(runs, accuracy), options.out / "results.png")
    console.print(f"Written to {options.out}.", soft_wrap=True)


def recalibration(setting: runner.Setting) -> Callable[[Params], Params]:
    """Make the function that estimates the statistics of batch norm anew."""
    images = setting.data.x_train[:_CALIBRATION]
    batches = [jnp.asarray(images[i : i + 500]) for i in range(0, len(images), 500)]
    return lambda params: swapjax.recalibrate_batchnorm(
        setting.model.statistics, params, batches
    )


def measure(
    options: Options,
    setting: runner.Setting,
    again: Callable[[Params], Params],
    run: Run,
) -> Run:
    """Prune, and fill in what came of it."""
    entry = METHODS[run.method]
    model, criterion = setting.model, None
    if entry.judge == "loss":
        criterion = model.training_loss
    elif entry.judge == "harm":
        criterion = runner.judge(setting, entry.method, options.batch)
    x, y = setting.data.train
    plan = swapjax.plan(
        setting.params,
        run.sparsity,
        exclude="downsample" if model.name == "resnet20" else (),
        loss_fn=model.loss_fn,
        batch=(x[: options.batch], y[: options.batch]),
    )
    pruned = swapjax.prune(
        model.training_loss if entry.rows else model.loss_fn,
        setting.params,
        (x, y),
        plan=plan,
        method=entry.method,
        criterion=criterion,
        samples=options.samples,
        batch=options.batch,
        stages=run.stages,
        key=jax.random.key(run.seed),
        recalibrate=again if run.norm == "again" else None,
    )
    accuracy, _ = runner.evaluate(setting, pruned.params)
    last, leaves = pruned.history[-1], plan.layout.split(setting.params)
    sizes = {p: w.size for p, w in zip(plan.layout.paths, leaves, strict=True)}
    return dataclasses.replace(
        run,
        accuracy=round(accuracy, 4),
        seconds=round(sum(stage.seconds for stage in pruned.history), 2),
        status=max((stage.status for stage in pruned.history), key=int).name.lower(),
        least=round(min(kept / sizes[p] for p, kept in last.layers.items()), 4),
        device=jax.devices()[0].device_kind,
    )


def read_peers(path: Path) -> dict[tuple[str, float], float]:
    """Read the best accuracy of others on this network, by name and sparsity."""
    found: dict[tuple[str, float], float] = {}
    for row in json.loads(path.read_text()):
        if "resnet20_cifar10_jpeg" not in row["net"] or not row["sparsity"]:
            continue
        again = "re-estimated after" in str(row["setting"])
        key = f"{row['peer']}, {'again' if again else 'kept'}", row["sparsity"]
        found[key] = max(found.get(key, 0.0), row["accuracy"])
    return found


def values(
    runs: list[Run], method: str, norm: str, stages: int, level: float
) -> list[float]:
    """List the accuracies of all seeds."""
    wanted = method, norm, stages, level
    return [r.accuracy for r in runs if r.key[:4] == wanted]


def table(runs: list[Run], peers: dict[tuple[str, float], float]) -> Table:
    """Means and deviations over seeds."""
    levels = sorted({run.sparsity for run in runs})
    result = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for name in ("method", "batch norm", "in", *(f"{level:g}" for level in levels)):
        result.add_column(name, justify="left" if name == "method" else "right")
    for method, norm, stages in dict.fromkeys(run.key[:3] for run in runs):
        cells = []
        for level in levels:
            found = values(runs, method, norm, stages, level)
            spread = f" ± {np.std(found, ddof=1):.2f}" if len(found) > 1 else ""
            cells.append(f"{np.mean(found):.2f}{spread}" if found else "")
        result.add_row(method, norm, str(stages), *cells)
    for name in dict.fromkeys(name for name, _ in peers):
        cells = [f"{peers.get((name, s), float('nan')):.2f}" for s in levels]
        result.add_row(f"peer: {name}", "", "1", *cells, style="dim")
    return result


def show_goals(runs: list[Run]) -> None:
    """Say which goals are met, and by what."""
    for most, goals in GOALS.items():
        for level, goal in goals.items():
            means = {
                key[:4]: float(np.mean(values(runs, *key[:4])))
                for key in {run.key for run in runs}
                if key[1] == "again" and key[2] <= most and key[3] == level
            }
            if means:
                best = max(means, key=lambda key: means[key])
                verdict = "met" if means[best] >= goal else "MISSED"
                console.print(
                    f"{most} stages at most, {level:g}: {means[best]:.2f} by {best[0]} "
                    f"in {best[2]}, {goal:g} {verdict}"
                )


def figure(runs: list[Run], dense: float) -> Figure:
    """One panel a number of stages, recalibrated; one line a method."""
    again = [run for run in runs if run.norm == "again"]
    counts = sorted({run.stages for run in again}) or [1]
    result = Figure(figsize=(5.6 * len(counts), 4.6), layout="constrained")
    panels = np.atleast_1d(result.subplots(1, len(counts)))
    for axes, stages in zip(panels, counts, strict=True):
        group = [run for run in again if run.stages == stages]
        axes.axhline(dense, color="black", lw=0.8, ls=":")
        for i, method in enumerate(METHODS):
            levels = sorted({r.sparsity for r in group if r.method == method})
            found = [values(group, method, "again", stages, s) for s in levels]
            if not levels:
                continue
            axes.errorbar(
                levels,
                [np.mean(v) for v in found],
                yerr=[np.std(v, ddof=min(1, len(v) - 1)) for v in found],
                marker="osD^v<>ph*XPd"[i % 13],
                ms=5,
                capsize=3,
                color=f"C{i % 10}",
                ls="-" if i < 10 else "--",
                label=method,
            )
        axes.set_title("one stage" if stages == 1 else f"{stages} stages")
        axes.set_xlabel("sparsity")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    panels[0].set_ylabel("test accuracy (%)")
    return result


if __name__ == "__main__":
    start(main, tyro.cli(Options))
