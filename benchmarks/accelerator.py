"""What the parts of a stage cost on the device that JAX takes by default.

ResNet-20 with random weights, on random images: rows of gradients, stored, by how many
are taken at once, beside the plain gradient of as many images, and the mean loss; then
`swapjax.prune` in one stage by each method. Wall seconds of the first call, which
compiles, and the least of two later ones, at other sparsities. It needs no data and a
few minutes, and is meant for GPUs and TPUs; on a CPU ask for few rows.

Writes results.csv after every line and goes on where it stopped.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.table import Table
from shared import RESULTS, clock, complete_csv, console, start

import swapjax
from swapjax.experiments import models
from swapjax.gradients.build import per_example_gradients
from swapjax.pruning import Method

METHODS: dict[str, Method] = {
    "magnitude": swapjax.magnitude(),
    "obd": swapjax.obd(),
    "wanda": swapjax.wanda(per_output=False),
    "linear-regression": swapjax.linear_regression(first_order=False),
    "swap": swapjax.swap(first_order=False),
    "kfac-regression": swapjax.kfac_regression(first_order=False),
    "chita": swapjax.chita(),
    "woodfisher": swapjax.woodfisher(),
    "layerwise-obs": swapjax.layerwise_obs(),
    "alps": swapjax.alps(),
}
PLAIN, LOSS = "plain gradient", "mean loss"


@dataclasses.dataclass(frozen=True)
class Options:
    """Time the parts of a stage on an accelerator."""

    rows: int = 500
    """Of gradients."""
    batch: int = 16
    """Images a row."""
    chunks: tuple[int, ...] = (1, 8, 32, 128)
    """Rows taken at once, beside the library's choice."""
    methods: tuple[str, ...] = tuple(METHODS)
    """Any of those in the table."""
    out: Path = RESULTS / "accelerator"
    """The folder for results.csv."""


@dataclasses.dataclass(frozen=True)
class Run:
    """One line of the results."""

    device: str
    rows: int
    batch: int
    part: str
    first: float = float("nan")
    later: float = float("nan")

    def __str__(self) -> str:
        return f"{self.part}, {self.rows} rows of {self.batch}"

    @property
    def key(self) -> tuple:
        """What tells it from other lines."""
        return self.device, self.rows, self.batch, self.part


def main(options: Options) -> None:
    """Do what is left to do, then show everything."""
    device = jax.devices()[0].device_kind
    chunks = {"rows, as many as by default": None} | {
        f"rows, {count} at once": count for count in options.chunks
    }
    wanted = [
        Run(device, options.rows, options.batch, part)
        for part in (LOSS, PLAIN, *chunks, *options.methods)
    ]
    options.out.mkdir(parents=True, exist_ok=True)
    score = functools.partial(measure, chunks)
    done = complete_csv(options.out / "results.csv", wanted, score)
    shown = Table("device", "rows", "part", "first, s", "later, s")
    for run in done.values():
        size = f"{run.rows} x {run.batch}"
        shown.add_row(run.device, size, run.part, f"{run.first}", f"{run.later}")
    console.print(shown)


def measure(chunks: Mapping[str, int | None], run: Run) -> Run:
    """Time one part."""
    first, *later = (round(clock(work), 3) for work in works(chunks, run))
    return dataclasses.replace(run, first=first, later=min(later))


def works(chunks: Mapping[str, int | None], run: Run) -> Sequence[Callable[[], Any]]:
    """Make three calls of a part; chunks are rows taken at once, by part."""
    model, params, data = setting(run.rows * run.batch)
    if run.part in METHODS:
        return [
            functools.partial(prune, run, METHODS[run.part], sparsity)
            for sparsity in (0.8, 0.9, 0.7)
        ]
    if run.part in (LOSS, PLAIN):
        function = model.loss_fn if run.part == LOSS else jax.grad(model.loss_fn)
        images = 500  # at once, so that any device has room
        call = jax.jit(function)
        return 3 * [
            lambda: [
                call(params, jax.tree.map(lambda x, i=i: x[i : i + images], data))
                for i in range(0, run.rows * run.batch, images)
            ]
        ]
    plan = swapjax.plan(params, 0.8, exclude="downsample")
    form = functools.partial(
        per_example_gradients, model.loss_fn, params, data, plan,
        batch=run.batch, storage="stored", chunk=chunks[run.part],
    )  # fmt: skip
    return 3 * [form]


def prune(run: Run, method: Method, sparsity: float) -> Any:
    """Prune in one stage."""
    model, params, data = setting(run.rows * run.batch)
    plan = swapjax.plan(params, sparsity, exclude="downsample")
    return swapjax.prune(
        model.loss_fn, params, data, plan=plan, method=method, samples=run.rows,
        batch=run.batch, key=jax.random.key(0),
    ).params  # fmt: skip


@functools.cache
def setting(images: int) -> tuple[models.Model, Any, Any]:
    """Draw a network and images."""
    model = models.create("resnet20", (32, 32, 3), 10)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(images, 32, 32, 3)).astype(np.float32)
    y = rng.integers(10, size=images).astype(np.int32)
    return model, model.params, (jnp.asarray(x), jnp.asarray(y))


if __name__ == "__main__":
    start(main, tyro.cli(Options, description=__doc__))
