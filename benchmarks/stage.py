"""Where the time and memory of one stage go: MLPNet on MNIST, one row an example.

Prints, for the methods and for rows that are stored or matrix-free: seconds of a whole
stage after compilation, its parts, and the peak memory of a process that does nothing
else. Then what the products of matrix-free rows need as n grows.

A prediction to hold it against, n = 1000 rows of p = 32,360 entries, k = 3,236 kept: a
Gram matrix takes n^2 k = 3.2 GFLOP as a triangle, for two supports; on each, three
dampings take a Cholesky factor and its inverse, 2/3 n^3 = 0.7 GFLOP; G takes 129 MB and
is read 20 times. At 100 GFLOP/s and 25 GB/s that is 0.1 s each, 0.2 in all. A metric
that is a plan ("smoothed") takes eigenvalues in place of factors, some 9 n^3.
"""

import dataclasses
import functools
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import tyro
from rich.table import Table
from shared import DATA, console

import swapjax
from swapjax.experiments import datasets, models
from swapjax.gradients.build import per_example_gradients, recipe
from swapjax.gradients.unit import in_unit
from swapjax.io import checkpoint
from swapjax.pruning.solvers import dual_system, targets
from swapjax.sparsity import scores
from swapjax.sparsity.budget import select
from swapjax.sparsity.masks import apply_masks

METHODS = {
    "magnitude": swapjax.magnitude(),
    "linear-regression": swapjax.linear_regression(),
    "swap": swapjax.swap(),
    "swap smoothed": swapjax.swap(target="smoothed"),
    "swap entropic": swapjax.swap(perplexity=8.0, max_sinkhorn=300),
}
TARGETS: dict[str, dict[str, Any]] = {
    "linear-regression": {"name": "identity"},
    "swap": {"name": "hybrid", "epsilon": 0.0},
    "swap smoothed": {"name": "smoothed", "perplexity": 2.0},
    "swap entropic": {"name": "hybrid", "perplexity": 8.0},
}
DAMPINGS = (1e-4, 1e-3, 1e-2)
PARTS = ("gradients", "transport", "selection", "re-fit", "loss")
# G is mapped anew at every stage, which takes 32,000 page faults; huge pages a few.
PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", **os.environ}
LIMIT_SECONDS, LIMIT_BYTES = 1.0, 1.5e9


@dataclasses.dataclass(frozen=True)
class Options:
    """Time one stage and its parts."""

    sparsity: float = 0.9
    """Of the stage."""
    samples: int = 1000
    """Rows."""
    repeats: int = 5
    """The median counts."""
    data: Path = DATA / "data" / "mnist.npz"
    """MNIST; digits and untrained weights stand in where it is not there."""
    checkpoint: Path = DATA / "checkpoints" / "mlpnet_mnist.npz"
    """The published weights."""
    only: str | None = None
    """Measure one METHOD/STORAGE in this process and print JSON; for internal use."""


def main(options: Options) -> None:
    """Measure every method in a process of its own."""
    table = Table(box=None)
    table.add_column("method", no_wrap=True)
    for name in ("stage", *PARTS, "MB"):
        table.add_column(name, justify="right", no_wrap=True)
    over = []
    for method in METHODS:
        for storage in ("stored", "matrix-free")[: 1 if method == "magnitude" else 2]:
            command = [sys.executable, __file__, "--only", f"{method}/{storage}"]
            command += ["--sparsity", str(options.sparsity)]
            command += ["--samples", str(options.samples)]
            command += ["--repeats", str(options.repeats), "--data", str(options.data)]
            out = subprocess.run(
                command, capture_output=True, text=True, check=True, env=PAGES
            )
            found = json.loads(out.stdout.splitlines()[-1])
            cells = [f"{found[p]:.2f}" if p in found else "" for p in ("stage", *PARTS)]
            cells.append(f"{found['peak'] / 1e6:.0f}")
            label = method if storage == "stored" else "  matrix-free"
            table.add_row(label, *cells)
            if found["stage"] > LIMIT_SECONDS or found["peak"] > LIMIT_BYTES:
                over.append(f"{method} ({storage})")
    console.print(
        f"One stage of {options.samples:,} rows to {options.sparsity:g}: seconds after "
        "compilation, of the parts too; peak memory of the process."
    )
    console.print(table)
    show_growth(options)
    limits = f"{LIMIT_SECONDS:g} s and {LIMIT_BYTES / 1e9:g} GB"
    verdict = f"over {limits}: {', '.join(over)}" if over else f"all within {limits}"
    console.print(verdict)
    sys.exit("swap (stored)" in over)


def measure(
    options: Options, method: str, storage: Literal["stored", "matrix-free"]
) -> None:
    """Time one method in this process."""
    model, params, (x, y) = load(options)
    count = options.samples
    data = (jnp.asarray(x[:count]), jnp.asarray(y[:count]))

    def stage() -> Any:
        return swapjax.prune(
            model.loss_fn,
            params,
            data,
            sparsity=options.sparsity,
            method=METHODS[method],
            samples=count,
            key=jax.random.key(0),
            storage=storage,
        ).params

    started = time.perf_counter()
    jax.block_until_ready(stage())
    first = time.perf_counter() - started
    found = {"stage": median(stage, options.repeats)}
    found["compile"] = first - found["stage"]
    # Before the parts are timed one by one, which holds more than a stage does.
    found["peak"] = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if method in TARGETS:
        found |= time_parts(options, model, params, data, method, storage)
    print(json.dumps(found))


def time_parts(
    options: Options,
    model: models.Model,
    params: Any,
    data: Any,
    method: str,
    storage: Literal["stored", "matrix-free"],
) -> dict[str, float]:
    """Seconds of each part, as often as a stage does it.

    Both supports are factorised; each is re-fitted with three dampings, every re-fit
    tried at four lengths of the first-order step. Couplings follow the projections
    inside the re-fit: here one is timed, alone.
    """
    plan = swapjax.plan(params, options.sparsity)
    wbar = plan.layout.split(params)
    take = functools.partial(
        per_example_gradients, model.loss_fn, params, data, plan, storage=storage
    )
    rows = in_unit(take())
    settings = TARGETS[method]
    target = targets.make(
        settings["name"],
        epsilon=settings.get("epsilon"),
        perplexity=settings.get("perplexity"),
        rho=0.5,
        max_iterations=300,
    )
    y = rows.project(wbar)

    @jax.jit
    def selection(rows: Any) -> Any:
        obd = scores.fisher_diagonal(wbar, rows.mean_squares())
        return select(scores.magnitude(wbar), plan.budget), select(obd, plan.budget)

    supports = selection(rows)
    start = [rows.project(apply_masks(wbar, s)) for s in supports]

    @jax.jit
    def transport(x: jax.Array, y: jax.Array) -> Any:
        return target.fit(target.prepare(y), x, y)[0]

    fit = transport(start[0], y)

    @jax.jit
    def solve(rows: Any, fit: Any, support: Any, start: jax.Array) -> Any:
        def one(damping: jax.Array) -> Any:
            system = dual_system.damp(spectrum, damping)
            c = dual_system.solve(system, fit, start)
            step = system.inverse(jnp.ones_like(start))
            left = system.rest_diagonal(), system.rest(fit.targets - start)
            return rows.pull_back(c), rows.pull_back(step), left

        spectrum = dual_system.diagonalise(
            rows.gram(support), fit.metric, min(DAMPINGS)
        )
        return jax.lax.map(one, jnp.asarray(DAMPINGS))

    loss = jax.jit(lambda rows, w: rows.loss(w))
    times = {
        "gradients": lambda: take(),
        "selection": lambda: selection(rows),
        "transport": lambda: transport(start[0], y),
        "re-fit": lambda: [
            solve(rows, fit, s, x) for s, x in zip(supports, start, strict=True)
        ],
        "loss": lambda: [loss(rows, wbar) for _ in range(24)],
    }
    for work in times.values():
        jax.block_until_ready(work())
    return {name: median(work, options.repeats) for name, work in times.items()}


def show_growth(options: Options) -> None:
    """Memory of ``G v`` and ``G^T r``: what XLA sets aside, against G's own."""
    model, params, (x, y) = load(options)
    plan = swapjax.plan(params, options.sparsity)
    table = Table()
    for name in ("rows", "needed, MB", "G itself, MB"):
        table.add_column(name, justify="right")
    for count in (500, 1000, 2000, 4000, 8000):
        data = (jnp.asarray(x[:count]), jnp.asarray(y[:count]))
        rows = recipe(model.loss_fn, params, data, plan)
        both = jax.jit(lambda r: r.pull_back(r.project(plan.layout.split(params))))
        analysis: Any = both.lower(rows).compile().memory_analysis()
        own = 4 * len(x[:count]) * plan.layout.total / 1e6
        needed = analysis.temp_size_in_bytes / 1e6
        table.add_row(f"{len(x[:count]):,}", f"{needed:.2f}", f"{own:.0f}")
    console.print("Matrix-free products: memory beside the weights and the data.")
    console.print(table)


def load(options: Options) -> tuple[models.Model, Any, Any]:
    """Load the network, its weights, and examples."""
    here = options.data.exists() and options.checkpoint.exists()
    data = datasets.load(options.data if here else "digits")
    model = models.create("mlpnet", data.shape, data.classes)
    params = model.params
    if here:
        params = checkpoint.load_params(options.checkpoint, params)
    return model, params, data.train


def median(work: Callable[[], Any], repeats: int) -> float:
    """Seconds."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        jax.block_until_ready(work())
        times.append(time.perf_counter() - started)
    return sorted(times)[len(times) // 2]


if __name__ == "__main__":
    chosen = tyro.cli(Options)
    if chosen.only is None:
        main(chosen)
    else:
        name, kind = chosen.only.split("/")
        measure(chosen, name, kind)  # type: ignore[arg-type]
