"""Adversarial training on one network, with hypersphere embedding and without.

A network of two convolutions (16 and 32 channels) and a dense layer of 64 on the first
2,500 images of MNIST, values from 0 to 1: Adam, batches of 50, 6 epochs, the rate
falling from 0.002 to 0 along a cosine; epsilon 0.2 in the largest norm. Attacks in
training have 7 steps of a quarter of epsilon from a Gaussian start; FreeAT takes each
batch 6 times, and one epoch; FastAT one step. Embedding has the scale and the margin of
its authors: 10 and 0.2, 15 and 0.2 with TRADES, 20 and 0.3 with ALP; with FastAT 15 and
0.2, the defaults of Bag of Tricks, as its authors' script was not found. Columns are
projected after each step. On the first 1,000 test images PGD takes 20 steps, each
attack on all that is classified right, and the minimum over attacks is kept of each
image.

With ``--plan cifar10`` ResNet-18 on CIFAR-10, epsilon 8/255, 10 steps of 2/255, 50
epochs of SGD, for a machine with a GPU.

Writes results.csv after every run and goes on where it stopped. With ``--report`` it
prints the tables of docs/results/robust.md.
"""

import dataclasses
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import optax
import tyro
from robust_report import FRAMEWORKS, HEADS, Line, report
from shared import DATA, RESULTS, complete_csv, console, read_runs, start

import swapjax
from swapjax import robust
from swapjax.core.types import Params
from swapjax.experiments import datasets, models
from swapjax.loops import steps
from swapjax.robust.hypersphere import HEADS as HEADS_OF
from swapjax.training import Objective, fit

ATTACKS = ("pgd-ce", "pgd-margin", "pgd-dlr")


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run has beside its framework, head and seed."""

    file: str
    network: str
    images: int
    epochs: int
    batch: int
    epsilon: float
    step: float
    steps: int
    replays: int
    tested: int


PLANS = {
    "mnist": Plan("mnist.npz", "cnn", 2500, 6, 50, 0.2, 0.05, 7, 6, 1000),
    "cifar10": Plan(
        "cifar10_jpeg.npz", "resnet18", 50_000, 50, 128, 8 / 255, 2 / 255, 10, 8, 10_000
    ),
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Train one network by every framework, with both heads."""

    plan: Literal["mnist", "cifar10"] = "mnist"
    """The second wants a GPU."""
    frameworks: tuple[str, ...] = ("none", *FRAMEWORKS)
    """Any of the names in the table; "none" is training without attacks."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of initial weights, orders and attacks."""
    images: int | None = None
    """The first of the training set; by default as many as the plan has."""
    epochs: int | None = None
    """Passes over them; likewise."""
    out: Path = RESULTS / "robust"
    """The folder to write to."""
    report: bool = False
    """Whether to print tables of what is there already, and nothing else."""


def main(options: Options) -> None:
    """Do what is left to do, then show everything."""
    target = options.out / "results.csv"
    if options.report:
        found = [x for x in read_runs(target, Line) if x.plan == options.plan]
        console.print(report(found), highlight=False, soft_wrap=True)
        return
    options.out.mkdir(parents=True, exist_ok=True)
    plan = PLANS[options.plan]
    if options.plan == "cifar10" and jax.default_backend() == "cpu":
        console.print("This plan wants a GPU; on a CPU an epoch takes hours.")
    data = datasets.load(DATA / "data" / plan.file)
    wanted = [
        Line(
            options.plan, framework, head, seed,
            options.images or plan.images, options.epochs or plan.epochs,
        )
        for seed in options.seeds
        for framework in options.frameworks
        for head in HEADS
    ]  # fmt: skip
    done = complete_csv(target, sorted(wanted, key=rank), lambda x: train(x, data))
    console.print(report([done[line.key] for line in wanted]), highlight=False)


def rank(line: Line) -> tuple:
    """Put first what there is to compare: all with one seed, then PGD-AT."""
    return line.seed > 0 and line.framework != "pgd-at", line.framework == "mart"


def train(line: Line, data: datasets.Dataset) -> Line:
    """One run, from initial weights to accuracy under attack."""
    plan, head = PLANS[line.plan], None
    if line.head == "cosines":
        head = HEADS_OF.get(line.framework.replace("-", "_"), robust.Hypersphere())
    model = models.create(
        plan.network, data.shape, data.classes, seed=line.seed, head=line.head
    )
    images, labels = pixels(data, data.x_train)[: line.images], data.y_train
    given = images, labels[: line.images]
    order, draw = jax.random.split(jax.random.key(line.seed))
    objective = framework_of(line.framework, plan, model, head)
    epochs = max(1, line.epochs // objective.replays)
    total = epochs * steps.per_epoch(given, plan.batch, "batch") * objective.replays
    fitted = fit(objective, model.params, optimizer_of(line, model, total), given,
                 epochs=epochs, batch=plan.batch, key=order)  # fmt: skip
    params = fitted.params
    if model.statistics is not None:
        some = np.split(images[:5000], 10)
        params = swapjax.recalibrate_batchnorm(model.statistics, params, some)
    measured: dict[str, Any] = accuracies(model, params, head, data, plan, draw)
    seconds = round(sum(epoch.seconds for epoch in fitted.history), 1)
    return dataclasses.replace(line, seconds=seconds, **measured)


def framework_of(
    name: str, plan: Plan, model: models.Model, head: robust.Hypersphere | None
) -> Objective:
    """Make an objective by its name in the table."""
    options: dict[str, Any] = {"epsilon": plan.epsilon, "head": head}
    options |= {"training_apply": model.training_apply}
    if name == "free-at":
        return robust.free_at(model.apply, replays=plan.replays, **options)
    options |= {"statistics": model.statistics}
    if name == "fast-at":
        return robust.fast_at(model.apply, **options)
    if name == "none":
        options |= {"epsilon": 0.0, "start": None}
        return robust.pgd_at(model.apply, step=0.0, steps=0, **options)
    make = getattr(robust, name.replace("-", "_"))
    return make(model.apply, step=plan.step, steps=plan.steps, **options)


def optimizer_of(
    line: Line, model: models.Model, total: int
) -> optax.GradientTransformation:
    """Adam on MNIST and SGD on CIFAR-10; columns are projected last."""
    if line.plan == "mnist":
        tx = optax.adam(optax.cosine_decay_schedule(0.002, total))
    else:
        sgd = optax.sgd(optax.cosine_decay_schedule(0.1, total), momentum=0.9)
        tx = optax.chain(optax.add_decayed_weights(5e-4), sgd)
    if model.cosines is None:
        return tx
    return optax.chain(tx, robust.on_sphere(model.cosines))


def accuracies(
    model: models.Model,
    params: Params,
    head: robust.Hypersphere | None,
    data: datasets.Dataset,
    plan: Plan,
    key: jax.Array,
) -> dict[str, float]:
    """Percent of test images that stand, under each attack and all."""
    images = pixels(data, data.x_test)[: plan.tested], data.y_test[: plan.tested]
    found = robust.evaluate(
        model.apply, params, images, epsilon=plan.epsilon, attacks=ATTACKS, key=key,
        batch=500, scale=None if head is None else head.scale, alone=True,
    )  # fmt: skip
    names = ("ce", *(() if head is None else ("ce_unscaled",)), "margin", "dlr")
    left = {
        name: attempt.alone for name, attempt in zip(names, found.attempts, strict=True)
    }
    told = {"clean": found.clean, "robust": found.robust, **left}
    return {name: round(100 * (x or 0.0), 2) for name, x in told.items()}


def pixels(data: datasets.Dataset, images: np.ndarray) -> np.ndarray:
    """Images with values from 0 to 1, as they were before they were standardised."""
    return np.clip(images * data.std + data.mean, 0, 1).astype(np.float32)


if __name__ == "__main__":
    start(main, tyro.cli(Options))
