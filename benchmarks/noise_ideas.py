"""Ideas against noise, each beside linear regression and beside the ridge of layers.

MLPNet on MNIST is pruned to 0.98 in eight stages (0.87, 0.91, ... of a cubic schedule;
before that nothing tells methods apart), without the first-order step. What is tried
changes the examples, the rows or the weight that each row has; all else is the same
for all: the draws of a seed, the supports and ridges that the stage's loss chooses of.

Writes results.csv after every run and goes on where it stopped; then the gain of each
idea over what it stands beside, seed by seed.
"""

import dataclasses
import functools
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from noise_refit import Idea, Pruning
from rich.table import Table
from shared import DATA, RESULTS, complete_csv, console, start

from swapjax import GradientNoise
from swapjax.corruptions import fgsm, flip_labels
from swapjax.experiments import datasets, models, runner

LEVELS = [0.98 - 0.88 * (1 - t / 14) ** 3 for t in range(7, 15)]


def unit_rows(gram: np.ndarray, entries: int) -> np.ndarray:
    """Give all rows the same norm."""
    return np.sqrt(np.mean(np.diag(gram)) / np.diag(gram))


def largest_out(gram: np.ndarray, entries: int) -> np.ndarray:
    """Leave the tenth with the largest norms out."""
    norms = np.diag(gram)
    return (norms <= np.quantile(norms, 0.9)).astype(float)


def leverage_out(gram: np.ndarray, entries: int) -> np.ndarray:
    """Leave the tenth out that a ridge regression follows most."""
    n = len(gram)
    held = n * 1e-2 * np.mean(np.diag(gram)) * np.eye(n)
    leverage = np.diag(np.linalg.solve(gram + held, gram))
    return (leverage <= np.quantile(leverage, 0.9)).astype(float)


def shrunk(gram: np.ndarray, entries: int) -> np.ndarray:
    """Shrink singular values for Frobenius loss, the noise from their median.

    Gavish and Donoho, IEEE Transactions on Information Theory 2017, arXiv:1405.7511.
    """
    values, vectors = np.linalg.eigh(gram)
    n, longer = len(gram), max(len(gram), entries)
    beta = min(n, entries) / longer
    low, high = (1 - np.sqrt(beta)) ** 2, (1 + np.sqrt(beta)) ** 2
    grid = np.linspace(low, high, 20_001)[1:-1]
    mass = np.cumsum(np.sqrt((high - grid) * (grid - low)) / grid)
    median = grid[np.searchsorted(mass, mass[-1] / 2)]
    values = np.maximum(values, 1e-9 * values[-1])
    noise_level = np.median(values[-min(n, entries) :]) / median
    y = values / noise_level  # squares, in units where noise ends at (1 + sqrt(beta))^2
    kept = np.maximum((y - beta - 1) ** 2 - 4 * beta, 0) * (y > high)
    return (vectors * (np.sqrt(kept) / y)) @ vectors.T


def neighbours(gram: np.ndarray, entries: int, perplexity: float = 10) -> np.ndarray:
    """Average over nearest rows: a plan whose cost is the distance of gradients."""
    squares = np.diag(gram)
    cost = squares[:, None] + squares[None] - 2 * gram
    np.fill_diagonal(cost, 0)
    cost /= np.median(cost)
    low, high = 5e-3, 1e2
    for _ in range(12):
        epsilon = np.sqrt(low * high)
        potential = np.zeros(len(gram))
        for _ in range(30):
            sums = np.exp((potential - cost) / epsilon).sum(axis=1)
            potential = (potential - epsilon * np.log(sums)) / 2
        plan = np.exp((potential[:, None] + potential - cost) / epsilon)
        plan /= plan.sum(axis=1, keepdims=True)
        entropy = -np.sum(plan * np.log(plan + 1e-300), axis=1).mean()
        low, high = (low, epsilon) if entropy > np.log(perplexity) else (epsilon, high)
    return (plan + plan.T) / 2


IDEAS = {
    "none": Idea("(accuracy without any)"),
    "own-labels": Idea(
        "labels drawn from the network", lambda x, y, own, top: (x, own)
    ),
    "likely-labels": Idea("its likeliest labels", lambda x, y, own, top: (x, top)),
    "agreed": Idea(
        "examples alone whose label it agrees with",
        lambda x, y, own, top: (x[y == top], y[y == top]),
    ),
    "batch-4": Idea("4,000 rows of 4", batch=4),
    "shrunk": Idea("optimal shrinkage of singular values", mix=shrunk),
    "neighbours": Idea("rows averaged over neighbours", mix=neighbours),
    "neighbours-targets": Idea("targets alone averaged", mix=neighbours, targets=True),
    "pooled": Idea("rows of two earlier stages too", pool=2),
    "huber": Idea("Huber's weights", robust=True),
    "unit-rows": Idea("rows of norm 1", mix=unit_rows),
    "largest-out": Idea("a tenth out, by norm", mix=largest_out),
    "leverage-out": Idea("a tenth out, by leverage", mix=leverage_out),
    "fitted-floor": Idea("floor of gamma by a fit", floor=None),
    "no-floor": Idea("no floor of gamma", floor=0.0),
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Try ideas against noise on MLPNet."""

    ideas: tuple[str, ...] = tuple(IDEAS)
    """Any of the ideas."""
    bases: tuple[str, ...] = ("linear-regression", "kfac")
    """linear-regression, kfac."""
    kinds: tuple[str, ...] = ("labels-0.4", "gaussian-4-0.5", "clean", "fgsm-0.1")
    """labels-0.4: the share that is flipped; gaussian-4-0.5: deviations of rows, on
    that share of entries; fgsm-0.1: what pixels move by; clean."""
    seeds: tuple[int, ...] = (0, 1)
    """Of examples and noise."""
    out: Path = RESULTS / "noise_ideas"
    """The folder for results.csv."""


@dataclasses.dataclass(frozen=True)
class Run:
    """One line of the results."""

    kind: str
    base: str
    idea: str
    seed: int
    accuracy: float | None = None
    cpu: float | None = None

    @property
    def key(self) -> tuple:
        """What tells it from other runs."""
        return (self.kind, self.base, self.idea, self.seed)

    def __str__(self) -> str:
        return ", ".join(map(str, self.key))


def main(options: Options) -> None:
    """Do what is left to do, then show everything."""
    options.out.mkdir(parents=True, exist_ok=True)
    wanted = [
        Run(kind, base, idea, seed)
        for seed in options.seeds
        for kind in options.kinds
        for idea in options.ideas
        for base in options.bases
        if base == "kfac" or "floor" not in idea  # which is a part of the ridge
    ]
    runs = list(complete_csv(options.out / "results.csv", wanted, measure).values())
    console.print(table(runs))


def table(runs: list[Run]) -> Table:
    """Mean differences to the run without the idea, with standard errors."""
    result = Table("idea")
    found = {run.key: run.accuracy or 0.0 for run in runs}
    columns = list(dict.fromkeys((run.kind, run.base) for run in runs))
    for kind, base in columns:
        result.add_column(f"{kind}, {base}", justify="right")
    for name in dict.fromkeys(run.idea for run in runs):
        cells = []
        for column in columns:
            keys = [run.key for run in runs if run.key[:3] == (*column, name)]
            gains = [found[key] for key in keys]
            if name != "none":
                gains = [found[key] - found[*column, "none", key[-1]] for key in keys]
            sign = "" if name == "none" else "+"
            cell = f"{np.mean(gains):{sign}.1f}" if gains else ""
            if len(gains) > 1:
                cell += f" ± {np.std(gains, ddof=1) / np.sqrt(len(gains)):.1f}"
            cells.append(cell)
        result.add_row(IDEAS[name].title, *cells)
    return result


@functools.cache
def set_up() -> runner.Setting:
    """Load the network and its data."""
    data = datasets.load(DATA / "data" / "mnist.npz")
    model = models.create("mlpnet", data.shape, data.classes)
    weights = DATA / "checkpoints" / "mlpnet_mnist.npz"
    return runner.set_up(data, model, weights=weights)


@functools.lru_cache(maxsize=2)
def examples(kind: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Spoil labels or images, if it is these that are spoilt."""
    setting = set_up()
    data, (x, y) = setting.data, map(jnp.asarray, setting.data.train)
    if kind == "labels-0.4":
        key = jax.random.fold_in(jax.random.key(seed), 1)
        y, _ = flip_labels(key, y, 0.4, classes=data.classes)
    if kind == "fgsm-0.1":
        box = -data.mean / data.std, (1 - data.mean) / data.std
        attack = functools.partial(fgsm, setting.model.loss_fn, setting.params)
        parts = zip(jnp.split(x, 30), jnp.split(y, 30), strict=True)
        x = jnp.concatenate([attack(p, 0.1 / data.std, box=box) for p in parts])
    return np.asarray(x), np.asarray(y)


def measure(run: Run) -> Run:
    """Prune as a run says, and fill in what came of it."""
    setting, idea, started = set_up(), IDEAS[run.idea], time.process_time()
    x, y = examples(run.kind, run.seed)
    if idea.data is not None:
        logits = setting.model.apply(setting.params, jnp.asarray(x))
        # What `swapjax.own_labels` does, in one draw.
        own = jax.random.categorical(jax.random.key(run.seed), logits)
        x, y = idea.data(x, y, np.asarray(own), np.asarray(jnp.argmax(logits, axis=1)))
    noise = GradientNoise(4, 0.5) if run.kind == "gaussian-4-0.5" else None
    pruning = Pruning(
        setting,
        idea,
        ridge=run.base == "kfac",
        noise=noise,
        seed=run.seed,
    )
    for stage, level in enumerate(LEVELS):
        pruning.advance(stage, level, x, y)
    accuracy, _ = runner.evaluate(setting, pruning.params())
    cpu = round(time.process_time() - started, 1)
    return dataclasses.replace(run, accuracy=round(accuracy, 4), cpu=cpu)


if __name__ == "__main__":
    start(main, tyro.cli(Options))
