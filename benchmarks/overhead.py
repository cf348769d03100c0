"""What a step of sparse training costs against one of the bare optimizer.

LeNet-300-100 on MNIST in batches of 128, SGD with momentum: each step a call of a
jitted function that is given its params and state to keep, as users' loops do. All
rules in one run, a hundred steps of each in turn, so that what else the machine does
meets all of them; ratios are medians over these rounds.

Writes results.json.
"""

import dataclasses
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from rich.table import Table
from shared import DATA, RESULTS, clock, console, start

import swapjax
from swapjax.core import files
from swapjax.experiments import datasets, models

# JaxPruner's ratios in the same setting, with a mask step every 100, on quiet cores.
JAXPRUNER = {"static": 1.05, "set": 2.6, "rigl": 2.5, "gmp": 1.4}


@dataclasses.dataclass(frozen=True)
class Options:
    """Time steps of every rule."""

    rounds: int = 101
    """Of a hundred steps of each; the first one does not count."""
    data: Path = DATA / "data" / "mnist.npz"
    """An .npz with x_train, y_train, x_test, y_test."""
    out: Path = RESULTS / "overhead"
    """The folder to write to."""


def main(options: Options) -> None:
    """Measure, and show it."""
    if options.rounds < 2:
        raise SystemExit(f"--rounds must be 2 or more, got {options.rounds}")
    options.out.mkdir(parents=True, exist_ok=True)
    cost = overhead(datasets.load(options.data), options.rounds)
    console.print(table(cost))
    text = json.dumps(cost, indent=1) + "\n"
    files.write_text(options.out / "results.json", text)
    console.print(f"Written to {options.out}.", soft_wrap=True)


def overhead(data: datasets.Dataset, rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds of a step, and how many times those of the bare optimizer."""
    model = models.create("lenet300", data.shape, data.classes)
    x, y = (jnp.asarray(part[:128]) for part in data.train)
    steps = 100 * rounds
    tx = optax.sgd(optax.cosine_decay_schedule(0.1, steps), momentum=0.9)
    wrap = functools.partial(swapjax.sparse, tx, sparsity=0.98, key=jax.random.key(0))
    stay, rise = (
        make(0, steps, every=100) for make in (swapjax.constant, swapjax.cubic)
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
    for i in range(rounds):
        if i % 10 == 0:
            console.print(f"{i} of {rounds} rounds")
        for name, work in blocks.items():
            seconds = clock(work)
            if i:
                times[name].append(10 * seconds)
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
    """Make a function that takes 100 steps, one call each, as users' loops do."""

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


def table(cost: dict[str, dict[str, float]]) -> Table:
    """Milliseconds of a step, and how many times those of the bare optimizer."""
    result = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for name in ("a step of", "ms", "ratio", "JaxPruner's ratio"):
        result.add_column(name, justify="left" if name == "a step of" else "right")
    for name, found in cost.items():
        known = JAXPRUNER.get(name)
        theirs = "" if known is None else f"{known:g}"
        result.add_row(name, f"{found['ms']:.3f}", f"{found['ratio']:.3f}", theirs)
    return result


if __name__ == "__main__":
    start(main, tyro.cli(Options))
