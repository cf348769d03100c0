"""VCAS beside exact back-propagation: a small transformer on rows of MNIST's digits.

Two blocks of width 32 in a scan, four heads, layer norm before each part; the 28 rows
of an image are the sequence, and their mean goes to the classifier. Adam with learning
rate 1e-3, batches of 128, VCAS with its default budget.

Writes results.csv after every run and goes on where it stopped; then results.png.
"""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from backward_vcas_report import Line, picture, report
from shared import DATA, RESULTS, complete, console, read_runs, start, write_runs

from swapjax import backward
from swapjax.core.types import Params
from swapjax.experiments import datasets, plot
from swapjax.training import Epoch, fit

WIDTH, BLOCKS, HEADS, HIDDEN = 32, 2, 4, 128
BATCH, RATE, REPEATS = 128, 1e-3, 2


@dataclasses.dataclass(frozen=True)
class Options:
    """Compare sampled back-propagation with exact back-propagation."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the initial weights and the order of examples."""
    epochs: int = 8
    """Of a run."""
    examples: int = 40_000
    """Training images, the first of the file."""
    every: int = 50
    """Steps between adaptations; there are 49 in a run."""
    data: Path = DATA / "data" / "mnist.npz"
    """An .npz with x_train, y_train, x_test, y_test."""
    out: Path = RESULTS / "backward_vcas"
    """The folder to write to."""


class Arm(NamedTuple):
    """A run to do."""

    method: str
    seed: int

    def __str__(self) -> str:
        return f"{self.method}, seed {self.seed}"


def main(options: Options) -> None:
    """Do what is left to do, then show everything."""
    options.out.mkdir(parents=True, exist_ok=True)
    data = datasets.load(options.data)
    target = options.out / "results.csv"
    done = {line.key: line for line in read_runs(target, Line)}
    complete(
        [Arm(method, seed) for seed in options.seeds for method in ("vcas", "exact")],
        done,
        lambda arm: {line.key: line for line in measure(options, data, arm)},
        lambda done: write_runs(target, list(done.values())),
        lambda arm: [(*arm, epoch) for epoch in range(1, options.epochs + 1)],
    )
    lines = list(done.values())
    console.print(report(lines), soft_wrap=True)
    plot.save(picture(lines), options.out / "results.png")
    console.print(f"Written to {options.out}.", soft_wrap=True)


def measure(options: Options, data: datasets.Dataset, arm: Arm) -> list[Line]:
    """Train one network."""
    key = jax.random.key(arm.seed)
    train = tuple(x[: options.examples] for x in data.train)
    x_test = data.x_test.reshape(-1, 28, 28)
    logits = jax.jit(outputs)

    def accuracy(params: Params) -> float:
        found = [
            np.argmax(logits(params, part), axis=1) for part in np.split(x_test, 10)
        ]
        return 100 * float(np.mean(np.concatenate(found) == data.y_test))

    loss = backward.vcas(loss_fn, every=options.every, repeats=REPEATS)
    history = fit(
        loss if arm.method == "vcas" else loss_fn,
        network(key),
        optax.adam(RATE),
        (train[0].reshape(-1, 28, 28), train[1]),
        epochs=options.epochs,
        batch=BATCH,
        key=jax.random.fold_in(key, 1),
        evaluate=accuracy,
    ).history
    return [line_of(arm, epoch, options.every) for epoch in history]


def line_of(arm: Arm, epoch: Epoch, every: int) -> Line:
    """Take what an epoch tells."""
    told = epoch.told
    # A pass over the batch in parts, exact, and one for each draw; the backward passes
    # of draws count as whole ones, which is more than they are.
    more = (1 + REPEATS) / every if told else 0.0
    return Line(
        method=arm.method,
        seed=arm.seed,
        epoch=epoch.epoch,
        loss=epoch.loss,
        accuracy=epoch.accuracy or 0.0,
        backward=told.get("backward", 1.0),
        adaptations=more,
        norm_share=told.get("norm share", 1.0),
        added=told.get("added variance", 0.0),
        seconds=epoch.seconds,
    )


def network(key: jax.Array) -> Params:
    """Draw initial weights."""
    shapes = {
        "query": (WIDTH, WIDTH), "key": (WIDTH, WIDTH), "value": (WIDTH, WIDTH),
        "out": (WIDTH, WIDTH), "up": (WIDTH, HIDDEN), "down": (HIDDEN, WIDTH),
    }  # fmt: skip
    keys = iter(jax.random.split(key, len(shapes) + 3))

    def normal(*shape: int) -> jax.Array:
        return jax.random.normal(next(keys), shape) * shape[-2] ** -0.5

    blocks: dict = {name: normal(BLOCKS, *shape) for name, shape in shapes.items()}
    blocks["up_bias"] = jnp.zeros((BLOCKS, HIDDEN))
    blocks["down_bias"] = jnp.zeros((BLOCKS, WIDTH))
    for name in ("attend", "think"):
        blocks[f"{name}_scale"] = jnp.ones((BLOCKS, WIDTH))
    return {
        "embed": normal(28, WIDTH),
        "place": 0.02 * normal(28, WIDTH),
        "blocks": blocks,
        "norm": jnp.ones(WIDTH),
        "head": normal(WIDTH, 10),
        "head_bias": jnp.zeros(10),
    }


def outputs(params: Params, rows: jax.Array) -> jax.Array:
    """Classify images given by rows, [n, 28, 28]."""
    x = rows @ params["embed"] + params["place"]
    x, _ = jax.lax.scan(block, x, params["blocks"])
    x = jnp.mean(normalised(x, params["norm"]), axis=1)
    return x @ params["head"] + params["head_bias"]


def block(x: jax.Array, params: Params) -> tuple[jax.Array, None]:
    """Attend, then think."""
    seen = normalised(x, params["attend_scale"])
    heads = (*x.shape[:2], HEADS, WIDTH // HEADS)
    query, key, value = (
        (seen @ params[name]).reshape(heads) for name in ("query", "key", "value")
    )
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) / heads[-1] ** 0.5
    mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), value)
    x = x + mixed.reshape(x.shape) @ params["out"]
    seen = normalised(x, params["think_scale"])
    hidden = jax.nn.gelu(seen @ params["up"] + params["up_bias"])
    return x + hidden @ params["down"] + params["down_bias"], None


def normalised(x: jax.Array, scale: jax.Array) -> jax.Array:
    """Normalise a layer."""
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    square = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    return scale * centred * jax.lax.rsqrt(square + 1e-6)


def loss_fn(params: Params, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Return the mean cross-entropy of a batch."""
    rows, labels = batch
    logits = outputs(params, rows)
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


if __name__ == "__main__":
    start(main, tyro.cli(Options))
