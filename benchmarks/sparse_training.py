"""Every rule of sparse training on one network at equal steps: accuracy and overhead.

LeNet-300-100 without biases on MNIST, as JaxPruner was measured (its figures are in the
table): SGD with momentum 0.9, the learning rate falling from 0.1 to 0 along a cosine,
batches of 128, 6 epochs. Masks change every 100 steps (straight-through: at every
step), until half of the run where sparsity rises and until three quarters where it
stays. Accuracy is that of the last step on the whole test set, not the best of any.

Beside that: what a step costs with each rule against the bare optimizer, and what
pruning 60 times over costs a network trained by global sparse momentum.

With ``--network resnet20 --epochs 160`` the same on CIFAR-10, for a machine with a GPU.

Writes results.csv after every run and goes on where it stopped; then results.png.
"""

import dataclasses
import functools
import json
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
from shared import DATA, RESULTS, clock, read_runs, start, write_runs

import swapjax
from swapjax import datasets, experiments, files, masks, models, plot, steps
from swapjax.cli.screen import console, progress
from swapjax.experiments import Setting
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
JAXPRUNER_COST = {"static": 1.05, "set": 2.6, "rigl": 2.5, "gmp": 1.4}
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
GSM = "gsm"
MOMENTUM, DECAY = 0.99, 5e-4  # of gsm, as its authors train LeNet


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
    parts: tuple[str, ...] = ("accuracy", "overhead", "gsm")
    """What to measure."""
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

    @property
    def key(self) -> tuple:
        """What tells it from others."""
        return self.network, self.algorithm, self.sparsity, self.seed, self.epochs


def main(options: Options) -> None:
    """Do what is left to do, then show everything."""
    options.out.mkdir(parents=True, exist_ok=True)
    default = "mnist.npz" if options.network == "lenet300" else "cifar10.npz"
    data = datasets.load(options.data or DATA / "data" / default)
    if "accuracy" in options.parts:
        accuracies(options, data)
    if "overhead" in options.parts:
        cost = overhead(data)
        console.print(cost_table(cost))
        text = json.dumps(cost, indent=1) + "\n"
        files.write_text(options.out / "overhead.json", text)
    if "gsm" in options.parts:
        found = [global_momentum(data, plain, seed)
                 for plain in (False, True) for seed in options.seeds]  # fmt: skip
        text = json.dumps(found, indent=1) + "\n"
        files.write_text(options.out / "gsm.json", text)
        console.print(gsm_table(found))
    console.print(f"Written to {options.out}.", soft_wrap=True)


def accuracies(options: Options, data: datasets.Dataset) -> None:
    """Train, and show what came of it."""
    target = options.out / "results.csv"
    done = {line.key: line for line in read_runs(target, Line)}
    wanted = [
        Line(options.network, algorithm, level, seed, options.epochs)
        for algorithm in options.algorithms
        for level in ((0.0,) if algorithm == "dense" else options.sparsities)
        for seed in options.seeds
    ]
    left = [line for line in wanted if line.key not in done]
    console.print(f"{len(wanted) - len(left)} of {len(wanted)} runs are done already.")
    with progress("training", len(left)) as (bar, task):
        for line in left:
            label = f"{line.algorithm} to {line.sparsity:g}, seed {line.seed}"
            bar.update(task, description=label)
            done[line.key] = train(line, options, data)
            write_runs(target, list(done.values()))
            bar.advance(task)
    lines = [done[line.key] for line in wanted]
    console.print(table(lines))
    plot.save(figure(lines), options.out / "results.png")


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
    accuracy, _ = experiments.evaluate(Setting(data, model, params), params)
    prunable = swapjax.plan(params, 0.0).split(params)
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
    target: float | swapjax.Plan = sparsity
    if algorithm.endswith("by layer"):
        target = swapjax.plan(model.params, sparsity, allocation="erk")
    wrap = functools.partial(swapjax.sparse, tx, sparsity=target, steps=total, key=key)
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


def overhead(data: datasets.Dataset) -> dict[str, dict[str, float]]:
    """Milliseconds of a step, one call of jit each, blocks of 100 of all in turn."""
    model = models.create("lenet300", data.shape, data.classes)
    x, y = (jnp.asarray(part[:128]) for part in data.train)
    tx = optax.sgd(optax.cosine_decay_schedule(0.1, 3000), momentum=0.9)
    wrap = functools.partial(swapjax.sparse, tx, sparsity=0.98, key=jax.random.key(0))
    stay, rise = (
        make(0, 3000, every=100) for make in (swapjax.constant, swapjax.cubic)
    )
    never = swapjax.constant(10**6, 10**6, every=100)
    chosen = {
        "bare": tx,
        "static": wrap(swapjax.static()),
        "set": wrap(swapjax.set_(), schedule=stay),
        "rigl": wrap(swapjax.rigl(), schedule=stay),
        "gmp": wrap(swapjax.gmp(), schedule=rise),
        "granet": wrap(swapjax.granet(), schedule=rise),
        "rigl, between mask steps": wrap(swapjax.rigl(), schedule=never),
        "granet, between mask steps": wrap(swapjax.granet(), schedule=never),
    }
    blocks = {name: block(model, one, x, y) for name, one in chosen.items()}
    times: dict[str, list[float]] = {name: [] for name in chosen}
    rounds = 101
    with progress("timing steps", rounds) as (bar, task):
        for i in range(rounds):
            for name, work in blocks.items():
                seconds = clock(work)
                if i:
                    times[name].append(10 * seconds)
            bar.advance(task)
    bare = np.asarray(times["bare"])
    return {
        name: {
            "ms": float(np.median(found)),
            "ratio": float(np.median(np.asarray(found) / bare)),
        }
        for name, found in times.items()
    }


def block(
    model: models.Model, tx: optax.GradientTransformation, x: jax.Array, y: jax.Array
) -> Callable[[], Any]:
    """A function that takes 100 steps, each a call of its own, as users' loops do."""

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, state: Any) -> tuple:
        slopes = jax.grad(model.loss_fn)(params, (x, y))
        updates, state = tx.update(slopes, state, params)
        return optax.apply_updates(params, updates), state

    # Copies, since each step gives its arguments away.
    params = jax.tree.map(jnp.array, model.params)
    now = [params, jax.tree.map(jnp.array, tx.init(params))]

    def work() -> Any:
        for _ in range(100):
            now[:] = step(*now)
        return now[0]

    return work


def global_momentum(data: datasets.Dataset, plain: bool, seed: int) -> dict[str, Any]:
    """Train on by momentum, all weights or those that matter; then cut 60 times."""
    model = models.create("lenet300", data.shape, data.classes, seed=seed)
    per_epoch = steps.per_epoch(data.train, 256, "batch")
    sparsity, before, after = 1 - 1 / 60, 10, 40
    params = fit(
        model.loss_fn, model.params,
        optax.sgd(optax.cosine_decay_schedule(0.03, before * per_epoch), momentum=0.9),
        data.train, epochs=before, batch=256, key=jax.random.key(seed),
    ).params  # fmt: skip
    rate = optax.piecewise_constant_schedule(
        0.03, {per_epoch * 25: 0.1, per_epoch * 34: 0.1}
    )
    tx = optax.chain(
        optax.add_decayed_weights(DECAY),
        optax.sgd(rate, momentum=MOMENTUM, nesterov=True),
    )
    tx = tx if plain else optax.chain(swapjax.gsm(sparsity), tx)
    params = fit(model.loss_fn, params, tx, data.train, epochs=after, batch=256,
                 key=jax.random.key(seed + 1)).params  # fmt: skip
    setting = Setting(data, model, params)
    cut = swapjax.prune(
        model.loss_fn, params, data.train, sparsity=sparsity, samples=1,
        method=swapjax.magnitude(), schedule=swapjax.one_shot(),
        key=jax.random.key(seed),
    )  # fmt: skip
    gone = [
        np.abs(np.asarray(w))[~np.asarray(m)]
        for w, m in zip(
            jax.tree.leaves(params), jax.tree.leaves(cut.masks), strict=True
        )
    ]
    return {
        "trained by": "plain momentum" if plain else "gsm",
        "seed": seed,
        "before": experiments.evaluate(setting, params)[0],
        "after": experiments.evaluate(setting, cut.params)[0],
        "99.9 % of what goes": float(np.quantile(np.concatenate(gone), 0.999)),
        "left": masks.count(cut.masks)[0],
    }


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


def cost_table(cost: dict[str, dict[str, float]]) -> Table:
    """Milliseconds of a step, and how many times those of the bare optimizer."""
    result = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for name in ("a step of", "ms", "ratio", "JaxPruner's ratio"):
        result.add_column(name, justify="left" if name == "a step of" else "right")
    for name, found in cost.items():
        known = JAXPRUNER_COST.get(name)
        theirs = "" if known is None else f"{known:g}"
        result.add_row(name, f"{found['ms']:.3f}", f"{found['ratio']:.3f}", theirs)
    return result


def gsm_table(found: list[dict[str, Any]]) -> Table:
    """What the cut costs."""
    result = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for name in found[0]:
        result.add_column(name, justify="right")
    for row in found:
        result.add_row(*(f"{v:.4g}" if isinstance(v, float) else str(v)
                         for v in row.values()))  # fmt: skip
    return result


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
