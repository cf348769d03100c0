"""What a training step costs with pruned gradients, and random bits by generator.

LeNet-5 on batches of 64 images of MNIST's size, ResNet-20 on 32 of CIFAR-10's, both
with SGD: steps as `swapjax.training.fit` takes them, some a call. Plain, with the
operator at P = 0, which only counts, and at P = 0.9 with thresholds of the gradient
itself and predicted ones. Then random bits for a million entries by kind of key, as
`jax.random.bits` draws them and as the operator does. All in one process by turns, in
an order that is reversed every other round; seconds are those of the processor, ratios
medians over rounds of those to the first of its part.

Writes results.csv.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from rich.table import Table
from shared import RESULTS, console, start, write_runs

from swapjax import backward
from swapjax.backward.operator import random_bits
from swapjax.core.objective import as_objective
from swapjax.experiments import models
from swapjax.loops import steps

NETWORKS = {"lenet5": ((28, 28, 1), 64, 20), "resnet20": ((32, 32, 3), 32, 2)}
ARMS = {
    "plain": None,
    "P = 0": {"rate": 0.0},
    "P = 0.9, exact": {"threshold": "exact"},
    "P = 0.9, FIFO": {},
}
ENTRIES = 2**20
KINDS = ("threefry2x32", "rbg", "unsafe_rbg")
FEWEST = 5  # rounds


@dataclasses.dataclass(frozen=True)
class Line:
    """What one way costs.

    Attributes:
        part: the network, or "bits".
        way: what was timed.
        milliseconds: of the processor, for a step; for bits of a million entries.
        ratio: to the first way of the part.
        compiled: seconds of the processor to trace and compile it.
    """

    part: str
    way: str
    milliseconds: float
    ratio: float
    compiled: float


@dataclasses.dataclass(frozen=True)
class Options:
    """Time steps with pruned gradients."""

    rounds: int = 15
    """Of some steps of each; the first one does not count."""
    out: Path = RESULTS / "backward_overhead"
    """The folder to write to."""


def main(options: Options) -> None:
    """Measure, and show it."""
    if options.rounds < FEWEST:
        raise SystemExit(f"--rounds must be {FEWEST} or more, got {options.rounds}")
    options.out.mkdir(parents=True, exist_ok=True)
    lines = measure("bits", generators(), 1, options.rounds)
    for name, (shape, batch, count) in NETWORKS.items():
        ways = {arm: stepper(name, shape, batch, count, arm) for arm in ARMS}
        lines += measure(name, ways, count, options.rounds)
        write_runs(options.out / "results.csv", lines)
        console.print(table(lines))
    console.print(f"Written to {options.out}.", soft_wrap=True)


def generators() -> dict[str, Callable]:
    """List ways to draw 32 bits for each of some entries."""
    found: dict[str, Callable] = {}
    for kind in KINDS:
        key = jax.random.key(0, impl=kind)
        plain = jax.jit(functools.partial(jax.random.bits, shape=(ENTRIES,)))
        found[f"{kind}, jax.random.bits"] = functools.partial(plain, key)
        ours = jax.jit(random_bits, static_argnums=(0, 2))
        numbers = jax.random.key_data(key)
        found[f"{kind}, operator"] = functools.partial(ours, kind, numbers, (ENTRIES,))
    return found


def stepper(
    name: str, shape: tuple[int, ...], batch: int, count: int, arm: str
) -> Callable:
    """Make some steps of training of a network."""
    model = models.create(name, shape, 10)
    settings = ARMS[arm]
    loss = model.training_loss
    chosen = loss if settings is None else backward.prune_backward(loss, **settings)
    images = jax.random.normal(jax.random.key(0), (batch * count, *shape))
    data = images, jnp.arange(len(images)) % 10
    first = jax.tree.map(lambda x: x[:batch], data)
    tx = optax.sgd(0.01, momentum=0.9)
    memory = as_objective(chosen).init(model.params, first)
    memory = jax.tree.map(jnp.asarray, memory)
    carry = steps.Carry(model.params, tx.init(model.params), memory)
    index = jnp.arange(len(images)).reshape(count, batch)
    keys = steps.step_keys(jax.random.key(1), 0, count)
    return functools.partial(steps.run, chosen, tx, carry, None, data, index, keys)


def measure(
    part: str, ways: Mapping[str, Callable], count: int, rounds: int
) -> list[Line]:
    """Time some ways by turns.

    Args:
        part: they are of.
        ways: what to call, by name.
        count: steps of a call.
        rounds: of calls.
    """
    compiled = {name: seconds(work) for name, work in ways.items()}
    found: dict[str, list[float]] = {name: [] for name in ways}
    for i in range(rounds):
        for name in list(ways)[:: 1 if i % 2 else -1]:
            spent = seconds(ways[name])
            if i:
                found[name].append(spent / count)
    base = np.asarray(found[next(iter(ways))])
    return [
        Line(
            part,
            name,
            1000 * float(np.median(found[name])),
            float(np.median(np.asarray(found[name]) / base)),
            compiled[name],
        )
        for name in ways
    ]


def seconds(work: Callable) -> float:
    """Return the seconds of the processor that a call takes."""
    started = time.process_time()
    jax.block_until_ready(work())
    return time.process_time() - started


def table(lines: list[Line]) -> Table:
    """Show what was measured."""
    shown = Table("", "", "ms", "ratio", "compiled, s")
    for line in lines:
        shown.add_row(
            line.part, line.way, f"{line.milliseconds:.2f}", f"{line.ratio:.3f}",
            f"{line.compiled:.1f}",
        )  # fmt: skip
    return shown


if __name__ == "__main__":
    start(main, tyro.cli(Options, description=__doc__))
