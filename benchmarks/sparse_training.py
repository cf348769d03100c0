"""Every rule of sparse training on one network at equal steps.

LeNet-300-100 without biases on MNIST, as JaxPruner was measured (its figures are in the
table): SGD with momentum 0.9, the learning rate falling from 0.1 to 0 along a cosine,
batches of 128, 6 epochs. Masks change every 100 steps (straight-through: at every
step), until half of the run where sparsity rises and until three quarters where it
stays. Accuracy is that of the last step on the whole test set, not the best of any.

With ``--network resnet20 --epochs 160`` the same on CIFAR-10, for a machine with a GPU.

Writes results.csv after every run and goes on where it stopped; then results.png.
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from matplotlib.figure import Figure
from rich.table import Table
from shared import DATA, RESULTS, complete_csv, console, start

import swapjax
from swapjax.experiments import datasets, models, plot, runner
from swapjax.experiments.runner import Setting
from swapjax.loops import steps
from swapjax.training import Rule, fit

# Of JaxPruner in the same setting, means of two seeds.
JAXPRUNER = {
    "dense": {0.9: 98.215},
    "static": {0.9: 97.68, 0.98: 94.35},
    "set": {0.9: 97.87, 0.98: 95.81},
    "rigl": {0.9: 97.975, 0.98: 96.47},
    # By layer, as its other algorithms.
    "gmp, by layer": {0.9: 97.925, 0.98: 97.46},
}
RULES: dict[str, Callable[[], Rule]] = {
    "static": swapjax.static,
    "set": swapjax.set_,
    "set, constant fraction": lambda: swapjax.set_(anneal=False),
    "rigl": swapjax.rigl,
    "rigl, annealed to 0.005 from 0.5": lambda: swapjax.rigl(fraction=0.5, last=0.005),
    "gmp": swapjax.gmp,
    "gmp, by layer": swapjax.gmp,
    "granet": swapjax.granet,
    "granet, by layer": swapjax.granet,
    "granet-st": swapjax.granet_st,
    "ste, by layer": swapjax.ste,
    "acdc": swapjax.acdc,
}
RISES = (
    "gmp",
    "gmp, by layer",
    "granet",
    "granet, by layer",
    "granet-st",
    "ste, by layer",
)
BEFORE = ("random", "magnitude", "snip", "grasp", "synflow")


@dataclasses.dataclass(frozen=True)
class Options:
    """Train one network by every rule at several sparsities."""

    algorithms: tuple[str, ...] = ("dense", *RULES, *BEFORE)
    """Any of the names in the table."""
    sparsities: tuple[float, ...] = (0.9, 0.95, 0.98, 0.99)
    """Of prunable weights."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the initial weights, the order of examples, and the masks."""
    network: Literal["lenet300", "resnet20"] = "lenet300"
    """On MNIST, or on CIFAR-10."""
    epochs: int = 6
    """Passes over the training set."""
    every: int = 100
    """Steps between changes of masks."""
    data: Path | None = None
    """An .npz with x_train, y_train, x_test, y_test."""
    out: Path = RESULTS / "sparse_training"
    """The folder to write to."""


@dataclasses.dataclass(frozen=True)
class Line:
    """One run."""

    network: str
    algorithm: str
    sparsity: float
    seed: int
    epochs: int
    accuracy: float = float("nan")
    left: int = 0
    seconds: float = float("nan")

    def __str__(self) -> str:
        return f"{self.algorithm} to {self.sparsity:g}, seed {self.seed}"

    @property
    def key(self) -> tuple:
        """What tells it from others."""
        return self.network, self.algorithm, self.sparsity, self.seed, self.epochs


def main(options: Options) -> None:
    """Do what is left to do, then show everything."""
    options.out.mkdir(parents=True, exist_ok=True)
    default = "mnist.npz" if options.network == "lenet300" else "cifar10_jpeg.npz"
    data = datasets.load(options.data or DATA / "data" / default)
    target = options.out / "results.csv"
    wanted = [
        Line(options.network, algorithm, level, seed, options.epochs)
        for algorithm in options.algorithms
        for level in ((0.0,) if algorithm == "dense" else options.sparsities)
        for seed in options.seeds
    ]
    done = complete_csv(target, wanted, lambda line: train(line, options, data))
    lines = [done[line.key] for line in wanted]
    console.print(table(lines))
    plot.save(figure(lines), options.out / "results.png")
    console.print(f"Written to {options.out}.", soft_wrap=True)


def train(line: Line, options: Options, data: datasets.Dataset) -> Line:
    """One run, from initial weights to test accuracy."""
    model = models.create(line.network, data.shape, data.classes, seed=line.seed)
    order, draw = jax.random.split(jax.random.key(line.seed))
    total = options.epochs * steps.per_epoch(data.train, 128, "batch")
    tx = transformation(
        line.algorithm, line.sparsity, model, data, total, options.every, draw
    )
    fitted = fit(model.training_loss, model.params, tx, data.train,
                 epochs=options.epochs, batch=128, key=order)  # fmt: skip
    params = fitted.params
    if model.statistics is not None:
        params = swapjax.recalibrate_batchnorm(
            model.statistics, params, np.split(data.x_train[:5000], 10)
        )
    accuracy, _ = runner.evaluate(Setting(data, model, params), params)
    prunable = swapjax.plan(params, 0.0).layout.split(params)
    return dataclasses.replace(
        line,
        accuracy=round(accuracy, 4),
        left=sum(int(jnp.sum(x != 0)) for x in prunable),
        seconds=round(sum(epoch.seconds for epoch in fitted.history), 2),
    )


def transformation(
    algorithm: str,
    sparsity: float,
    model: models.Model,
    data: datasets.Dataset,
    total: int,
    every: int,
    key: jax.Array,
) -> optax.GradientTransformation:
    """SGD with momentum, and a rule around it."""
    tx = optax.sgd(optax.cosine_decay_schedule(0.1, total), momentum=0.9)
    if algorithm == "dense":
        return tx
    wrap = functools.partial(swapjax.sparse, tx, steps=total, key=key)
    if algorithm.endswith("by layer"):
        plan = swapjax.plan(model.params, sparsity, allocation="erk")
        wrap = functools.partial(wrap, plan=plan)
    else:
        wrap = functools.partial(wrap, sparsity=sparsity)
    if algorithm in BEFORE:
        return wrap(swapjax.static(masks_before(algorithm, sparsity, model, data, key)))
    when = swapjax.constant(0, 3 * total // 4, every=every)
    if algorithm in RISES:
        start = 0.5 if algorithm == "granet-st" else 0.0
        # The largest of the dense weights may be others at every step.
        often = 1 if algorithm.startswith("ste") else every
        when = swapjax.cubic(0, total // 2, every=often, initial=start)
    elif algorithm == "acdc":
        # Ten phases, dense first and sparse last.
        when = swapjax.constant(total // 10, 9 * total // 10, every=total // 10)
    return wrap(RULES[algorithm](), schedule=when)


def masks_before(
    algorithm: str,
    sparsity: float,
    model: models.Model,
    data: datasets.Dataset,
    key: jax.Array,
) -> Any:
    """Masks of the initial weights."""
    methods = {
        "random": lambda: swapjax.random(key),
        "magnitude": swapjax.magnitude,
        "snip": swapjax.snip,
        "grasp": swapjax.grasp,
        "synflow": lambda: swapjax.synflow(model.apply, data.shape),
    }
    once = algorithm != "synflow"
    return swapjax.prune(
        model.loss_fn, model.params, data.train, sparsity=sparsity,
        method=methods[algorithm](), key=key, samples=1000 if once else 1,
        stages=1 if once else 100,
        schedule=swapjax.one_shot() if once else swapjax.geometric(),
    ).masks  # fmt: skip


def table(lines: list[Line]) -> Table:
    """Means and standard errors over seeds, JaxPruner's means behind."""
    levels = sorted({line.sparsity for line in lines if line.sparsity})
    result = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    result.add_column("algorithm")
    for level in levels:
        result.add_column(f"{level:g}", justify="right", no_wrap=True)
    for algorithm in dict.fromkeys(line.algorithm for line in lines):
        cells = []
        for level in levels:
            at = 0.0 if algorithm == "dense" else level
            values = values_of(lines, algorithm, at)
            cell = f"{np.mean(values):.2f}"
            if len(values) > 1:
                cell += f"±{np.std(values, ddof=1) / np.sqrt(len(values)):.2f}"
            known = JAXPRUNER.get(algorithm, {}).get(level)
            cells.append(cell if known is None else f"{cell} ({known:.2f})")
        result.add_row(algorithm, *cells)
    return result


def values_of(lines: list[Line], algorithm: str, level: float) -> list[float]:
    """Accuracies over seeds."""
    return [
        line.accuracy
        for line in lines
        if (line.algorithm, line.sparsity) == (algorithm, level)
    ]


def figure(lines: list[Line]) -> Figure:
    """Accuracy against sparsity, one line an algorithm."""
    levels = sorted({line.sparsity for line in lines if line.sparsity})
    result = Figure(figsize=(7.5, 4.8), layout="constrained")
    axes = result.subplots()
    dense = values_of(lines, "dense", 0.0)
    if dense:
        axes.axhline(
            float(np.mean(dense)), color="black", lw=0.8, ls=":", label="dense"
        )
    names = [n for n in dict.fromkeys(line.algorithm for line in lines) if n != "dense"]
    for i, name in enumerate(names):
        found = [values_of(lines, name, level) for level in levels]
        axes.errorbar(
            range(len(levels)),
            [float(np.mean(v)) for v in found],
            yerr=[float(np.std(v)) for v in found],
            marker="osD^v<>ph*XPd"[i % 13], ms=5, capsize=2, color=f"C{i % 10}",
            ls="-" if i < 9 else "--", label=name,
        )  # fmt: skip
    axes.set_xticks(range(len(levels)), [f"{level:g}" for level in levels])
    axes.set_xlabel("sparsity")
    axes.set_ylabel("test accuracy (%)")
    axes.set_ylim(bottom=85)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", ncols=2)
    return result


if __name__ == "__main__":
    start(main, tyro.cli(Options))
