"""Every loss for noisy labels on one network at equal steps.

A network of two convolutions (16 and 32 channels, stride 2) and a dense layer of 64,
batch norm after each, on the first 10,000 images of MNIST: SGD with momentum 0.9,
batches of 128, 10 epochs, the rate falling from 0.01 to 0 along a cosine, gradients
clipped to norm 5 before weight decay of 1e-3. Settings of losses are those that sparse
regularisation's authors have for MNIST, whose 50 epochs became 10: the weight of the
penalty doubles every tenth of the run as there. Noise has exact counts by class. After
each epoch accuracy is measured on the whole test set, whose labels are clean, and on
the first 2,500 training images, flipped and others apart, with the statistics of batch
norm from 1,000 of them.

With ``--plan cifar10`` the same on CIFAR-10 with the authors' six convolutions, 120
epochs and all of their rates, but without augmentation, for a machine with a GPU.

Writes results.csv after every run and goes on where it stopped; then results.png.
With ``--report`` it prints the tables of docs/results/noisy-labels.md.
"""

import dataclasses
import functools
import math
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from noisy_labels_network import PLANS, forward_of, infer_of, initial, statistics_of
from noisy_labels_report import HEADLINE, SPARSE, Line, figure, report
from shared import DATA, RESULTS, complete_csv, console, read_runs, start

from swapjax import robust
from swapjax.corruptions import LABEL_MAPS, flip_labels
from swapjax.experiments import datasets, plot
from swapjax.loops import steps
from swapjax.training import Objective, fit

BATCH, SEEN, CALIBRATION = 128, 2500, 1000
TOLD = {name: name for name in ("memorized", "recovered", "fitted")} | {
    "largest_class": "largest_class_tested"
}
OTHERS = (
    *("gce, q = 0.01", "rce", "mae", "nce", "nfl", "ngce", "nce+mae", "nfl+rce"),
    *("aul", "agce", "ece+mae"),
)
VARIANTS: dict[str, dict[str, Any]] = {
    "sharpened alone": {"weight": 0.0},
    "penalty alone": {"tau": 1.0},
    "weight fixed": {"growth": 1.0},
    "normalised": {"normalize": True},
}
ABLATIONS = (
    *("ce, sharpened alone", "ce, penalty alone"),
    *("ce + sr, weight fixed", "ce + sr, normalised", "gce + sr, weight fixed"),
)


@dataclasses.dataclass(frozen=True)
class Options:
    """Train one network on noisy labels by every loss."""

    plan: Literal["mnist", "cifar10"] = "mnist"
    """The second wants a GPU."""
    losses: tuple[str, ...] = (*HEADLINE, *OTHERS, *ABLATIONS)
    """Any of the names in the table."""
    noises: tuple[str, ...] | None = None
    """"none", or "symmetric" or "asymmetric" and a rate; else those of the plan."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of initial weights, noise and orders."""
    images: int | None = None
    """The first of the training set; by default as many as the plan has."""
    epochs: int | None = None
    """Passes over them; likewise."""
    out: Path = RESULTS / "noisy_labels"
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
        console.print("This plan wants a GPU; on a CPU an epoch takes minutes.")
    data = datasets.load(DATA / "data" / plan.file)
    wanted = [
        Line(
            options.plan, loss, noise, seed,
            options.images or plan.images, options.epochs or plan.epochs,
        )
        for seed in options.seeds
        for noise in options.noises or plan.noises
        for loss in options.losses
    ]  # fmt: skip
    done = complete_csv(target, sorted(wanted, key=rank), lambda x: train(x, data))
    plot.save(figure([done[line.key] for line in wanted]), options.out / "results.png")
    console.print(f"Written to {options.out}.", soft_wrap=True)


def rank(line: Line) -> tuple[bool, ...]:
    """Order runs: a seed of the headline, all losses at most noise, the other seeds."""
    headline, noisiest = line.loss in HEADLINE, line.noise == "symmetric 0.8"
    of_two = line.loss in ("ce", "ce + sr") and line.noise in ("symmetric 0.8", "none")
    return (
        not (headline and line.seed == 0),
        not (noisiest and line.seed == 0),
        not of_two,
        not (headline and noisiest),
        not headline,
        line.seed > 0,
    )


def train(line: Line, data: datasets.Dataset) -> Line:
    """One run, from initial weights to the last epoch."""
    plan = PLANS[line.plan]
    x, y = data.x_train[: line.images], data.y_train[: line.images]
    order, draw = jax.random.split(jax.random.key(line.seed))
    noisy, flipped = (np.asarray(a) for a in spoil(draw, line, y, data.classes))
    params = initial(line.seed, plan, data.shape, data.classes)
    total = line.epochs * steps.per_epoch((x, y), BATCH, "batch")
    tx = optax.chain(
        optax.clip_by_global_norm(5.0),
        optax.add_decayed_weights(plan.decay),
        optax.sgd(optax.cosine_decay_schedule(plan.rate, total), momentum=0.9),
    )
    if line.loss == "nlnl":
        counts = np.bincount(noisy, minlength=data.classes)
        objective = robust.negative_learning(forward_of(plan), counts)
    else:
        every = max(1, round(total / plan.growths))
        objective = objective_of(line.loss, line.plan, every)
    measure = robust.NoisyLabels(
        infer_of(plan), data.test, x[:SEEN], noisy[:SEEN], flipped[:SEEN], y[:SEEN]
    )
    calibration = jnp.asarray(x[:CALIBRATION])
    fitted = fit(
        objective, params, tx, (x, noisy), epochs=line.epochs, batch=BATCH, key=order,
        evaluate=lambda p: measure((p, statistics_of(plan)(p, calibration))),
    )  # fmt: skip
    last = fitted.history[-1]
    curve = [epoch.accuracy or 0.0 for epoch in fitted.history]
    flips = [epoch.told.get("memorized", math.nan) for epoch in fitted.history]
    told: dict[str, Any] = {
        field: round(last.told[name], 4)
        for field, name in TOLD.items()
        if name in last.told
    }
    return dataclasses.replace(
        line,
        accuracy=round(curve[-1], 4),
        best=round(max(curve), 4),
        seconds=round(sum(epoch.seconds for epoch in fitted.history), 2),
        accuracies=" ".join(f"{value:.2f}" for value in curve),
        memorized_by_epoch=" ".join(f"{value:.2f}" for value in flips),
        **told,
    )


def spoil(key: jax.Array, line: Line, labels: np.ndarray, classes: int) -> tuple:
    """Labels with the noise of a run, and where they are wrong."""
    kind, _, rate = line.noise.partition(" ")
    taken = LABEL_MAPS[line.plan] if kind == "asymmetric" else "symmetric"
    return flip_labels(
        key, labels, float(rate or 0), classes=classes, kind=taken, exact=True
    )


@functools.cache
def objective_of(name: str, plan: str, every: int) -> Objective:
    """Make the objective of a loss, one for all runs, which compile it once."""
    apply = forward_of(PLANS[plan])
    base, _, variant = name.partition(", ")
    sparse = robust.SPARSE_SETTINGS[plan]
    if base in SPARSE or variant in VARIANTS:
        row = sparse[base.removesuffix(" + sr")]
        settings = {
            **{"tau": row.tau, "p": row.p, "weight": row.weight},
            **{"growth": row.growth, "normalize": row.normalize},
        } | VARIANTS.get(variant, {})
        loss = robust.LABEL_LOSSES[row.loss](**row.settings)
        return robust.sparse_regularized(apply, loss, every=every, **settings)
    known = robust.LABEL_SETTINGS[plan].get(base, {})
    known = {"q": 0.01} if variant == "q = 0.01" else known
    return robust.supervised(apply, robust.LABEL_LOSSES[base](**known))


if __name__ == "__main__":
    start(main, tyro.cli(Options))
