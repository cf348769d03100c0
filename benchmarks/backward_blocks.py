"""Training steps that drop blocks of gradients, beside dense ones, on a CPU.

Two networks on MNIST: 784-2048-2048-10 in batches of 256, and three 3 x 3 convolutions
with 32, 64 and 64 channels, the second and the third with stride 2, then average
pooling and a classifier, in batches of 128. SGD with momentum 0.9. Of channels, blocks
are 128 in the first and 8 in the second; of examples, single ones.

Times are of CPU, in one thread, each step of an arm after a dense one, so that other
work beside them meets both. Writes results.csv and speed.csv after each run, and goes
on where it stopped. For one thread, with these environment variables:

    XLA_FLAGS=--xla_cpu_multi_thread_eigen=false OPENBLAS_NUM_THREADS=1
"""

import dataclasses
import functools
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from backward_blocks_report import Arm, Line, Speed, arm_of, report
from shared import DATA, RESULTS, complete, console, read_runs, start, write_runs

from swapjax import backward
from swapjax.core.objective import Objective, as_objective
from swapjax.core.types import Params
from swapjax.experiments import datasets
from swapjax.training import fit

KEEPS = {"nothing": (1.0,), "examples": (0.5, 0.25, 0.125), "channels": (0.5, 0.25)}
SIZES = {"mlp": 128, "convolutions": 8}  # of a block of channels
BATCHES = {"mlp": 256, "convolutions": 128}
ARMS = [
    Arm(network, along, keep)
    for network in SIZES
    for along, keeps in KEEPS.items()
    for keep in keeps
]


@dataclasses.dataclass(frozen=True)
class Options:
    """Compare dense back-propagation with that of some blocks."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the initial weights, the order of examples, and the draws."""
    epochs: int = 2
    """Of a run."""
    examples: int = 10_000
    """Training images, the first of the file."""
    rate: float = 0.02
    """The learning rate."""
    rounds: int = 25
    """Steps of each arm that are timed."""
    data: Path = DATA / "data" / "mnist.npz"
    """An .npz with x_train, y_train, x_test, y_test."""
    out: Path = RESULTS / "backward_blocks"
    """The folder to write to."""


def main(options: Options) -> None:
    """Do what is left to do, then show everything."""
    options.out.mkdir(parents=True, exist_ok=True)
    data = datasets.load(options.data)
    times, target = options.out / "speed.csv", options.out / "results.csv"
    speeds = {arm_of(speed): speed for speed in read_runs(times, Speed)}
    complete(
        [arm for arm in ARMS if arm.along != "nothing"],
        speeds,
        lambda arm: {arm_of(one): one for one in timed(options, data, arm)},
        lambda done: write_runs(times, list(done.values())),
        lambda arm: [arm],
    )
    done = {line.key: line for line in read_runs(target, Line)}
    complete(
        [(arm, seed) for seed in options.seeds for arm in ARMS],
        done,
        lambda run: {run: trained(options, data, *run)},
        lambda done: write_runs(target, list(done.values())),
        lambda run: [run],
    )
    ordered = [speeds[arm] for arm in ARMS]
    console.print(report(ordered, list(done.values())), soft_wrap=True)
    console.print(f"Written to {options.out}.", soft_wrap=True)


def timed(options: Options, data: datasets.Dataset, arm: Arm) -> list[Speed]:
    """Time the steps of an arm and dense ones by turns."""
    size = BATCHES[arm.network]
    batch = (jnp.asarray(data.x_train[:size]), jnp.asarray(data.y_train[:size]))
    both = Arm(arm.network, "nothing", 1.0), arm
    steps = [stepped(options, one, batch) for one in both]
    seconds: list[list[float]] = [[], []]
    for number in range(options.rounds + 2):
        for step, own in zip(steps, seconds, strict=True):
            own.append(step(number))
    dense, other = (np.asarray(own[2:]) for own in seconds)
    gains = [dense / dense, dense / other]
    return [
        Speed(
            **dataclasses.asdict(one),
            milliseconds=1e3 * statistics.median(own[2:]),
            gain=float(np.median(gain)),
            low=float(np.quantile(gain, 0.25)),
            high=float(np.quantile(gain, 0.75)),
        )
        for one, own, gain in zip(both, seconds, gains, strict=True)
    ]


def stepped(options: Options, arm: Arm, batch: Any) -> Callable[[int], float]:
    """Make a function that takes a step and returns its seconds of CPU."""
    objective, optimizer = objective_of(arm), optax.sgd(options.rate, 0.9)
    params = network(arm.network, jax.random.key(0))
    carry = (params, optimizer.init(params), objective.init(params, batch))

    @functools.partial(jax.jit, donate_argnums=0)
    def step(carry: Any, batch: Any, key: jax.Array) -> Any:
        params, state, memory = carry
        gradients, _, memory, _ = objective.value_and_grad(params, memory, batch, key)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, memory

    def one(number: int) -> float:
        nonlocal carry
        started = time.process_time()
        carry = step(carry, batch, jax.random.key(number))
        jax.block_until_ready(carry)
        return time.process_time() - started

    return one


def trained(options: Options, data: datasets.Dataset, arm: Arm, seed: int) -> Line:
    """Train one network."""
    key = jax.random.key(seed)
    logits = jax.jit(functools.partial(outputs, arm.network))

    def accuracy(params: Params) -> float:
        parts = np.split(data.x_test, 10)
        found = [np.argmax(logits(params, part), axis=1) for part in parts]
        return 100 * float(np.mean(np.concatenate(found) == data.y_test))

    started = time.perf_counter()
    loss = found = math.nan
    try:
        fitted = fit(
            objective_of(arm),
            network(arm.network, key),
            optax.sgd(options.rate, 0.9),
            tuple(x[: options.examples] for x in data.train),
            epochs=options.epochs,
            batch=BATCHES[arm.network],
            key=jax.random.fold_in(key, 1),
        )
        loss, found = fitted.history[-1].loss, accuracy(fitted.params)
    except ValueError as error:  # as where the loss is no longer finite
        console.print(str(error))
    seconds = time.perf_counter() - started
    return Line(
        **dataclasses.asdict(arm), seed=seed, loss=loss, accuracy=found, seconds=seconds
    )


def objective_of(arm: Arm) -> Objective:
    """Make what an arm minimises."""

    def loss_fn(params: Params, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
        x, labels = batch
        found = outputs(arm.network, params, x)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(found, labels))

    if arm.along == "nothing":
        return as_objective(loss_fn)
    if arm.along == "examples":
        return backward.drop_blocks(loss_fn, keep=arm.keep, along="examples")
    return backward.drop_blocks(
        loss_fn, keep=arm.keep, along="channels", block=SIZES[arm.network]
    )


def network(name: str, key: jax.Array) -> Params:
    """Draw initial weights."""
    every: dict[str, list[tuple[int, ...]]] = {
        "mlp": [(784, 2048), (2048, 2048), (2048, 10)],
        "convolutions": [(3, 3, 1, 32), (3, 3, 32, 64), (3, 3, 64, 64), (1024, 10)],
    }
    params: dict[str, jax.Array] = {}
    for i, shape in enumerate(every[name]):
        scale = (2 / np.prod(shape[:-1])) ** 0.5
        own = jax.random.fold_in(key, i)
        params[f"layer{i}/kernel"] = scale * jax.random.normal(own, shape)
        params[f"layer{i}/bias"] = jnp.zeros(shape[-1])
    return params


def outputs(name: str, params: Params, x: jax.Array) -> jax.Array:
    """Classify images."""
    last = len(params) // 2 - 1
    x = x.reshape(-1, 784) if name == "mlp" else x.reshape(-1, 28, 28, 1)
    for i in range(last):
        kernel, bias = params[f"layer{i}/kernel"], params[f"layer{i}/bias"]
        if name == "mlp":
            x = x @ kernel
        else:
            strides = (1, 1) if i == 0 else (2, 2)
            x = jax.lax.conv_general_dilated(
                x, kernel, strides, "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
        x = jax.nn.relu(x + bias)
    if name == "convolutions":
        # From 7 x 7 to 4 x 4, the last of them halves.
        window, pads = (1, 2, 2, 1), ((0, 0), (0, 1), (0, 1), (0, 0))
        x = jax.lax.reduce_window(x, 0.0, jax.lax.add, window, window, pads) / 4
        x = x.reshape(len(x), -1)
    return x @ params[f"layer{last}/kernel"] + params[f"layer{last}/bias"]


if __name__ == "__main__":
    start(main, tyro.cli(Options))
