"""Gradients of convolutional networks on a CPU, in loops and outside of them.

Each network is a process of its own, on random images: plain ``jax.grad`` of all images
at once, outside of loops; a step of `swapjax.training.fit` for every row; rows of
gradients as they are stored, and projections; and `swapjax.obd` of ResNet-20 beside
its gradients alone. CPU seconds, since wall time depends on what else the machine does;
the best of a few calls after the first.

Results go to ``benchmarks/results/convolutions/results.csv``.
"""

import dataclasses
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import tyro
from rich.table import Table
from shared import RESULTS, console, read_runs, start, write_runs

import swapjax
from swapjax.core.trees import trainable
from swapjax.experiments import models
from swapjax.gradients.build import recipe
from swapjax.gradients.stored import store
from swapjax.loops import steps

# Side of the images, rows, examples a row.
NETWORKS = {
    "resnet20": (32, 4, 16),
    "mobilenet_v1": (64, 4, 8),
    "resnet50": (64, 4, 4),
    "vgg16": (64, 4, 4),
}
OBD = (32, 16)  # rows, examples a row
PATH = RESULTS / "convolutions" / "results.csv"


@dataclasses.dataclass(frozen=True)
class Run:
    """What one way to take gradients costs.

    Attributes:
        network: its name.
        way: what is done.
        images: in a call.
        seconds: of the CPU.
    """

    network: str
    way: str
    images: int
    seconds: float = float("nan")


@dataclasses.dataclass(frozen=True)
class Options:
    """Time gradients of convolutional networks."""

    networks: tuple[str, ...] = tuple(NETWORKS)
    """Which of them."""
    repeats: int = 5
    """Calls of each way, after one that does not count."""
    naive: bool = False
    """Also a loop over gradients that are not rewritten; it takes minutes."""
    child: bool = False
    """Measure in this process, and print what was found."""


def main(options: Options) -> None:
    """Measure, and show it."""
    if options.child:
        (name,) = options.networks
        for run in measure(name, options):
            print(f"{run.network},{run.way},{run.images},{run.seconds}", flush=True)
        return
    done = {(run.network, run.way): run for run in read_runs(PATH, Run)}
    for name in options.networks:
        for run in in_a_process(name, options):
            done[run.network, run.way] = run
        write_runs(PATH, list(done.values()))
    console.print(table(list(done.values())))


def in_a_process(name: str, options: Options) -> list[Run]:
    """Measure one network in a process of its own."""
    words = [sys.executable, __file__, "--child", "--networks", name]
    words += ["--repeats", str(options.repeats), *["--naive"] * options.naive]
    told = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    found = []
    for line in told.splitlines():
        network, way, images, seconds = line.split(",")
        found.append(Run(network, way, int(images), float(seconds)))
    return found


def measure(name: str, options: Options) -> list[Run]:
    """Time all ways of one network."""
    side, rows, batch = NETWORKS[name]
    model = models.create(name, (side, side, 3), 10)
    ways: dict[str, Callable[[], Any]] = ways_of(model, side, rows, batch)
    if not options.naive:
        ways.pop("lax.scan of jax.grad")
    runs = [
        Run(name, way, rows * batch, fastest(work, options.repeats))
        for way, work in ways.items()
    ]
    if name == "resnet20":
        runs += [
            Run(name, way, OBD[0] * OBD[1], fastest(work, options.repeats))
            for way, work in stage_of(model, side).items()
        ]
    return runs


def ways_of(
    model: models.Model, side: int, rows: int, batch: int
) -> dict[str, Callable[[], Any]]:
    """List the ways to take gradients of all images."""
    data = images(side, rows * batch)
    parts = jax.tree.map(lambda x: x.reshape(rows, batch, *x.shape[1:]), data)
    loss_fn, params = model.training_loss, model.params
    inference = model.loss_fn
    optimizer = optax.sgd(1e-3)
    start = steps.Carry(params, optimizer.init(trainable(params)))
    index = jnp.arange(rows * batch).reshape(rows, batch)
    plan = swapjax.plan(params, 0.5)
    free = recipe(inference, params, data, plan, batch=batch)
    tangent = plan.layout.split(params)

    def scanned(gradient: Callable) -> Callable:
        def add(total: Any, part: Any) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, gradient(params, part)), None

        zeros = jax.tree.map(jnp.zeros_like, params)
        return jax.jit(lambda parts: jax.lax.scan(add, zeros, parts)[0])

    plain = jax.jit(jax.grad(inference))
    trained = jax.jit(jax.grad(loss_fn))
    naive = scanned(jax.grad(inference))
    fast = scanned(swapjax.canonical_convolutions(jax.grad(inference)))
    project = jax.jit(lambda free: free.project(tangent))
    return {
        "jax.grad": lambda: plain(params, data),
        "jax.grad in training mode": lambda: trained(params, data),
        "lax.scan of jax.grad": lambda: naive(parts),
        "lax.scan rewritten": lambda: fast(parts),
        "rows": lambda: store(free),
        "projections": lambda: project(free),
        "fit": lambda: steps.run(inference, optimizer, start, None, data, index),
        "fit in training mode": lambda: steps.run(
            loss_fn, optimizer, start, None, data, index
        ),
    }


def stage_of(model: models.Model, side: int) -> dict[str, Callable[[], Any]]:
    """List a stage of OBD, and its gradients alone."""
    rows, batch = OBD
    data = images(side, rows * batch)
    plan = swapjax.plan(model.params, 0.5)
    free = recipe(model.loss_fn, model.params, data, plan, batch=batch)
    key = jax.random.key(0)

    def stage() -> Any:
        return swapjax.prune(
            model.loss_fn, model.params, data, sparsity=0.5, method=swapjax.obd(),
            samples=rows, batch=batch, key=key,
        ).params  # fmt: skip

    return {"rows of obd": lambda: store(free), "obd": stage}


def images(side: int, count: int) -> tuple[jax.Array, jax.Array]:
    """Draw random images and labels."""
    keys = jax.random.split(jax.random.key(0))
    x = jax.random.normal(keys[0], (count, side, side, 3))
    return x, jax.random.randint(keys[1], (count,), 0, 10)


def fastest(work: Callable[[], Any], repeats: int) -> float:
    """Return the CPU seconds of the fastest of some calls after the first."""
    jax.block_until_ready(work())
    best = float("inf")
    for _ in range(repeats):
        started = time.process_time()
        jax.block_until_ready(work())
        best = min(best, time.process_time() - started)
    return best


def table(runs: list[Run]) -> Table:
    """Show images a CPU second, and the time as a multiple of ``jax.grad``."""
    plain = {run.network: run for run in runs if run.way == "jax.grad"}
    result = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    result.add_column("network", no_wrap=True)
    result.add_column("way", no_wrap=True)
    for name in ("images", "CPU s", "images/s", "times jax.grad"):
        result.add_column(name, justify="right")
    for run in runs:
        base = plain[run.network]
        times = (run.seconds / run.images) / (base.seconds / base.images)
        result.add_row(
            run.network, run.way, str(run.images), f"{run.seconds:.3f}",
            f"{run.images / run.seconds:.0f}", f"{times:.2f}",
        )  # fmt: skip
    return result


if __name__ == "__main__":
    start(main, tyro.cli(Options))
