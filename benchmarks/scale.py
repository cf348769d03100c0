"""A stage of SWAP on networks of any size: time, memory, and what they must cost.

Each line is a process of its own: one network, n rows of random images, one stage to
sparsity 0.9. Beside the measured times stand lower bounds from the bytes that must
move and the products that must be made, at the rates that this machine reaches in a
sum and in a matrix product of its own. For convolutional networks the stage alone is
measured.

Writes results.json after every line and goes on where it stopped; then results.png.
"""

import dataclasses
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx
from matplotlib.figure import Figure
from rich.table import Table
from shared import RESULTS, clock, complete, console, fastest, start

import swapjax
from swapjax.core import files, sharding
from swapjax.experiments import models, plot
from swapjax.gradients.build import form, recipe
from swapjax.pruning import Problem
from swapjax.pruning.solvers.sinkhorn import entropic
from swapjax.sparsity.budget import select

WIDTHS = {"mlp-30k": 32, "mlp-1m": 512, "mlp-10m": 2048, "mlp-100m": 6800}


@dataclasses.dataclass(frozen=True)
class Line:
    """One measurement."""

    network: str
    n: int
    storage: str
    devices: int = 1

    def __str__(self) -> str:
        return f"{self.network}, n {self.n}, {self.storage}, {self.devices} devices"


GRID = (
    *(Line(name, 64, "matrix-free") for name in WIDTHS),
    *(Line("mlp-1m", n, "matrix-free") for n in (256, 1000, 4000)),
    *(Line("mlp-30k", n, "stored") for n in (100, 1000, 2000, 4000)),
    Line("mlp-1m", 256, "stored"),
    *(Line("mlp-1m", 256, "matrix-free", d) for d in (2, 4, 8)),
    *(Line("mobilenet_v1", n, "matrix-free") for n in (64, 256)),
    *(Line("resnet50", n, "matrix-free") for n in (64, 256)),
)


@dataclasses.dataclass(frozen=True)
class Options:
    """Measure stages of SWAP against the sizes of networks and of samples."""

    networks: tuple[str, ...] = tuple(dict.fromkeys(line.network for line in GRID))
    """Any of the grid's."""
    largest: int = 10_000
    """Leave out lines of more rows."""
    side: int = 64
    """Of the images for convolutional networks."""
    out: Path = RESULTS / "scale"
    """The folder for results.json and results.png."""
    only: str | None = None
    """Measure one line, as JSON, in this process; for internal use."""


def main(options: Options) -> None:
    """Measure what is left, then show everything."""
    options.out.mkdir(parents=True, exist_ok=True)
    target = options.out / "results.json"
    done = json.loads(target.read_text()) if target.exists() else {}
    wanted = [
        line
        for line in GRID
        if line.network in options.networks and line.n <= options.largest
    ]
    complete(
        wanted,
        done,
        lambda line: {
            str(line): dataclasses.asdict(line) | in_own_process(line, options)
        },
        lambda done: files.write_text(target, json.dumps(done, indent=1) + "\n"),
        lambda line: (str(line),),
    )
    found = [done[str(line)] for line in wanted]
    console.print(table(found))
    plot.save(figure(found), options.out / "results.png")
    console.print(f"Written to {options.out}.", soft_wrap=True)


def in_own_process(line: Line, options: Options) -> dict[str, float]:
    """Seconds and bytes of one line."""
    command = [sys.executable, __file__, "--only", json.dumps(dataclasses.asdict(line))]
    command += ["--side", str(options.side)]
    # More threads than cores, or collectives of simulated devices wait for ever.
    environment = {**os.environ, "NPROC": str(max(2, 8 * line.devices))}
    if line.devices > 1:
        environment["XLA_FLAGS"] = (
            f"--xla_force_host_platform_device_count={line.devices} "
            "--xla_cpu_scheduler_type=CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"
        )
    else:
        environment.pop("NPROC")
    out = subprocess.run(command, capture_output=True, text=True, env=environment)
    if out.returncode:
        raise RuntimeError(f"{line}: {out.stderr[-2000:]}")
    return json.loads(out.stdout.splitlines()[-1])


def measure(line: Line, side: int) -> dict[str, float]:
    """Each part of a stage by itself, then all of it."""
    loss_fn, params, data = network(line, side)
    plan = swapjax.plan(params, 0.9)
    found: dict[str, float] = {"weights": plan.layout.total}
    free = recipe(loss_fn, params, data, plan)
    rows = form(free, plan, line.storage)  # type: ignore[arg-type]
    weights, budget = plan.layout.split(params), plan.budget
    if line.network in WIDTHS:
        found |= measure_parts(rows, weights, budget)
    method = swapjax.swap(damping=1e-3, support="magnitude", first_order=False)
    solve = jax.jit(lambda r, w, b: method(Problem(w, w, r), b))
    started = time.perf_counter()
    compiled = solve.lower(rows, weights, budget).compile()
    found["compile"] = time.perf_counter() - started
    found["stage"] = clock(compiled, rows, weights, budget)
    # On Linux in KiB.
    found["peak"] = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found | bounds(line, plan.layout.total, plan.kept)


def measure_parts(rows: Any, weights: Any, budget: Any) -> dict[str, float]:
    """Measure the parts of a stage by themselves."""
    ranked = jax.jit(lambda w: tuple(map(jnp.abs, w)))(weights)
    support = jax.jit(select)(ranked, budget)
    residual = jnp.linspace(-1.0, 1.0, rows.n)
    # The longest of them: compiled apart, and called once.
    gram = jax.jit(lambda r, s: r.gram(s)).lower(rows, support).compile()
    return {
        "select": fastest(jax.jit(select), ranked, budget),
        "project": fastest(jax.jit(lambda r, w: r.project(w)), rows, weights),
        "pull_back": fastest(jax.jit(lambda r, c: r.pull_back(c)), rows, residual),
        "gram": clock(gram, rows, support),
        "sinkhorn": fastest(jax.jit(entropic), residual, residual[::-1] / 2, 0.1),
    }


def network(line: Line, side: int) -> tuple[Callable, Any, Any]:
    """Make a loss, params and random data, sharded if there are several devices."""
    rng = np.random.default_rng(0)
    if line.network in WIDTHS:
        loss_fn, params = perceptron(WIDTHS[line.network])
        x = rng.normal(size=(line.n, 784)).astype(np.float32)
    else:
        model = models.create(line.network, (side, side, 3), 1000)
        loss_fn, params = model.loss_fn, model.params
        x = rng.normal(size=(line.n, side, side, 3)).astype(np.float32)
    data = (jnp.asarray(x), jnp.asarray(rng.integers(0, 10, line.n)))
    if line.devices > 1:
        kinds = (jax.sharding.AxisType.Auto,)
        mesh = jax.make_mesh((line.devices,), ("data",), axis_types=kinds)
        data = sharding.Spread(mesh, ("data",)).place(data)
    return loss_fn, params, data


def perceptron(width: int) -> tuple[Callable, Any]:
    """Make a loss and weights of MLPNet, or of a wider one with two hidden layers."""
    sizes = (784, width, width, 10) if width > 32 else (784, 40, 20, 10)
    graph, state = nnx.split(models.MLP(sizes, rngs=nnx.Rngs(0)))

    def loss_fn(params: Any, batch: Any) -> jax.Array:
        logits = nnx.merge(graph, params)(batch[0])
        chosen = jnp.take_along_axis(logits, batch[1][:, None], axis=1)
        return jnp.mean(jax.nn.logsumexp(logits, axis=1) - chosen[:, 0])

    return loss_fn, nnx.to_pure_dict(state)


def bounds(line: Line, p: int, k: int) -> dict[str, float]:
    """Seconds that the parts take at least, at this machine's rates."""
    size = 2**26
    x = jnp.ones(size)
    bandwidth = 4 * size / fastest(jax.jit(jnp.sum), x)
    a = jnp.ones((1024, 1024))
    flops = 2 * 1024**3 / fastest(jax.jit(lambda a: a @ a), a)
    # A pass reads the weights and writes their gradient for every span of rows; stored
    # rows are read whole. A bisection of 32 bits reads the scores 32 times.
    stream = 4 * line.n * p if line.storage == "stored" else 8 * p
    return {
        "bound select": 32 * 4 * p / bandwidth,
        "bound project": stream / bandwidth,
        "bound pull_back": stream / bandwidth,
        "bound gram": line.n**2 * k / flops,
        "bandwidth": bandwidth,
        "flops": flops,
    }


def table(found: list[dict]) -> Table:
    """One line a measurement; times in seconds, lower bounds in brackets."""
    result = Table(box=None)
    for name in ("network", "weights", "n", "rows", "devices"):
        result.add_column(name, no_wrap=True)
    parts = ("select", "project", "pull_back", "gram")
    for name in (*parts, "sinkhorn", "compile", "stage", "MB"):
        result.add_column(name, justify="right", no_wrap=True)
    for row in found:
        cells = [f"{row[p]:.3g} [{row[f'bound {p}']:.1g}]" for p in parts if p in row]
        cells += [""] * (len(parts) - len(cells))
        for name in ("sinkhorn", "compile", "stage"):
            cells.append(f"{row[name]:.3g}" if name in row else "")
        result.add_row(
            row["network"], f"{row['weights']:,}", str(row["n"]), row["storage"],
            str(row["devices"]), *cells, f"{row['peak'] / 1e6:,.0f}",
        )  # fmt: skip
    return result


def figure(found: list[dict]) -> Figure:
    """Plot times against the number of weights, and against that of rows."""
    result = Figure(figsize=(11, 4.4), layout="constrained")
    left, right = result.subplots(1, 2)
    alone = [row for row in found if row["devices"] == 1]
    parts = ("select", "project", "pull_back", "gram", "stage")
    panels = (
        (left, "weights", lambda r: r["n"] == 64 and r["storage"] == "matrix-free"),
        (right, "n", lambda r: r["network"] == "mlp-1m" and r["storage"] != "stored"),
    )
    for axes, name, chosen in panels:
        rows = sorted(filter(chosen, alone), key=lambda row: row[name])
        rows = [row for row in rows if row["network"] in WIDTHS]
        for part in parts:
            sizes = [row[name] for row in rows]
            line = axes.loglog(sizes, [row[part] for row in rows], "o-", label=part)
            if rows and f"bound {part}" in rows[0]:
                least = [row[f"bound {part}"] for row in rows]
                axes.loglog(sizes, least, ":", color=line[0].get_color())
        axes.set_xlabel("weights, n = 64" if name == "weights" else "n, 10⁶ weights")
        axes.grid(alpha=0.3, which="both")
    left.set_ylabel("seconds (dotted: lower bound)")
    left.legend(fontsize="small")
    return result


if __name__ == "__main__":
    chosen = tyro.cli(Options)
    if chosen.only is None:
        start(main, chosen)
    else:
        print(json.dumps(measure(Line(**json.loads(chosen.only)), chosen.side)))
