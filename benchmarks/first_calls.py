"""How long a first call takes, and what of it is compilation.

Each method on each network in a process of its own, without a cache of programs: CPU
seconds of the first call, those of XLA among them, the programs and the instructions
of HLO that it compiled, and the seconds of the same call once more. Instructions are
counted in another process, in which XLA writes out its programs. The call is `prune`;
of Adam, alone or with a rule of sparse training around it, ``init`` and a step.

``transformer`` has two blocks with twelve kernels of 64 and 256; ``12`` and ``48`` are
so many kernels of 32×32, one after the other. 128 rows or examples, to sparsity 0.8.

Writes results.csv.
"""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import optax
import tyro
from rich.table import Table
from shared import (
    RESULTS,
    Compilations,
    complete_csv,
    console,
    start,
    training_step,
)

import swapjax

_Method = Literal["swap", "chita", "obd", "woodfisher", "cbs"]
_Rule = Literal["adam", "gmp", "rigl", "granet"]  # adam: none
_Network = Literal["transformer", "12", "48"]


@dataclasses.dataclass(frozen=True)
class Options:
    """Measure the first call of each method and each rule on each network."""

    methods: tuple[_Method | _Rule, ...] = get_args(_Method) + get_args(_Rule)
    """The methods and rules, by name."""
    networks: tuple[_Network, ...] = get_args(_Network)
    """The networks, by name."""
    out: Path = RESULTS / "first_calls"
    """The folder to write to."""


@dataclasses.dataclass(frozen=True)
class Run:
    """A method or a rule on a network.

    Attributes:
        method: its name.
        network: its name.
        first: CPU seconds of the first call.
        xla: those of them that XLA took.
        init: those of these that it took for `init` of an optimizer.
        programs: how many were compiled.
        hlo: instructions in all of them.
        again: seconds of the same call once more.
        compiled: programs that this one compiled, and one to another sparsity.
    """

    method: str
    network: str
    first: float = 0.0
    xla: float = 0.0
    init: float = 0.0
    programs: int = 0
    hlo: int = 0
    again: float = 0.0
    compiled: int = 0

    @property
    def key(self) -> tuple[str, str]:
        """What tells runs apart."""
        return self.method, self.network

    def __str__(self) -> str:
        return f"{self.method} on {self.network}"


def main(options: Options) -> None:
    """Measure what is not measured yet, and show all."""
    options.out.mkdir(parents=True, exist_ok=True)
    wanted = [Run(m, n) for n in options.networks for m in options.methods]
    done = complete_csv(options.out / "results.csv", wanted, measure)
    console.print(table([done[run.key] for run in wanted]))


def measure(run: Run) -> Run:
    """Fill in what was measured."""
    found = json.loads(_in_process(run))
    with tempfile.TemporaryDirectory() as folder:
        _in_process(run, f"--xla_dump_to={folder} --xla_dump_hlo_as_text")
        programs = Path(folder).glob("*after_optimizations.txt")
        hlo = sum(program.read_text().count(" = ") for program in programs)
    return dataclasses.replace(run, **found, hlo=hlo)


def _in_process(run: Run, flags: str = "") -> str:
    """Prune in a process of its own, and return what it printed."""
    command = [sys.executable, __file__, "--one", run.method, run.network]
    rest = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    found = subprocess.run(
        command, check=True, capture_output=True, text=True,
        env={**rest, "XLA_FLAGS": flags},
    )  # fmt: skip
    return found.stdout


def step_twice(rule: str, network: str) -> dict[str, float]:
    """Make a state, take a step and another; tell what it took."""
    params, loss_fn, data = _network(network)
    batch, tx, key = data[:128], optax.adam(1e-3), jax.random.key(1)
    jax.block_until_ready((params, batch, key))
    if rule != "adam":
        rise = swapjax.constant if rule == "rigl" else swapjax.cubic
        tx = swapjax.sparse(
            tx, getattr(swapjax, rule)(), sparsity=0.8, key=key,
            schedule=rise(100, 1000, every=10),
        )  # fmt: skip
    step = training_step(tx, loss_fn, batch)
    compilations, began = Compilations(), time.process_time()
    state = jax.block_until_ready(tx.init(params))
    init = compilations.seconds
    jax.block_until_ready(step(params, state))
    first = time.process_time() - began
    programs, seconds = compilations.count, compilations.seconds
    started = time.perf_counter()
    jax.block_until_ready(step(params, state))
    return {
        "first": round(first, 2),
        "xla": round(seconds, 2),
        "init": round(init, 2),
        "programs": programs,
        "again": round(time.perf_counter() - started, 4),
        "compiled": compilations.count - programs,
    }


def prune_twice(method: str, network: str) -> dict[str, float]:
    """Prune, prune again and to another sparsity; tell what it took."""
    params, loss_fn, data = _network(network)
    chosen = getattr(swapjax, method)()
    key = jax.random.key(1)
    jax.block_until_ready((params, data, key))

    def prune(sparsity: float) -> None:
        pruned = swapjax.prune(
            loss_fn, params, data, sparsity=sparsity, samples=128, key=key,
            method=chosen,
        )  # fmt: skip
        jax.block_until_ready(pruned.params)

    compilations, began = Compilations(), time.process_time()
    prune(0.8)
    first = time.process_time() - began
    programs, seconds = compilations.count, compilations.seconds
    started = time.perf_counter()
    prune(0.8)
    again = time.perf_counter() - started
    prune(0.6)
    return {
        "first": round(first, 2),
        "xla": round(seconds, 2),
        "programs": programs,
        "again": round(again, 2),
        "compiled": compilations.count - programs,
    }


def _network(name: str) -> tuple[Any, Callable, jax.Array]:
    return _transformer() if name == "transformer" else _deep(int(name))


def _deep(layers: int, width: int = 32) -> tuple[Any, Callable, jax.Array]:
    keys = jax.random.split(jax.random.key(0), layers + 1)
    params = {
        f"block{i:02}": {"kernel": jax.random.normal(k, (width, width)) / 6}
        for i, k in enumerate(keys[1:])
    }

    def loss_fn(params: Any, x: jax.Array) -> jax.Array:
        h = x
        for block in params.values():
            h = jnp.tanh(h @ block["kernel"])
        return jnp.mean((h - x) ** 2)

    return params, loss_fn, jax.random.normal(keys[0], (600, width))


def _transformer(
    d: int = 64, blocks: int = 2, length: int = 8
) -> tuple[Any, Callable, jax.Array]:
    sides = {"q": (d, d), "k": (d, d), "v": (d, d), "o": (d, d)}
    sides |= {"up": (d, 4 * d), "down": (4 * d, d)}
    keys = iter(jax.random.split(jax.random.key(0), blocks * len(sides) + 1))
    params: Any = {}
    for b in range(blocks):
        block: Any = {"scale": jnp.ones(d)}
        params[f"block{b}"] = block
        for name, shape in sides.items():
            kernel = jax.random.normal(next(keys), shape) / shape[0] ** 0.5
            block[name] = {"kernel": kernel}

    def norm(x: jax.Array) -> jax.Array:
        return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)

    def loss_fn(params: Any, batch: jax.Array) -> jax.Array:
        h = batch
        for block in params.values():
            x = norm(h) * block["scale"]
            q, k, v = (x @ block[name]["kernel"] for name in "qkv")
            weights = jax.nn.softmax(q @ jnp.swapaxes(k, -1, -2) / d**0.5, -1)
            h = h + (weights @ v) @ block["o"]["kernel"]
            up = jax.nn.gelu(norm(h) @ block["up"]["kernel"])
            h = h + up @ block["down"]["kernel"]
        return jnp.mean((h - batch[:, ::-1]) ** 2)

    return params, loss_fn, jax.random.normal(next(keys), (600, length, d))


def table(runs: list[Run]) -> Table:
    """Lay the runs out."""
    shown = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    names = "network", "method", "first s", "XLA s", "of init", "programs", "HLO"
    for name in names:
        shown.add_column(name, justify="right")
    shown.add_column("again s", justify="right")
    shown.add_column("compiled again", justify="right")
    for run in runs:
        counts = str(run.programs), f"{run.hlo:,}"
        times = f"{run.first:.1f}", f"{run.xla:.1f}", f"{run.init:.1f}"
        again = f"{run.again:.2f}", str(run.compiled)
        shown.add_row(run.network, run.method, *times, *counts, *again)
    return shown


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        twice = step_twice if sys.argv[2] in get_args(_Rule) else prune_twice
        print(json.dumps(twice(*sys.argv[2:4])))
    else:
        start(main, tyro.cli(Options))
