"""What it costs to find roles in the program of a loss.

A transformer of 48 blocks, 1.5 thousand million weights, 16,384 tokens a batch: its
layers one after the other, and stacked for a scan. Each runs in a process of its own
that has imported JAX; all is shapes, so that no array of the network is there. Prints
the seconds of tracing, of tracing and roles, and by how much the memory of the process
grew, beside what the network would take.

Exits with 1 beyond the limit.
"""

import concurrent.futures
import dataclasses
import multiprocessing
import resource
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import tyro
from rich.table import Table
from shared import console, start

from swapjax.roles.program import trace_roles

LIMIT = 1.0  # seconds
LAYERS = ("one by one", "scanned")
COLUMNS = ("layers", "leaves", "traced s", "with roles s", "grown MiB", "weights MiB")


@dataclasses.dataclass(frozen=True)
class Options:
    """Time roles from the program of a transformer."""

    blocks: int = 48
    """Blocks of attention and perceptron."""
    width: int = 1600
    """Of the residual stream."""
    tokens: int = 2048
    """Places of each of 8 sequences."""
    vocabulary: int = 50257
    """Rows of the embedding."""


def main(options: Options) -> None:
    """Measure, and show it."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for name in COLUMNS:
        table.add_column(name, justify="left" if name == "layers" else "right")
    seconds = []
    context = multiprocessing.get_context("spawn")
    for layers in LAYERS:
        with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
            row = pool.submit(measure, options, layers).result()
        seconds.append(row[2])
        count, *numbers, weights = row
        told = [f"{n:.2f}" for n in numbers[:2]] + [f"{numbers[2]:.0f}"]
        table.add_row(layers, str(int(count)), *told, f"{weights:,.0f}")
    console.print(table)
    worst = max(seconds)
    console.print(f"{'beyond' if worst >= LIMIT else 'within'} {LIMIT:g} s")
    sys.exit(worst >= LIMIT)


def measure(options: Options, layers: str) -> tuple[float, ...]:
    """Return the numbers of a row of the table, from the second column on."""
    params, loss_fn = network(options, scanned=layers == "scanned")
    batch = jax.ShapeDtypeStruct((8, options.tokens + 1), jnp.int32)
    jax.make_jaxpr(lambda x: x @ x.T)(jnp.ones((2, 2)))  # JAX has started
    before = memory()
    started = time.perf_counter()
    roles = trace_roles(loss_fn, params, batch)
    both = time.perf_counter() - started
    grown = memory() - before
    jax.clear_caches()
    started = time.perf_counter()
    jax.make_jaxpr(loss_fn)(params, batch)
    traced = time.perf_counter() - started
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))
    return len(roles), traced, both, grown, size / 2**20


def memory() -> float:
    """Return the most memory that the process has had so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def network(options: Options, *, scanned: bool) -> tuple[Any, Any]:
    """Return the shapes of a transformer, and its loss."""
    width, heads = options.width, options.width // 64

    def shape(*sizes: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(sizes, jnp.float32)

    block = {
        "attention_norm": shape(width),
        "query": shape(width, heads, 64),
        "key": shape(width, heads, 64),
        "value": shape(width, heads, 64),
        "out": shape(heads, 64, width),
        "norm": shape(width),
        "up": shape(width, 4 * width),
        "up_bias": shape(4 * width),
        "down": shape(4 * width, width),
        "down_bias": shape(width),
    }
    blocks: Any = [block] * options.blocks
    if scanned:
        blocks = jax.tree.map(lambda leaf: shape(options.blocks, *leaf.shape), block)
    params = {
        "embedding": shape(options.vocabulary, width),
        "blocks": blocks,
        "head": shape(width, options.vocabulary),
    }

    def loss_fn(params: Any, ids: jax.Array) -> jax.Array:
        h = params["embedding"][ids[:, :-1]]
        if scanned:
            h, _ = jax.lax.scan(
                lambda h, block: (apply(block, h), None), h, params["blocks"]
            )
        else:
            for block in params["blocks"]:
                h = apply(block, h)
        scores = jax.nn.log_softmax(h @ params["head"])
        return -jnp.take_along_axis(scores, ids[:, 1:, None], -1).mean()

    return params, loss_fn


def apply(block: Any, h: jax.Array) -> jax.Array:
    """Run one block."""

    def norm(h: jax.Array, scale: jax.Array) -> jax.Array:
        centred = h - h.mean(-1, keepdims=True)
        return centred * jax.lax.rsqrt(h.var(-1, keepdims=True) + 1e-6) * scale

    read = norm(h, block["attention_norm"])
    query, key, value = (
        jnp.einsum("bti,ihd->bthd", read, block[name])
        for name in ("query", "key", "value")
    )
    mixed = jax.nn.dot_product_attention(query, key, value, is_causal=True)
    h = h + jnp.einsum("bthd,hdo->bto", mixed, block["out"])
    hidden = jax.nn.gelu(norm(h, block["norm"]) @ block["up"] + block["up_bias"])
    return h + hidden @ block["down"] + block["down_bias"]


if __name__ == "__main__":
    start(main, tyro.cli(Options))
