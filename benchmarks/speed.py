"""Kernels beside what one would use instead, in one process.

- exact global top-k of 10^7 weights, with and without ties, against ``lax.top_k`` and a
  sort;
- entropic couplings against POT at the same regularisation and accuracy;
- per-example gradients against a loop of ``jax.grad``.

Prints a table and writes results.json and results.png.
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
import tyro
from flax import nnx
from matplotlib.figure import Figure
from rich.table import Table
from shared import RESULTS, console, fastest, start, told

import swapjax
from swapjax.core import files
from swapjax.experiments import models, plot
from swapjax.gradients.build import recipe
from swapjax.gradients.stored import store
from swapjax.pruning.solvers.sinkhorn import entropic
from swapjax.sparsity.topk import top_k_mask

Measured = dict[str, dict[str, float]]


@dataclasses.dataclass(frozen=True)
class Options:
    """Time kernels beside their alternatives."""

    weights: int = 10_000_000
    """Entries to select from."""
    points: int = 1000
    """Projections to couple."""
    rows: int = 1000
    """Gradients of single examples."""
    repeats: int = 3
    """The fastest of so many calls counts."""
    out: Path = RESULTS / "speed"
    """The folder for results.json and results.png."""


def main(options: Options) -> None:
    """Measure everything, then show it."""
    tasks = {t.__name__: t for t in (selection, coupling, gradients)}
    found: Measured = {}
    for name in told(list(tasks)):
        found |= tasks[name](options)
    console.print(table(found))
    options.out.mkdir(parents=True, exist_ok=True)
    files.write_text(options.out / "results.json", json.dumps(found, indent=1) + "\n")
    plot.save(figure(found), options.out / "results.png")
    console.print(f"Written to {options.out}.", soft_wrap=True)


def selection(options: Options) -> Measured:
    """Top-k masks of a tenth of the weights."""
    smooth = jax.random.normal(jax.random.key(0), (options.weights,))
    k = options.weights // 10

    def by_top_k(x: jax.Array) -> jax.Array:
        return jnp.zeros(x.shape, bool).at[jax.lax.top_k(x, k)[1]].set(True)

    def by_sort(x: jax.Array) -> jax.Array:
        order = jnp.argsort(-x, stable=True)
        return jnp.zeros(x.shape, bool).at[order[:k]].set(True)

    ways: dict[str, Callable] = {
        "bisection": lambda x: top_k_mask(x, k),
        "lax.top_k": by_top_k,
        "sort": by_sort,
    }
    result = {}
    for name, x in {"": smooth, ", ties": jnp.round(smooth, 1)}.items():
        masks = {}
        times = {}
        for way, work in ways.items():
            jitted = jax.jit(work)
            masks[way] = np.asarray(jitted(x))
            times[way] = fastest(jitted, x, repeats=options.repeats)
        assert all((m == masks["sort"]).all() for m in masks.values())
        result[f"top {k:,} of {options.weights:,}{name}"] = times
    return result


def coupling(options: Options) -> Measured:
    """One entropic coupling of two clouds on the line."""
    import ot

    rng = np.random.default_rng(0)
    x = np.sort(rng.normal(size=options.points))
    y = x + 0.3 * rng.normal(size=options.points)
    cost = (x[:, None] - y) ** 2
    mass = np.full(options.points, 1 / options.points)
    result = {}
    for epsilon in (1.0, 0.1):
        ours = jax.jit(entropic)
        found = ours(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32), epsilon)
        error = max(float(found.marginal_error), 1e-6)
        peer = functools.partial(
            ot.sinkhorn, mass, mass, cost, epsilon, method="sinkhorn_log", stopThr=error
        )
        args = jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32), epsilon
        result[f"coupling, epsilon {epsilon:g}"] = {
            "swapjax": fastest(ours, *args, repeats=options.repeats),
            "POT": fastest(peer, repeats=1),
        }
    return result


def gradients(options: Options) -> Measured:
    """Rows of MLPNet's size."""
    graph, state = nnx.split(models.MLP((784, 40, 20, 10), rngs=nnx.Rngs(0)))
    params = nnx.to_pure_dict(state)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(options.rows, 784)), jnp.float32)
    y = jnp.asarray(rng.integers(0, 10, options.rows))

    def loss_fn(params: Any, batch: Any) -> jax.Array:
        logits = nnx.merge(graph, params)(batch[0])
        chosen = jnp.take_along_axis(logits, batch[1][:, None], axis=1)
        return jnp.mean(jax.nn.logsumexp(logits, axis=1) - chosen[:, 0])

    plan = swapjax.plan(params, 0.5)
    free = recipe(loss_fn, params, (x, y), plan)
    one = jax.jit(jax.grad(loss_fn))

    def loop() -> list:
        return [one(params, (x[i : i + 1], y[i : i + 1])) for i in range(options.rows)]

    v = plan.layout.split(params)
    project = jax.jit(lambda r, v: r.project(v))
    return {
        f"{options.rows:,} gradients": {
            "swapjax, stored": fastest(store, free, repeats=options.repeats),
            "loop of jax.grad": fastest(loop, repeats=1),
        },
        f"{options.rows:,} projections": {
            "swapjax, matrix-free": fastest(project, free, v, repeats=options.repeats),
        },
    }


def table(found: Measured) -> Table:
    """One line a way to do a thing."""
    result = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for name in ("what", "how"):
        result.add_column(name, no_wrap=True)
    result.add_column("seconds", justify="right")
    result.add_column("times ours", justify="right")
    for what, ways in found.items():
        ours = next(iter(ways.values()))
        for how, seconds in ways.items():
            result.add_row(what, how, f"{seconds:.4f}", f"{seconds / ours:.1f}")
            what = ""
    return result


def figure(found: Measured) -> Figure:
    """Draw a bar per way, on a logarithmic axis."""
    result = Figure(figsize=(7.5, 4.5), layout="constrained")
    axes = result.subplots()
    names, values, colours = [], [], []
    for what, ways in found.items():
        for i, (how, seconds) in enumerate(ways.items()):
            names.append(f"{what}: {how}")
            values.append(seconds)
            colours.append("C0" if i == 0 else "0.7")
    axes.barh(range(len(names)), values, color=colours)
    axes.set_yticks(range(len(names)), names, fontsize="small")
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("seconds")
    return result


if __name__ == "__main__":
    start(main, tyro.cli(Options))
