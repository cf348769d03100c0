"""How well methods of pruning resist noise: kinds, levels, sparsities, seeds.

Gradients of the pruned network are spoilt, or what they are taken of: labels, images,
weights (`noise_kinds`). The test set stays clean. Every method sees the same spoilt
data and the same draws for a seed, so that differences to linear regression are taken
seed by seed.

- one: one stage;
- stages: 15 stages (8 on ResNet-20, 5 on digits), no training between;
- sgd: the same with an epoch of SGD after each (learning rate 1e-3, momentum 0.5,
  batches of 64), as in the released SWAP code, on the spoilt data;
- tuned: the same at the rate that did best in `noise_rate.py`, on images left out.

"first order" marks methods with the first-order step, which trains. After any name,
"clean set" lets 1,000 training examples judge as they were (``prune(validation=)``),
"harm" what examples lose and "by loss" the loss (``criterion=``); "own labels" takes
labels that the dense network draws, not those of the data. On one core of a
CPU a run of MLPNet in 15 stages takes 15 to 45 s, one of ResNet-20 minutes. The default
is the main part, MLPNet without training, about ten hours; options add the rest. Runs
that tell most come first, so stop it when you like.

Writes results.csv after every run and goes on where it stopped; then results.png, the
gain of each method over linear regression, and curves beside the folder.
"""

import dataclasses
import functools
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import noise_pictures as pictures
import noise_report as report
import optax
import tyro
from noise_kinds import KINDS, MAIN_KINDS, WEIGHTS, spoil_weights
from noise_methods import MAIN_METHODS, METHODS
from noise_report import Run
from shared import DATA, RESULTS, complete_csv, console, read_runs, start

import swapjax
from swapjax.core.types import Params
from swapjax.experiments import datasets, models, plot, runner
from swapjax.experiments.noise import Spoilt, parse
from swapjax.pruning import Method
from swapjax.pruning.method import Criterion

TUNED = 0.1  # of 0.001 to 0.3 in steps of about three
TRUSTED = 1000  # training examples as they were, of methods with a clean set
# What is off these comes later, the later the more of it is.
CORE: dict[str, tuple] = {
    "recipe": ("stages",),
    "kind": ("clean", "gaussian:4,0.5", "labels:0.4", "fgsm:0.1"),
    "method": ("magnitude", "linear-regression", "swap", "kfac-regression"),
    "sparsity": (0.98,),
}


@dataclasses.dataclass(frozen=True)
class Network:
    """What is pruned, and how much it sees of its data.

    Attributes:
        name: of the model.
        data: digits, or a file below the folder of data.
        weights: a file below that of checkpoints; None to train.
        stages: of the recipes with several.
        samples: rows a stage.
        batch: images a row.
        options: of `datasets.load`.
        exclude: leaves that are not pruned.
        images: that batch norm is estimated anew on after each stage.
    """

    name: str
    data: str
    weights: str | None
    stages: int
    samples: int
    batch: int
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    exclude: str | tuple[str, ...] = ()
    images: int = 0


NETWORKS = {
    "mlpnet": Network("mlpnet", "mnist.npz", "mlpnet_mnist.npz", 15, 1000, 16),
    "resnet20": Network(
        "resnet20",
        "cifar10_jpeg.npz",
        "resnet20_cifar10_jpeg.npz",
        stages=8,
        samples=500,
        batch=16,
        options={"mean": 0.5, "std": 0.5},
        exclude="downsample",
        images=10_000,
    ),
    "digits": Network("mlpnet", "digits", None, 5, 200, 4),
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Prune under noise in every way, and compare with linear regression."""

    networks: tuple[str, ...] = ("mlpnet",)
    """mlpnet (MNIST), resnet20 (CIFAR-10), digits."""
    recipes: tuple[str, ...] = ("stages",)
    """one, stages, sgd, tuned."""
    kinds: tuple[str, ...] = MAIN_KINDS
    """Any of the kinds of noise."""
    methods: tuple[str, ...] = MAIN_METHODS
    """Any of the methods."""
    sparsities: tuple[float, ...] = (0.9, 0.95, 0.98)
    """How far; 0.5 and 0.8 tell methods apart on one stage alone."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Of samples, noise and shuffles."""
    quick: bool = False
    """A minute's choice of digits in place of all these."""
    show: bool = False
    """Only show and draw what the file holds, with the tables of the docs."""
    out: Path = RESULTS / "noise"
    """The folder for results.csv and results.png."""
    data: Path = DATA / "data"
    """The folder of mnist.npz and cifar10_jpeg.npz."""
    checkpoints: Path = DATA / "checkpoints"
    """The folder of published weights."""

    def chosen(self) -> "Options":
        """Put the quick choice in place of axes."""
        if not self.quick:
            return self
        return dataclasses.replace(
            self,
            networks=("digits",),
            recipes=("stages",),
            kinds=("clean", "gaussian:4,0.5", "labels:0.4"),
            methods=CORE["method"],
            sparsities=(0.9,),
            seeds=(0, 1),
        )


def main(options: Options) -> None:
    """Do what is left to do, then show everything."""
    options = options.chosen()
    options.out.mkdir(parents=True, exist_ok=True)
    target = options.out / "results.csv"
    score = functools.partial(measure, options)
    if not options.show:
        complete_csv(target, plan_runs(options), score)
    runs = read_runs(target, Run)
    for network, recipe in dict.fromkeys((run.network, run.recipe) for run in runs):
        console.print(report.table(runs, network, recipe))
    for name, found in report.halves(runs).items():
        console.print(report.ranking(name, found))
    plot.save(pictures.heat_map(runs), options.out / "results.png")
    for title, text in report.markdown(runs).items() if options.show else ():
        console.print(f"{title}\n{text}", soft_wrap=True)
    console.print(f"Written to {options.out}.", soft_wrap=True)
    curves = options.out.with_name(f"{options.out.name}_curves.png")
    if len({run.sparsity for run in runs}) > 1:
        plot.save(pictures.curves(runs), curves)
        console.print(f"Drawn in {curves}.", soft_wrap=True)


def plan_runs(options: Options) -> list[Run]:
    """All runs asked for, those first that tell most; seeds take turns."""
    known: dict[str, Any] = {"networks": NETWORKS, "recipes": RECIPES, "kinds": KINDS}
    for axis, table in {**known, "methods": METHODS}.items():
        for name in getattr(options, axis):
            if report.bare(name) not in table:
                sys.exit(f"--{axis} must be of {', '.join(table)}, got {name}")
    runs = [
        Run(network, recipe, kind, method, sparsity, seed)
        for network in options.networks
        for seed in options.seeds
        for kind in options.kinds
        for recipe in options.recipes
        for sparsity in sorted(options.sparsities, reverse=True)
        for method in options.methods
    ]

    def off(run: Run) -> int:
        return sum(getattr(run, axis) not in core for axis, core in CORE.items())

    return sorted(runs, key=off)


@functools.cache
def set_up(options: Options, name: str) -> runner.Setting:
    """Load a network and its data, or train."""
    network = NETWORKS[name]
    path = options.data / network.data
    weights = None if network.weights is None else options.checkpoints / network.weights
    for file in () if weights is None else (path, weights):
        if not file.exists():
            sys.exit(f"{file}: not there; name its folder with --data, --checkpoints")
    data = datasets.load("digits" if weights is None else path, **network.options)
    model = models.create(network.name, data.shape, data.classes)
    setting = runner.set_up(data, model, weights=weights)
    accuracy, loss = runner.evaluate(setting, setting.params)
    console.print(f"Dense {name}: {accuracy:.2f}%, loss {loss:.4f}.")
    return setting


@functools.lru_cache(maxsize=3)
def spoilt(
    options: Options, name: str, kind: str, seed: int
) -> tuple[runner.Setting, Spoilt]:
    """Spoil what pruning looks at, once for all methods."""
    setting = set_up(options, name)
    if kind == WEIGHTS:
        setting, kind = spoil_weights(setting, seed), "clean"
    (x, y), corruption = runner.spoil(setting, parse(kind), seed)
    # Placed once, too.
    return setting, Spoilt((jnp.asarray(x), jnp.asarray(y)), corruption)


def measure(options: Options, run: Run) -> Run:
    """Prune, and fill in what came of it, for all alike that see no examples."""
    method, network = make(run.method), NETWORKS[run.network]
    sees = method.needs_rows or method.needs_layers or network.images
    if sees or run.recipe not in ("one", "stages") or run.kind == WEIGHTS:
        return carry_out(options, run)
    found = carry_out(options, dataclasses.replace(run, kind="clean", seed=0))
    return dataclasses.replace(found, kind=run.kind, seed=run.seed)


@functools.lru_cache(maxsize=16)
def carry_out(options: Options, run: Run) -> Run:
    """Prune, and measure."""
    network = NETWORKS[run.network]
    setting, spoiled = spoilt(options, run.network, run.kind, run.seed)
    x, y = setting.data.train
    few = slice(network.batch)
    plan = swapjax.plan(
        setting.params,
        run.sparsity,
        exclude=network.exclude,
        loss_fn=setting.model.loss_fn,
        batch=(x[few], y[few]),
    )
    trusted = slice(min(TRUSTED, len(y) // 2))
    started = time.process_time()
    row, _ = runner.run(
        setting,
        make(run.method),
        plan=plan,
        seed=run.seed,
        spoilt=own(options, run) if report.OWN in run.method else spoiled,
        samples=network.samples,
        batch=network.batch,
        recalibrate=recalibration(setting, spoiled.data[0], network.images),
        validation=(x[trusted], y[trusted]) if report.CLEAN in run.method else None,
        criterion=criterion(run.method)
        or runner.judge(setting, make(run.method), network.batch),
        **RECIPES[run.recipe](network, len(y)),
    )
    return dataclasses.replace(
        run,
        accuracy=round(row.accuracy, 4),
        loss=round(row.loss, 6),
        cpu=round(time.process_time() - started, 2),
        status=row.status,
    )


@functools.lru_cache(maxsize=3)
def own(options: Options, run: Run) -> Spoilt:
    """Let the dense network draw labels for the images that pruning sees."""
    setting, spoiled = spoilt(options, run.network, run.kind, run.seed)
    x, _ = spoiled.data
    key = jax.random.fold_in(jax.random.key(run.seed), 2**29)
    y = swapjax.own_labels(key, setting.model.apply, setting.params, x)
    return spoiled._replace(data=(x, y))


def criterion(method: str) -> Criterion | None:
    """Tell what a method is judged by, None for its own choice."""
    if report.LOSS in method:
        return "loss"
    return "harm" if report.HARM in method else None


@functools.cache
def make(method: str) -> Method:
    """Make a method once, so that all runs share its programs."""
    return METHODS[report.bare(method)]()


def recalibration(
    setting: runner.Setting, images: jax.Array, count: int
) -> Callable[[Params], Params] | None:
    """Make the function that estimates the statistics of batch norm anew."""
    statistics = setting.model.statistics
    if statistics is None or not count:
        return None
    batches = [jnp.asarray(images[i : i + 500]) for i in range(0, count, 500)]
    return lambda params: swapjax.recalibrate_batchnorm(statistics, params, batches)


def _one(network: Network, examples: int) -> dict[str, Any]:
    return {"stages": 1}


def _stages(network: Network, examples: int) -> dict[str, Any]:
    return {"stages": network.stages}


def with_sgd(network: Network, examples: int, rate: float) -> dict[str, Any]:
    """Choose several stages, with an epoch of SGD at a rate after each."""
    tune = swapjax.FineTune(_sgd(rate), steps=examples // 64, batch=64)
    return _stages(network, examples) | {"finetune": tune}


@functools.cache
def _sgd(rate: float) -> optax.GradientTransformation:
    """One object for all runs, so that its step is compiled once."""
    return optax.sgd(rate, momentum=0.5)


RECIPES: dict[str, Callable[[Network, int], dict[str, Any]]] = {
    "one": _one,
    "stages": _stages,
    "sgd": functools.partial(with_sgd, rate=1e-3),
    "tuned": functools.partial(with_sgd, rate=TUNED),
}


if __name__ == "__main__":
    start(main, tyro.cli(Options))
