"""What a step of sparse training costs against one of the bare optimizer.

Two networks on MNIST in batches of 128 with Adam: LeNet-300-100, and one of four
million weights. Each step is a call of a jitted function that is given its params and
state to keep, as users' loops do: in one program that finds out whether a mask step is
due, and in two, chosen on the host. All in one process by turns, some steps of each, in
an order that is reversed every other round; ratios are medians over rounds, of the time
on the wall and of the processor's.

Writes results.json.
"""

import dataclasses
import functools
import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from rich.table import Table
from shared import DATA, RESULTS, console, start

import swapjax
from swapjax.core import files
from swapjax.experiments import datasets

# Hidden units, and the steps of a turn.
NETWORKS = {"LeNet-300-100": ((300, 100), 100), "4 M": ((1500, 1200, 800), 10)}
FEWEST = 5  # rounds
RULES = ("rigl", "gmp", "granet")


@dataclasses.dataclass(frozen=True)
class Options:
    """Time steps of every rule."""

    rounds: int = 15
    """Of some steps of each; the first one does not count."""
    data: Path = DATA / "data" / "mnist.npz"
    """An .npz with x_train, y_train, x_test, y_test."""
    out: Path = RESULTS / "overhead"
    """The folder to write to."""


def main(options: Options) -> None:
    """Measure, and show it."""
    if options.rounds < FEWEST:
        raise SystemExit(f"--rounds must be {FEWEST} or more, got {options.rounds}")
    options.out.mkdir(parents=True, exist_ok=True)
    data = datasets.load(options.data)
    cost = {}
    for network, (hidden, steps) in NETWORKS.items():
        cost[network] = overhead(data, hidden, steps, options.rounds)
        console.print(table(network, cost[network]))
    text = json.dumps(cost, indent=1) + "\n"
    files.write_text(options.out / "results.json", text)
    console.print(f"Written to {options.out}.", soft_wrap=True)


def overhead(
    data: datasets.Dataset, hidden: tuple[int, ...], steps: int, rounds: int
) -> dict[str, dict[str, float]]:
    """Time the steps of one network.

    Args:
        data: images and labels.
        hidden: units.
        steps: of a turn.
        rounds: of turns, the first of which does not count.

    Returns:
        Of each way to step: ``ms`` on the wall, its ratio to the bare optimizer's, and
        that of the processor's time.
    """
    x, y = (jnp.asarray(part[:128]) for part in data.train)
    batch = x.reshape(len(x), -1), y
    sides = (batch[0].shape[1], *hidden, data.classes)
    keys = jax.random.split(jax.random.key(0), len(sides))
    params = {
        f"layer{i}": {"kernel": jax.random.normal(keys[i], side) * side[0] ** -0.5}
        for i, side in enumerate(itertools.pairwise(sides))
    }
    tx, end = optax.adam(1e-3), 10**6
    wrap = functools.partial(swapjax.sparse, tx, sparsity=0.9, key=jax.random.key(1))
    works = {"bare": stepper(tx, params, batch, steps, two=False)}
    times = {"every 100": (0, 100)} if steps == 100 else {}
    times["none"] = (end, 1)
    for (when, (first, every)), name in itertools.product(times.items(), RULES):
        rise = swapjax.constant if name == "rigl" else swapjax.cubic
        schedule = rise(first, end, every=every)
        sparse = wrap(getattr(swapjax, name)(), schedule=schedule)
        for form, two in (("one program", False), ("two programs", True)):
            work = stepper(sparse, params, batch, steps, two=two)
            works[f"{name}, {form}, mask steps: {when}"] = work
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    for i in range(rounds):
        for name in list(works)[:: 1 if i % 2 else -1]:
            started = time.perf_counter(), time.process_time()
            jax.block_until_ready(works[name]())
            if i:
                ended = time.perf_counter(), time.process_time()
                found[name].append((ended[0] - started[0], ended[1] - started[1]))
    bare = np.asarray(found["bare"])
    result = {}
    for name, of_name in found.items():
        wall, processor = np.median(np.asarray(of_name) / bare, axis=0).tolist()
        ms = float(np.median(np.asarray(of_name)[:, 0])) * 1000 / steps
        result[name] = {"ms": ms, "wall": wall, "processor": processor}
    return result


def loss_fn(params: Any, batch: Any) -> jax.Array:
    """Compute the mean loss of a perceptron with rectified units."""
    x, y = batch
    for i in range(len(params)):
        x = (jax.nn.relu(x) if i else x) @ params[f"layer{i}"]["kernel"]
    return optax.softmax_cross_entropy_with_integer_labels(x, y).mean()


def stepper(
    tx: optax.GradientTransformation, params: Any, batch: Any, count: int, *, two: bool
) -> Callable[[], Any]:
    """Make a function that takes some steps, one call each, as users' loops do.

    Args:
        tx: the optimizer.
        params: to start from.
        batch: of every step.
        count: steps.
        two: whether there are two programs.
    """

    @functools.partial(jax.jit, donate_argnums=(0, 1), static_argnums=2)
    def step(params: Any, state: Any, mask_step: bool | None) -> tuple:
        slopes = jax.grad(loss_fn)(params, batch)
        told = {} if mask_step is None else {"mask_step": mask_step}
        updates, state = tx.update(slopes, state, params, **told)
        return optax.apply_updates(params, updates), state

    # Copies, since each step gives its arguments away.
    params = jax.tree.map(jnp.array, params)
    now = [params, jax.tree.map(jnp.array, tx.init(params))]
    left = swapjax.until_mask_step(now[1]) if two else 0.0

    def work() -> Any:
        nonlocal left
        for _ in range(count):
            now[:] = step(*now, left == 0 if two else None)
            if two:
                left = left - 1 if left else swapjax.until_mask_step(now[1])
        return now[0]

    return work


def table(network: str, cost: dict[str, dict[str, float]]) -> Table:
    """Milliseconds of a step, and how many times those of the bare optimizer."""
    result = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for name in (f"{network}: a step of", "ms", "on the wall", "processor"):
        result.add_column(name, justify="right" if result.columns else "left")
    for name, found in cost.items():
        ratios = (f"{found[key]:.3f}" for key in ("wall", "processor"))
        result.add_row(name, f"{found['ms']:.3f}", *ratios)
    return result


if __name__ == "__main__":
    start(main, tyro.cli(Options))
