"""Pruned back-propagation: accuracy, zeros, multiplications and noise by rate.

On a CPU: LeNet-5 with ReLU on 10,000 images of MNIST, 5 epochs of SGD at 0.05 with
momentum 0.9, pruned at random and, as the negative control, by as many of the smallest
gradients; and ResNet-20 on 5,000 images of CIFAR-10 (JPEG copies), 6 epochs at 0.1 to 0
by a cosine, with thresholds of the gradient itself and predicted ones. Batches of 64.
With ``--gpu`` ResNet-18 and VGG-16 on all of CIFAR-10, 200 epochs in batches of 128 at
0.1, or 0.01 for VGG-16, divided by 10 after half and three quarters of them.

Sites are found in the program. Zeros of sites are means over all steps after the first
epoch; multiplications and noise are measured after each epoch and after the last, with
thresholds of the gradient itself. Accuracy is that of the last step on the whole test
set, with statistics of batch norm of 5,000 training images.

Writes results.csv, layers.csv with a row for each layer and epoch, and noise.csv with
the noise at initial weights, after every run, and goes on where it stopped.
"""

import dataclasses
import functools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from backward_report import LayerRow, Noise, Run, markdown
from shared import DATA, RESULTS, complete_csv, console, read_runs, start, write_runs

import swapjax
from swapjax import backward
from swapjax.experiments import datasets, models, runner
from swapjax.experiments.runner import Setting
from swapjax.loops import steps
from swapjax.training import fit

Way = tuple[str, str]  # threshold, pruning


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a network is trained.

    Attributes:
        data: the file of the dataset.
        examples: of its training set that are used.
        epochs: passes over them.
        batch: examples a step.
        rate: the learning rate at first.
        falls: "never", "cosine" or "steps".
        ways: thresholds and kinds of pruning that are compared, and the rates P of
            each, beside 0.
        draws: keys that noise is measured over.
    """

    data: str
    examples: int
    epochs: int
    batch: int
    rate: float
    falls: str
    ways: dict[Way, tuple[float, ...]]
    draws: int


EXACT: Way = ("exact", "stochastic")
FIFO: Way = ("fifo", "stochastic")
HARD: Way = ("exact", "hard")
LONG: dict[Way, tuple[float, ...]] = dict.fromkeys(
    (EXACT, FIFO), (0.7, 0.8, 0.9, 0.95, 0.99)
)
RECIPES = {
    "lenet5": Recipe(
        "mnist.npz", 10_000, 5, 64, 0.05, "never",
        {EXACT: (0.9, 0.99, 0.5, 0.7, 0.95), HARD: (0.9, 0.99)}, 32,
    ),
    "resnet20": Recipe(
        "cifar10_jpeg.npz", 5_000, 6, 64, 0.1, "cosine",
        {EXACT: (0.9, 0.7), FIFO: (0.9, 0.7)}, 16,
    ),
    "resnet18": Recipe("cifar10_jpeg.npz", 50_000, 200, 128, 0.1, "steps", LONG, 16),
    "vgg16": Recipe("cifar10_jpeg.npz", 50_000, 200, 128, 0.01, "steps", LONG, 16),
}  # fmt: skip
CPU, GPU = ("lenet5", "resnet20"), ("resnet18", "vgg16")


@dataclasses.dataclass(frozen=True)
class Options:
    """Train networks with pruned gradients at several rates."""

    networks: tuple[str, ...] = ()
    """Any of lenet5, resnet20, resnet18, vgg16; by default the first two."""
    rates: tuple[float, ...] = ()
    """P, of those of the recipe; by default all."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the initial weights, the order of examples, and pruning."""
    epochs: int | None = None
    """Passes over the training set, in place of those of the recipe."""
    gpu: bool = False
    """Train the networks for a machine with a GPU, if none are given."""
    parts: tuple[Literal["train", "noise"], ...] = ("train", "noise")
    """Training, or noise at the initial weights."""
    out: Path = RESULTS / "backward"
    """The folder to write to."""


def main(options: Options) -> None:
    """Do what is left to do, then show everything."""
    options.out.mkdir(parents=True, exist_ok=True)
    wanted, layers = list(runs(options)), options.out / "layers.csv"
    results, noise = options.out / "results.csv", options.out / "noise.csv"
    if "train" in options.parts:
        complete_csv(results, wanted, lambda run: train(run, layers))
    if "noise" in options.parts:
        complete_csv(noise, list(draws(options)), measure_noise)
    for part in markdown(
        read_runs(results, Run), read_runs(layers, LayerRow), read_runs(noise, Noise)
    ):
        console.print(part, soft_wrap=True)
    console.print(f"Written to {options.out}.", soft_wrap=True)


def runs(options: Options) -> Iterator[Run]:
    """List what to do: all ways of a seed before the next seed."""
    for network in options.networks or (GPU if options.gpu else CPU):
        recipe = RECIPES[network]
        epochs = options.epochs or recipe.epochs
        for seed in options.seeds:
            yield Run(network, *EXACT, 0.0, seed, epochs)
            for way, rates in recipe.ways.items():
                for rate in rates:
                    if not options.rates or rate in options.rates:
                        yield Run(network, *way, rate, seed, epochs)


def draws(options: Options) -> Iterator[Noise]:
    """List where noise is measured: at initial weights, at random and by size."""
    for network in options.networks or (GPU if options.gpu else CPU):
        for seed in options.seeds:
            for rate in sorted(RECIPES[network].ways[EXACT]):
                for _, pruning in (EXACT, HARD):
                    yield Noise(network, pruning, rate, seed)


@functools.cache
def load(name: str) -> datasets.Dataset:
    """Load a dataset, once."""
    return datasets.load(DATA / "data" / name)


def begin(network: str, seed: int) -> tuple[models.Model, datasets.Dataset, Any]:
    """Make a network, the examples that it is trained on, and a batch of them."""
    recipe = RECIPES[network]
    data = load(recipe.data)
    chosen = np.random.default_rng(seed).permutation(len(data.x_train))
    chosen = chosen[: recipe.examples]
    data = data._replace(x_train=data.x_train[chosen], y_train=data.y_train[chosen])
    model = models.create(network, data.shape, data.classes, seed=seed)
    batch = jax.tree.map(lambda x: jnp.asarray(x[: recipe.batch]), data.train)
    return model, data, batch


def objective(model: models.Model, rate: float, threshold: Any, pruning: Any) -> Any:
    """Make the loss of a network with pruned gradients."""
    return backward.prune_backward(
        model.training_loss, rate=rate, threshold=threshold, pruning=pruning
    )


def measure_noise(noise: Noise) -> Noise:
    """Measure the noise of pruning at the initial weights of a network."""
    model, _, batch = begin(noise.network, noise.seed)
    pruned = objective(model, noise.rate, "exact", noise.pruning)
    found = backward.gradient_noise(
        pruned, model.params, pruned.init(model.params, batch), batch,
        jax.random.key(noise.seed),
        draws=RECIPES[noise.network].draws if noise.pruning == "stochastic" else 2,
    )  # fmt: skip
    return dataclasses.replace(
        noise, snr=found.snr, cosine=found.cosine, bias=found.bias
    )


def train(run: Run, layers: Path) -> Run:
    """One run, from initial weights to test accuracy."""
    began, recipe = time.perf_counter(), RECIPES[run.network]
    model, data, batch = begin(run.network, run.seed)
    order, draw = jax.random.split(jax.random.key(run.seed))
    exact = objective(model, run.rate, "exact", run.pruning)
    state = exact.init(model.params, batch)
    costs: list[backward.BackwardCost] = []

    def evaluate(params: Any) -> dict[str, float]:
        costs.append(backward.measure(exact, params, state, batch, draw))
        return {"accuracy": 0.0, "ratio": costs[-1].ratio}

    fitted = fit(
        objective(model, run.rate, run.threshold, run.pruning), model.params,
        optimizer(recipe, run, data.train), data.train, epochs=run.epochs,
        batch=recipe.batch, key=order, evaluate=evaluate,
    )  # fmt: skip
    save_layers(layers, run, costs)
    told = [epoch.told for epoch in fitted.history]
    late = told[1:] or told
    noise = backward.gradient_noise(
        exact, fitted.params, state, batch, draw,
        draws=recipe.draws,
    )  # fmt: skip
    snr, snr_exact = float("nan"), float("nan")
    if run.seed == 0:
        snr, snr_exact = over_batches(exact, model, fitted.params, state, data, recipe)
    return dataclasses.replace(
        run,
        accuracy=accuracy(model, fitted.params, data),
        loss=fitted.history[-1].loss,
        site_before=mean(x["zeros before"] for x in late),
        site_after=mean(x["zeros after"] for x in late),
        natural=mean(cost.natural_ratio for cost in costs),
        ratio=mean(cost.ratio for cost in costs),
        snr=snr,
        snr_exact=snr_exact,
        snr_keys=noise.snr,
        cosine=noise.cosine,
        bias=noise.bias,
        off=mean(x.get("prediction error", float("nan")) for x in late),
        seconds=time.perf_counter() - began,
    )


def optimizer(recipe: Recipe, run: Run, train: Any) -> optax.GradientTransformation:
    """SGD with momentum."""
    total = run.epochs * steps.per_epoch(train, recipe.batch, "batch")
    schedules = {
        "never": optax.constant_schedule(recipe.rate),
        "cosine": optax.cosine_decay_schedule(recipe.rate, total),
        "steps": optax.piecewise_constant_schedule(
            recipe.rate, {total // 2: 0.1, 3 * total // 4: 0.1}
        ),
    }
    return optax.sgd(schedules[recipe.falls], momentum=0.9)


def accuracy(model: models.Model, params: Any, data: datasets.Dataset) -> float:
    """Percent of the test set that is classified rightly."""
    if model.statistics is not None:
        parts = np.split(data.x_train[:5000], 10)
        params = swapjax.recalibrate_batchnorm(model.statistics, params, parts)
    return runner.evaluate(Setting(data, model, params), params)[0]


def over_batches(
    pruned: Any, model: models.Model, params: Any, state: Any, data: Any, recipe: Recipe
) -> tuple[float, float]:
    """Signal to noise of gradients over batches, with pruning and without."""
    batches = [
        jax.tree.map(lambda x, i=i: x[i : i + recipe.batch], data.train)
        for i in range(0, recipe.draws * recipe.batch, recipe.batch)
    ]
    draw = jax.jit(lambda batch, key: pruned.value_and_grad(params, state, batch, key))
    plain = backward.prune_backward(model.training_loss, rate=0.0, threshold="exact")
    clean = jax.jit(lambda batch, key: plain.value_and_grad(params, state, batch, key))
    keys = jax.random.split(jax.random.key(1), len(batches))
    pairs = list(zip(batches, keys, strict=True))
    noisy, exact = (
        signal_to_noise([step(*pair)[0] for pair in pairs]) for step in (draw, clean)
    )
    return noisy, exact


def signal_to_noise(gradients: list[Any]) -> float:
    """``||E dW||^2 / E||dW - E dW||^2``, without the bias that few draws have."""
    rows = np.stack(
        [
            np.concatenate([np.ravel(x) for x in jax.tree.leaves(g)])
            for g in jax.device_get(gradients)
        ]
    )
    middle, count = rows.mean(0, dtype=np.float64), len(rows)
    variance = np.sum((rows - middle) ** 2, dtype=np.float64) / (count - 1)
    return float((middle @ middle - variance / count) / variance)


def save_layers(path: Path, run: Run, costs: list[backward.BackwardCost]) -> None:
    """Write the layers of a run beside those of others."""
    rows = {row.key: row for row in read_runs(path, LayerRow)}
    for epoch, cost in enumerate(costs, 1):
        for layer in cost.layers:
            row = LayerRow(
                run.network, run.threshold, run.pruning, run.rate, run.seed,
                run.epochs, epoch, layer.name, layer.macs, layer.zeros_before,
                layer.zeros_after,
            )  # fmt: skip
            rows[row.key] = row
    write_runs(path, list(rows.values()))


def mean(numbers: Any) -> float:
    """Average."""
    return float(np.mean(list(numbers)))


if __name__ == "__main__":
    start(main, tyro.cli(Options, description=__doc__))
