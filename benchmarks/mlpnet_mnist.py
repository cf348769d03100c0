"""MLPNet on MNIST: ours against what the authors' own code scored.

Two recipes, each at seven sparsities, from clean gradients and from noisy ones:

- plain: 15 stages (exponential), 1,000 rows of 16 examples each, no training between;
- sgd: 14 stages (cubic from 0), an epoch of SGD after each (learning rate 1e-3,
  momentum 0.5, batches of 64). The released SWAP code has one epoch more, before the
  first pruning, and rows of one example.

"targets only" leaves the first-order step out: what remains is the regression alone.
At sparsity 0 nothing is pruned, so that row tells what the first-order step gains by
itself: it trains.

Writes results.csv after every run and goes on where it stopped; then results.png, and a
table that says whom each mean beats or loses to. Of each peer the best setting counts,
which its own test set chose.
"""

import dataclasses
import functools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import optax
import tyro
from matplotlib.figure import Figure
from peers import Peer, matching, read
from rich.table import Table
from shared import DATA, RESULTS, complete_csv, console, start

import swapjax
from swapjax.experiments import datasets, models, plot, runner
from swapjax.experiments.noise import CLEAN, Noise
from swapjax.pruning import swap_released

# Means that the better of the two regressions must reach from clean gradients.
GOALS = {
    ("plain", 0.9): 93.6,
    ("plain", 0.95): 92.6,
    ("plain", 0.98): 83.0,
    ("sgd", 0.9): 94.4,
    ("sgd", 0.95): 93.1,
    ("sgd", 0.98): 86.6,
}
PLAIN, SGD = "plain", "sgd"
METHODS = {
    "magnitude": swapjax.magnitude(),
    "linear-regression": swapjax.linear_regression(),
    "swap": swapjax.swap(),
    "linear-regression, targets only": swapjax.linear_regression(first_order=False),
    "swap, targets only": swapjax.swap(first_order=False),
    "swap, as released": swap_released(),
}
COLOURS = {
    "magnitude": "#7f7f7f",
    "linear-regression": "#1f77b4",
    "swap": "#d62728",
    "linear-regression, targets only": "#aec7e8",
    "swap, targets only": "#ff9896",
    "swap, as released": "#9467bd",
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Prune MLPNet on MNIST in every way, and hold the results against peers."""

    recipes: tuple[str, ...] = (PLAIN, SGD)
    """plain, sgd."""
    methods: tuple[str, ...] = tuple(METHODS)
    """Any of the names in the tables."""
    sparsities: tuple[float, ...] = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)
    """0 is the control that prunes nothing."""
    noises: tuple[str, ...] = ("clean", "1,0.25", "4,0.5")
    """clean, or SCALE,PROPORTION."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of samples, noise and shuffles."""
    out: Path = RESULTS / "mlpnet_mnist"
    """The folder for results.csv and results.png."""
    data: Path = DATA / "data" / "mnist.npz"
    """MNIST as x_train, y_train, x_test, y_test."""
    checkpoint: Path = DATA / "checkpoints" / "mlpnet_mnist.npz"
    """The published weights."""
    peers: Path = DATA / "reference" / "peers.json"
    """What the authors' code scored."""


@dataclasses.dataclass(frozen=True)
class Run:
    """One line of the results; the measurements are None until it is done."""

    recipe: str
    method: str
    noise: str
    sparsity: float
    seed: int
    accuracy: float | None = None
    loss: float | None = None
    seconds: float | None = None
    status: str | None = None

    def __str__(self) -> str:
        name = f"{self.recipe}, {self.method}, {self.noise}, {self.sparsity:g}"
        return f"{name}, seed {self.seed}"

    @property
    def key(self) -> tuple:
        """What tells it from other runs."""
        return (self.recipe, self.method, self.noise, self.sparsity, self.seed)

    @property
    def noise_pair(self) -> tuple[float, float] | None:
        """Scale and proportion."""
        if self.noise == "clean":
            return None
        scale, proportion = self.noise.split(",")
        return float(scale), float(proportion)


def main(options: Options) -> None:
    """Do what is left to do, then show everything."""
    for path in (options.data, options.checkpoint):
        if not path.exists():
            sys.exit(f"{path}: not there; name it with --data or --checkpoint")
    data = datasets.load(options.data)
    model = models.create("mlpnet", data.shape, data.classes)
    setting = runner.set_up(data, model, weights=options.checkpoint)
    accuracy, loss = runner.evaluate(setting, setting.params)
    console.print(f"Dense: {accuracy:.2f}%, loss {loss:.4f}.")
    options.out.mkdir(parents=True, exist_ok=True)
    target = options.out / "results.csv"
    done = complete_csv(target, plan_runs(options), functools.partial(measure, setting))
    peers = read(options.peers) if options.peers.exists() else []
    runs = list(done.values())
    plot.save(figure(runs, peers), options.out / "results.png")
    for recipe in (PLAIN, SGD):
        for noise in dict.fromkeys(run.noise for run in runs):
            group = [r for r in runs if (r.recipe, r.noise) == (recipe, noise)]
            if group:
                # The control looks at no gradients: noise leaves it as it is.
                if noise != "clean":
                    group += control(runs, recipe, group)
                console.print(table(group, peers))
    show_goals(runs)
    console.print(f"Written to {target}, drawn in {options.out / 'results.png'}.")


def show_goals(runs: list[Run]) -> None:
    """Say which goals are met."""
    for (recipe, level), goal in GOALS.items():
        group = [r for r in runs if r.key[:1] == (recipe,) and r.noise == "clean"]
        values = [accuracies(group, m, level) for m in ("linear-regression", "swap")]
        means = [float(np.mean(v)) for v in values if v]
        if means:
            verdict = "met" if max(means) >= goal else "MISSED"
            console.print(
                f"{recipe} at {level:g}: {max(means):.2f}, {goal:g} {verdict}"
            )


def control(runs: list[Run], recipe: str, group: list[Run]) -> list[Run]:
    """Find the runs by magnitude that belong beside a group of noisy ones."""
    levels = {run.sparsity for run in group}
    key = (recipe, "magnitude", "clean")
    return [r for r in runs if r.key[:3] == key and r.sparsity in levels]


def plan_runs(options: Options) -> list[Run]:
    """All runs asked for, those that repeat another left out."""
    runs = []
    for recipe in options.recipes:
        for noise in options.noises:
            for method in options.methods:
                for sparsity in options.sparsities:
                    for seed in options.seeds:
                        blind = METHODS[method].needs_rows is False
                        # Magnitude sees no gradients, and without SGD no samples.
                        if blind and (noise != "clean" or (recipe == PLAIN and seed)):
                            continue
                        if not sparsity and (blind or noise != "clean"):
                            continue
                        runs.append(Run(recipe, method, noise, sparsity, seed))
    return runs


def measure(setting: runner.Setting, run: Run) -> Run:
    """Prune, and fill in what came of it."""
    recipe: dict[str, Any]
    if run.recipe == PLAIN:
        recipe = {"stages": 15, "schedule": swapjax.exponential()}
    else:
        tune = swapjax.FineTune(_sgd(), steps=len(setting.data.y_train) // 64, batch=64)
        recipe = {"stages": 14, "schedule": swapjax.cubic(), "finetune": tune}
    pair = run.noise_pair
    row, _ = runner.run(
        setting,
        METHODS[run.method],
        sparsity=run.sparsity,
        seed=run.seed,
        noise=CLEAN if pair is None else Noise("gaussian", pair),
        samples=1000,
        batch=16,
        **recipe,
    )
    return dataclasses.replace(
        run,
        accuracy=round(row.accuracy, 4),
        loss=round(row.loss, 6),
        seconds=round(row.seconds, 2),
        status=row.status,
    )


@functools.cache
def _sgd() -> optax.GradientTransformation:
    """One object for all runs, so that its step is compiled once."""
    return optax.sgd(1e-3, momentum=0.5)


def accuracies(runs: list[Run], method: str, sparsity: float) -> list[float]:
    """Of all seeds."""
    return [
        run.accuracy
        for run in runs
        if (run.method, run.sparsity) == (method, sparsity) and run.accuracy is not None
    ]


def table(runs: list[Run], peers: list[Peer]) -> Table:
    """Means and deviations, and where each stands among the peers."""
    recipe, noise, pair = runs[0].recipe, runs[0].noise, runs[0].noise_pair
    result = Table(title=f"{recipe}, gradients: {noise}", title_justify="left")
    for name in ("method", "sparsity", "accuracy", "beats", "loses to"):
        result.add_column(name, justify="left" if name != "accuracy" else "right")
    for method in dict.fromkeys(run.method for run in runs):
        for level in sorted({run.sparsity for run in runs}):
            values = accuracies(runs, method, level)
            if not values:
                continue
            mean = float(np.mean(values))
            spread = f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
            others = matching(peers, recipe == SGD, pair, level)
            sides = [
                ", ".join(f"{p.name} {p.accuracy:.2f}" for p in others if side(p))
                or ("" if others else "(no peer)")
                for side in (lambda p: p.accuracy < mean, lambda p: p.accuracy > mean)  # noqa: B023
            ]
            result.add_row(method, f"{level:g}", f"{mean:.2f}{spread}", *sides)
        result.add_section()
    return result


def figure(runs: list[Run], peers: list[Peer]) -> Figure:
    """One panel a recipe and noise: ours as lines, the best peer as crosses."""
    panels = list(dict.fromkeys((run.recipe, run.noise) for run in runs))
    result = Figure(figsize=(4.6 * len(panels), 4.2), layout="constrained")
    axes = np.atleast_1d(result.subplots(1, len(panels)))
    for ax, (recipe, noise) in zip(axes, panels, strict=True):
        group = [r for r in runs if (r.recipe, r.noise) == (recipe, noise)]
        levels = sorted({run.sparsity for run in group if run.sparsity})
        for method in dict.fromkeys(run.method for run in group):
            values = [accuracies(group, method, level) for level in levels]
            at = [i for i, v in enumerate(values) if v]
            ax.errorbar(
                at,
                [np.mean(values[i]) for i in at],
                yerr=[
                    float(np.std(values[i], ddof=min(1, len(values[i]) - 1)))
                    for i in at
                ],
                label=method,
                color=COLOURS[method],
                marker="o",
                ms=4,
                capsize=3,
            )
        best = [matching(peers, recipe == SGD, group[0].noise_pair, s) for s in levels]
        at = [i for i, found in enumerate(best) if found]
        ax.plot(
            at, [best[i][0].accuracy for i in at], "kx", ms=8, mew=2, label="best peer"
        )
        ax.set_xticks(range(len(levels)), [f"{level:g}" for level in levels])
        ax.set_ylim(bottom=80 if recipe == PLAIN else 84)
        ax.set_title(f"{recipe}, gradients: {noise}")
        ax.set_xlabel("sparsity")
        ax.grid(alpha=0.3)
    axes[0].set_ylabel("test accuracy (%)")
    axes[0].legend(fontsize="small")
    return result


if __name__ == "__main__":
    start(main, tyro.cli(Options))
