"""Sparse training and pruning where labels are wrong, and under attack where not.

LeNet-300-100 without biases on 5,000 images of MNIST, whose labels are flipped
symmetrically with a probability; SGD with momentum 0.9, a decay of 1e-4 and a rate that
falls from 0.1 to 0 along a cosine, batches of 64, 20 epochs; ELSA has Adam at 1e-3.
Accuracy is that of the last step on the 10,000 test images, whose labels are right,
and for networks trained on right labels also that on the first 5,000 of them under
each of the image corruptions, and on the first 2,000 attacked by PGD with ten steps.

With --tune the settings of `GRID` are compared instead: on other seeds, and by the
accuracy on noisy labels of training images that none of the runs trains on. `CHOSEN`
has the best of each method.

Writes results.csv (tuning.csv) after every run and goes on where it stopped.
"""

import dataclasses
import functools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import sparse_robust_report as report
import tyro
from shared import DATA, RESULTS, complete_csv, console, start
from sparse_robust_methods import GRID, METHODS, base, chosen, transformation
from sparse_robust_report import Line

import swapjax
from swapjax import robust
from swapjax.core.types import Params
from swapjax.corruptions import IMAGE_CORRUPTIONS, corrupt_images, flip_labels
from swapjax.experiments import datasets, models
from swapjax.loops import steps
from swapjax.robust.label_table import LABEL_LOSSES
from swapjax.robust.supervised import supervised
from swapjax.training import fit, masks_of

EXAMPLES, HELD_OUT, BATCH = 5_000, 10_000, 64
CORRUPTED, ATTACKED, EPSILON = 5_000, 2_000, 0.05


@dataclasses.dataclass(frozen=True)
class Options:
    """Train by every method under label noise, and attack what saw none."""

    methods: tuple[str, ...] = METHODS
    """Any of those in the table."""
    noises: tuple[float, ...] = (0.5, 0.25, 0.0)
    """The probability that a label is flipped."""
    sparsities: tuple[float, ...] = (0.95, 0.9)
    """Of prunable weights."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of initial weights, examples, flips, orders and masks."""
    epochs: int = 20
    """Passes over the training set."""
    tune: bool = False
    """Compare the settings of each method instead."""
    data: Path = DATA / "data" / "mnist.npz"
    """An .npz with x_train, y_train, x_test, y_test."""
    out: Path = RESULTS / "sparse_robust"
    """The folder to write to."""


class Task(NamedTuple):
    """What a run learns from and is measured on."""

    train: tuple[jax.Array, jax.Array]
    test: tuple[jax.Array, jax.Array]
    params: Params


def main(options: Options) -> None:
    """Do what is left to do, then show everything."""
    options.out.mkdir(parents=True, exist_ok=True)
    if options.tune:
        wanted = [
            Line(method, 0.5, 0.95, seed, options.epochs, setting)
            for seed in (10,)
            for method in GRID
            for setting in range(len(GRID[method]))
        ]
        name = "tuning.csv"
    else:
        wanted = [
            Line(method, noise, level, seed, options.epochs, chosen(method))
            for seed in options.seeds
            for noise in options.noises
            for method in options.methods
            for level in ((0.0,) if method == "dense" else options.sparsities)
        ]
        name = "results.csv"
    work = functools.partial(measure, options)
    done = complete_csv(options.out / name, wanted, work)
    for title, text in report.markdown(list(done.values())).items():
        console.print(f"{title}\n\n{text}\n", soft_wrap=True)


def measure(options: Options, line: Line) -> Line:
    """Make a network, and fill in what came of it."""
    started = time.process_time()
    data, model = load(options.data)
    task = prepare(options, line.seed, line.noise)
    params, before = make(options, line, task)
    right = functools.partial(accuracy, model.apply, params)
    found: dict[str, Any] = {"accuracy": right(*task.test)}
    if before is not None:
        found["before"] = accuracy(model.apply, before, *task.test)
    if not line.noise and not options.tune:
        y = task.test[1]
        for severity in (3, 5):
            found[f"severity{severity}"] = np.mean(
                [right(x, y[: len(x)]) for x in corrupted(options, severity)]
            )
        found["attacked"] = right(*attack(data, model, params))
    found = {name: round(float(value), 4) for name, value in found.items()}
    prunable = swapjax.plan(params, 0.0).layout.split(params)
    left = sum(int(jnp.sum(x != 0)) for x in prunable)
    cpu = round(time.process_time() - started, 2)
    return dataclasses.replace(line, **found, left=left, cpu=cpu)


@functools.cache
def load(path: Path) -> tuple[datasets.Dataset, models.Model]:
    """Load the data, and make the network, whose loss all runs share."""
    data = datasets.load(path)
    return data, models.create("lenet300", data.shape, data.classes)


@functools.lru_cache(maxsize=2)
def prepare(options: Options, seed: int, noise: float) -> Task:
    """Draw examples, flip labels, and draw initial weights."""
    data, _ = load(options.data)
    key, flips = jax.random.split(jax.random.fold_in(jax.random.key(seed), 2**29))
    order = np.asarray(jax.random.permutation(key, len(data.y_train)))
    chosen = order[: EXAMPLES + HELD_OUT]
    x, y = jnp.asarray(data.x_train[chosen]), jnp.asarray(data.y_train[chosen])
    y, _ = flip_labels(flips, y, noise, classes=data.classes)
    test = jnp.asarray(data.x_test), jnp.asarray(data.y_test)
    if options.tune:
        test = x[EXAMPLES:], y[EXAMPLES:]
    params = models.create("lenet300", data.shape, data.classes, seed=seed).params
    return Task((x[:EXAMPLES], y[:EXAMPLES]), test, params)


def make(options: Options, line: Line, task: Task) -> tuple[Params, Params | None]:
    """Train or prune; returns the network, and that before a cut if there is one."""
    if line.method == "kfac":
        return shot(options, line, task), None
    method, settings = base(line.method), GRID[base(line.method)][line.setting]
    total = options.epochs * steps.per_epoch(task.train, BATCH, "batch")
    draws = line.seed if method == "rigl" else 0
    tx = transformation(method, line.setting, line.sparsity, total, draws)
    loss = objective(options.data, line.method, settings.get("radius"))
    fitted = fit(
        loss, task.params, tx, task.train, epochs=options.epochs, batch=BATCH,
        key=jax.random.key(line.seed),
    )  # fmt: skip
    if method not in ("admm", "safe", "elsa"):
        return fitted.params, None
    cut = swapjax.apply_masks(fitted.params, masks_of(fitted.state))
    return cut, fitted.params


@functools.cache
def objective(path: Path, method: str, radius: float | None) -> Any:
    """Make what is minimised once, so that its program is compiled once."""
    _, model = load(path)
    loss: Any = model.training_loss
    if method.endswith("gce"):
        loss = supervised(model.apply, LABEL_LOSSES["gce"]())
    return loss if radius is None else swapjax.sharpness_aware(loss, radius)


def shot(options: Options, line: Line, task: Task) -> Params:
    """Prune the dense network of the same labels at once, by all of them."""
    dense = dataclasses.replace(
        line, method="dense", sparsity=0.0, setting=chosen("dense")
    )
    _, model = load(options.data)
    return swapjax.prune(
        model.loss_fn, trained(options, dense), task.train, sparsity=line.sparsity,
        method=swapjax.kfac_regression(), samples=300, batch=16,
        key=jax.random.key(line.seed),
    ).params  # fmt: skip


@functools.lru_cache(maxsize=4)
def trained(options: Options, line: Line) -> Params:
    """Train the dense network, once for all that is pruned of it."""
    return make(options, line, prepare(options, line.seed, line.noise))[0]


def accuracy(apply: Any, params: Params, x: Any, y: Any) -> float:
    """Measure in percent."""
    parts = [x[i : i + 2500] for i in range(0, len(x), 2500)]
    found = jnp.concatenate([jnp.argmax(apply(params, part), axis=1) for part in parts])
    return 100 * float(jnp.mean(found == y))


def box_of(data: datasets.Dataset) -> tuple[float, float]:
    """Say what black and white have become."""
    return -data.mean / data.std, (1 - data.mean) / data.std


@functools.cache
def corrupted(options: Options, severity: int) -> Sequence[np.ndarray]:
    """Spoil test images in every way, once for all networks."""
    data, _ = load(options.data)
    x = jnp.asarray(data.x_test[:CORRUPTED])[..., None]
    key = jax.random.key(2**29 + 1)
    return [
        np.asarray(corrupt_images(key, x, kind, severity, box=box_of(data)))[..., 0]
        for kind in IMAGE_CORRUPTIONS
    ]


def attack(
    data: datasets.Dataset, model: models.Model, params: Params
) -> tuple[jax.Array, jax.Array]:
    """Attack the network that is measured."""
    x, y = jnp.asarray(data.x_test[:ATTACKED]), jnp.asarray(data.y_test[:ATTACKED])
    epsilon = EPSILON / data.std
    key = jax.random.key(2**29 + 2)
    found = robust.pgd(
        key, model.apply, params, x, y, epsilon=epsilon, step=epsilon / 4, steps=10,
        box=box_of(data),
    )  # fmt: skip
    return found, y


if __name__ == "__main__":
    start(main, tyro.cli(Options))
