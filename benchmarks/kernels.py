"""What zeros give where they are left out: ways to multiply by a sparse matrix.

Square matrices in float32, some fraction of whose weights is left, times batches of
rows: dense, dense with zeros, with fewer columns, in the formats of
``jax.experimental.sparse``, with as many inputs of each output gathered, 2:4 unpacked
again, and by blocks. Each result is compared with NumPy's in float64 first, and that of
the Pallas kernel, which runs on accelerators alone, by interpreting it.

Times are of CPU, in one thread, all ways by turns in one process; gains are medians
over rounds of ratios to the dense matrix. On an accelerator they are those of a clock,
over programs of many products each, since one takes less than to start a program.

Writes results.csv after each case, and goes on where it stopped. For one thread of a
CPU, with these environment variables:

    XLA_FLAGS=--xla_cpu_multi_thread_eigen=false OPENBLAS_NUM_THREADS=1
"""

import dataclasses
import functools
import itertools
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from kernels_report import Line, report
from kernels_ways import LARGEST, Way, pallas_blocks, ways
from shared import RESULTS, complete, console, read_runs, start, write_runs

FEWEST, LONGEST = 3, 4.0  # rounds of a way; seconds, after which it has no more
SHORTEST = 2e-3  # seconds; what takes less is called several times in a row
PRODUCTS = 50  # one after the other in a program on an accelerator


@dataclasses.dataclass(frozen=True)
class Options:
    """Time ways to multiply by a matrix with zeros."""

    sides: tuple[int, ...] = (512, 2048)
    """Of the matrix."""
    batches: tuple[int, ...] = (1, 16, 256)
    """Rows that it is multiplied with."""
    densities: tuple[float, ...] = (1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 64)
    """What is left of the weights."""
    rounds: int = 15
    """Of all ways."""
    gpu: bool = False
    """Measure on the default device of JAX instead, the Pallas kernel too."""
    out: Path = RESULTS / "kernels"
    """The folder to write to."""


def main(options: Options) -> None:
    """Do what is left to do, then show everything."""
    device = jax.devices()[0]
    if options.gpu and device.platform == "cpu":
        raise SystemExit("--gpu needs a JAX that has a GPU or a TPU, got a CPU")
    if not options.gpu:
        device = jax.devices("cpu")[0]
    options.out.mkdir(parents=True, exist_ok=True)
    target = options.out / "results.csv"
    lines = read_runs(target, Line)
    done: dict[tuple, list[Line]] = {}
    for line in lines:
        done.setdefault(line.case, []).append(line)
    every = itertools.product(options.sides, options.batches, options.densities)
    with jax.default_device(device):
        check_pallas()
        complete(
            [(device.device_kind, *case) for case in every],
            done,
            lambda case: {case: measured(options, *case)},
            lambda done: write_runs(target, list(itertools.chain(*done.values()))),
            lambda case: [case],
        )
    console.print(report(list(itertools.chain(*done.values()))), soft_wrap=True)
    console.print(f"Written to {options.out}.", soft_wrap=True)


def check_pallas() -> None:
    """Compare the kernel with NumPy, interpreted, on something small."""
    way = ways(128, 4, 0.5)["blocks of 32"]
    check("Pallas", way._replace(run=functools.partial(pallas_blocks, interpret=True)))


def check(name: str, way: Way, batch: int = 4) -> None:
    """Raise unless a way multiplies by its weights."""
    x = np.random.default_rng(1).normal(size=(batch, len(way.weights)))
    x = x.astype(np.float32)
    with jax.default_matmul_precision("highest"):
        found = jax.jit(way.run)(way.stored, jnp.asarray(x))
    wanted = x.astype(np.float64) @ way.weights.astype(np.float64)
    error = np.abs(found - wanted).max() / np.abs(wanted).max()
    if not error < 1e-5:
        raise SystemExit(f"{name} is wrong by {error:.2g}")


def measured(
    options: Options, device: str, n: int, batch: int, density: float
) -> list[Line]:
    """Time all ways of a case by turns."""
    clock = time.perf_counter if options.gpu else time.process_time
    products = PRODUCTS if options.gpu else 1
    x = jnp.asarray(np.random.default_rng(2).normal(size=(batch, n)), jnp.float32)
    lines: dict[str, Line] = {}
    calls: dict[str, Callable[[], Any]] = {}
    for name, way in ways(n, batch, density, pallas=options.gpu).items():
        size = sum(np.asarray(leaf).nbytes for leaf in jax.tree.leaves(way.stored))
        stored = size / (4 * n * n)
        lines[name] = Line(device, n, batch, density, name, stored=stored)
        if way.between > LARGEST:
            continue
        check(name, way)
        run = repeated(way.run) if options.gpu else jax.jit(way.run)
        calls[name] = functools.partial(run, jax.device_put(way.stored), x)
    times = {name: _repeats(call, clock) for name, call in calls.items()}
    found: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(options.rounds):
        for name in list(calls)[:: -1 if turn % 2 else 1]:
            if turn < FEWEST or sum(found[name]) < LONGEST:
                found[name].append(_seconds(calls[name], times[name], clock))
    dense = np.asarray(found["dense"])
    for name, own in found.items():
        gains = dense[: len(own)] / np.asarray(own)
        low, median, high = np.quantile(gains, [0.25, 0.5, 0.75]).tolist()
        lines[name] = dataclasses.replace(
            lines[name], microseconds=1e6 * float(np.median(own)) / products,
            gain=median, low=low, high=high,
        )  # fmt: skip
    return list(lines.values())


def repeated(
    run: Callable[[Any, jax.Array], jax.Array],
) -> Callable[[Any, jax.Array], jax.Array]:
    """Make a program of many products, each of which waits for the one before."""

    def step(_: jax.Array, carried: tuple[Any, jax.Array]) -> tuple[Any, jax.Array]:
        # Barriers: nothing is made once for all, or for one entry alone.
        stored, x = jax.lax.optimization_barrier(carried)
        out = jax.lax.optimization_barrier(run(stored, x))
        return stored, x.at[0, 0].set(out[0, 0])

    def several(stored: Any, x: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, PRODUCTS, step, (stored, x))[1]

    return jax.jit(several)


def _repeats(call: Callable[[], Any], clock: Callable[[], float]) -> int:
    _seconds(call, 1, clock)
    return max(1, math.ceil(SHORTEST / max(_seconds(call, 3, clock), 1e-9)))


def _seconds(call: Callable[[], Any], times: int, clock: Callable[[], float]) -> float:
    started = clock()
    for _ in range(times):
        jax.block_until_ready(call())
    return (clock() - started) / times


if __name__ == "__main__":
    start(main, tyro.cli(Options, description=__doc__))
