"""Block by block: a transformer of 1.3 billion weights, pruned on a small machine.

Random weights in float16 on the host, pruned by `swapjax.prune(..., sequential=True)`.
Each line is a process of its own, which tells CPU seconds and peak memory: all of it,
and what is above the weights. Finished blocks are kept in a file, and a line that was
interrupted goes on from there; so do the lines themselves, which results.csv holds.
"""

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from shared import RESULTS, complete_csv, console, start

import swapjax

WIDTH, HIDDEN, HEADS, WORDS = 2048, 8192, 16, 50257
SEQUENCES, TOKENS = 2, 128
METHODS = {
    "wanda": swapjax.wanda(),
    "layerwise-obs, columns": swapjax.layerwise_obs(order="columns", refit=False),
}
METHODS["layerwise-obs, columns, by layer"] = METHODS["layerwise-obs, columns"]
# Without it glibc keeps what is freed, more or less of it from run to run.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "1000000", "MALLOC_ARENA_MAX": "1"}


@dataclasses.dataclass
class Line:
    """One measurement.

    Attributes:
        layers: of the transformer.
        method: that prunes it; by layer, if each layer is a block.
        prunable: weights in its layers.
        weights: MB of all params on the host.
        peak: MB of memory that the process ever held, weights and libraries included.
        above: the same, less the weights.
        cpu: seconds, compilation included.
        rate: prunable weights a CPU second.
        before: the loss of the examples.
        after: the same, pruned.
        sparsity: of the layers.
    """

    layers: int
    method: str
    prunable: int = 0
    weights: float = 0.0
    peak: float = 0.0
    above: float = 0.0
    cpu: float = 0.0
    rate: float = 0.0
    before: float = 0.0
    after: float = 0.0
    sparsity: float = 0.0

    @property
    def key(self) -> str:
        """Name the line."""
        return f"{self.layers} layers, {self.method}"

    def __str__(self) -> str:
        return self.key


GRID = (
    Line(24, "wanda"),
    Line(12, "wanda"),
    Line(1, "layerwise-obs, columns"),
    Line(1, "layerwise-obs, columns, by layer"),
    Line(4, "layerwise-obs, columns"),
)


@dataclasses.dataclass(frozen=True)
class Options:
    """Measure pruning block by block."""

    out: Path = RESULTS / "sequential"
    """The folder for results.csv."""
    only: str | None = None
    """Measure one line, as JSON, in this process; for internal use."""


def main(options: Options) -> None:
    """Measure what is left, then show everything."""
    options.out.mkdir(parents=True, exist_ok=True)
    done = complete_csv(options.out / "results.csv", GRID, in_own_process)
    for line in done.values():
        console.print(
            f"{line}: {line.cpu:.0f} CPU s, {line.rate:,.0f} weights a CPU second, "
            f"peak {line.peak:,.0f} MB, {line.above:,.0f} MB above the weights"
        )


def in_own_process(line: Line) -> Line:
    """Measure one line."""
    command = [sys.executable, __file__, "--only", json.dumps(dataclasses.asdict(line))]
    out = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | MALLOC
    )
    if out.returncode:
        raise RuntimeError(f"{line} ended with {out.returncode}")
    return Line(**json.loads(out.stdout.splitlines()[-1]))


def measure(line: Line) -> Line:
    """Prune a transformer in this process."""
    params, batch = network(line.layers), examples()
    weights = sum(x.nbytes for x in jax.tree.leaves(params)) / 1e6
    started = time.process_time()
    name = line.key.replace(" ", "-").replace(",", "")
    checkpoint = Path(tempfile.gettempdir()) / f"swapjax-{name}.safetensors"

    def show(progress: swapjax.Progress) -> None:
        print(progress, f"peak {held():,.0f} MB", file=sys.stderr, flush=True)

    pruned = swapjax.prune(
        loss_fn, params, batch, sparsity=0.5, method=METHODS[line.method],
        samples=SEQUENCES, key=jax.random.key(0), sequential=True,
        checkpoint=checkpoint, progress=show,
        blocks="layers" if line.method.endswith("by layer") else None,
    )  # fmt: skip
    cpu, last, peak = time.process_time() - started, pruned.history[-1], held()
    prunable = sum(x.size for x in jax.tree.leaves(pruned.masks) if x.ndim)
    checkpoint.unlink()
    return dataclasses.replace(
        line, prunable=prunable, weights=weights, peak=peak,
        above=peak - weights, cpu=cpu, rate=prunable / cpu,
        before=pruned.history[0].loss_before, after=last.loss, sparsity=last.sparsity,
    )  # fmt: skip


def held() -> float:
    """Tell the most memory that this process ever held, in MB."""
    status = Path("/proc/self/status").read_text()
    (line,) = (x for x in status.splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6


def network(layers: int) -> Any:
    """Draw the weights of a transformer, its layers stacked as a scan takes them."""
    pool = np.random.default_rng(0).standard_normal(2**24 + 1, dtype=np.float32)
    taken = 0

    def fill(target: np.ndarray, scale: float) -> None:
        """Take numbers of the pool, from where the last ended: drawing takes longer."""
        nonlocal taken
        flat = target.reshape(-1)
        for begin in range(0, flat.size, 2**22):
            part = flat[begin : begin + 2**22]
            place = (taken + begin) % (2**24 - 2**22)
            part[:] = pool[place : place + part.size] * np.float32(scale)
        taken += flat.size + 12345

    shapes = {
        "query": (WIDTH, WIDTH), "key": (WIDTH, WIDTH), "value": (WIDTH, WIDTH),
        "out": (WIDTH, WIDTH), "up": (WIDTH, HIDDEN), "down": (HIDDEN, WIDTH),
    }  # fmt: skip
    blocks = {name: np.ones((layers, WIDTH), np.float16) for name in ("norm", "again")}
    for name, shape in shapes.items():
        blocks[name] = np.empty((layers, *shape), np.float16)
        for layer in blocks[name]:
            fill(layer, shape[0] ** -0.5)
    table = np.empty((WORDS, WIDTH), np.float16)
    fill(table, 0.02)
    return {"table": table, "norm": np.ones(WIDTH, np.float16), "blocks": blocks}


def examples() -> tuple[np.ndarray, np.ndarray]:
    """Draw sequences of words, and the word after each."""
    words = np.random.default_rng(1).integers(0, WORDS, (SEQUENCES, TOKENS + 1))
    return words[:, :-1], words[:, 1:]


def normed(x: jax.Array, scale: jax.Array) -> jax.Array:
    """Divide by the root mean square."""
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6) * scale


def block(params: Any, h: jax.Array) -> jax.Array:
    """Go through one layer, in float32."""
    p = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    x = normed(h, p["norm"])

    def heads(name: str) -> jax.Array:
        return (x @ p[name]).reshape(*x.shape[:2], HEADS, -1).transpose(0, 2, 1, 3)

    scores = heads("query") @ heads("key").swapaxes(-1, -2) / np.sqrt(WIDTH / HEADS)
    seen = jnp.where(jnp.tril(jnp.ones(scores.shape[-2:], bool)), scores, -1e30)
    mixed = (jax.nn.softmax(seen) @ heads("value")).transpose(0, 2, 1, 3)
    h = h + mixed.reshape(h.shape) @ p["out"]
    return h + jax.nn.gelu(normed(h, p["again"]) @ p["up"]) @ p["down"]


def loss_fn(params: Any, batch: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Tell the cross-entropy of the next word."""
    words, wanted = batch
    h = params["table"][words].astype(jnp.float32)
    h, _ = jax.lax.scan(lambda h, p: (block(p, h), None), h, params["blocks"])
    h = normed(h, params["norm"].astype(jnp.float32))
    told = jax.nn.log_softmax(h @ params["table"].T.astype(jnp.float32))
    return -jnp.mean(jnp.take_along_axis(told, wanted[..., None], axis=-1))


if __name__ == "__main__":
    options = tyro.cli(Options)
    if options.only is None:
        start(main, options)
    else:
        found = measure(Line(**json.loads(options.only)))
        print(json.dumps(dataclasses.asdict(found)))
