"""What long runs of the same work, and sweeps over new objects, leave in memory.

A thousand prunes with fine-tuning and a hundred thousand steps of sparse training in
one process, of the same functions each time: resident memory is to stay flat, and
nothing to be compiled once each was called. Then sweeps in which every repetition
brings a loss, an optimizer or a method of its own: what each leaves behind.

The network has 96 inputs, 64 hidden units and 8 outputs; the work is small, so that
what is left of it shows. Resident memory is read after a collection of garbage.

Writes results.csv.
"""

import dataclasses
import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
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

_WARM = 0.1  # the share of repetitions before memory is read first


@dataclasses.dataclass(frozen=True)
class Options:
    """Repeat work in one process, and measure what it leaves in memory."""

    prunes: int = 1000
    """Of the same network by the same functions."""
    steps: int = 100_000
    """Of sparse training."""
    sweep: int = 100
    """Repetitions with new objects."""
    out: Path = RESULTS / "soak"
    """The folder to write to."""


@dataclasses.dataclass(frozen=True)
class Run:
    """One kind of work, repeated.

    Attributes:
        work: what was repeated.
        repetitions: how often.
        seconds: of all of them.
        compiled: programs compiled after the first three repetitions.
        early: MB resident after a tenth of the repetitions.
        late: MB resident at the end.
        each: MB a repetition in between.
    """

    work: str
    repetitions: int
    seconds: float = 0.0
    compiled: int = 0
    early: float = 0.0
    late: float = 0.0
    each: float = 0.0

    @property
    def key(self) -> tuple[str, int]:
        """What tells runs apart."""
        return self.work, self.repetitions

    def __str__(self) -> str:
        return f"{self.repetitions:,} {self.work}"


def main(options: Options) -> None:
    """Measure what is not measured yet, and show all."""
    options.out.mkdir(parents=True, exist_ok=True)
    counter = Compilations()
    times = dict.fromkeys(_SWEEPS, options.sweep)
    times |= {"prunes": options.prunes, "sparse steps": options.steps}
    wanted = [Run(work, times[work]) for work in _WORK]
    done = complete_csv(
        options.out / "results.csv", wanted, lambda run: repeat(run, counter)
    )
    console.print(table([done[run.key] for run in wanted]))


def repeat(run: Run, counter: Compilations) -> Run:
    """Do the work of a run, and fill in what was measured."""
    work = _WORK[run.work]()
    warm = max(1, int(run.repetitions * _WARM))
    early, first, started = 0.0, 0, time.perf_counter()
    for i in range(run.repetitions):
        work(i)
        if i == 2:  # of each of the three methods of prunes
            first = counter.count
        if i + 1 == warm:
            early = resident()
    seconds, late = time.perf_counter() - started, resident()
    return dataclasses.replace(
        run,
        seconds=round(seconds, 1),
        compiled=counter.count - first,
        early=round(early, 1),
        late=round(late, 1),
        each=round((late - early) / max(1, run.repetitions - warm), 4),
    )


def resident() -> float:
    """Tell the MB of memory that are resident, without garbage."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def table(runs: list[Run]) -> Table:
    """Lay the runs out."""
    shown = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    for name in ("work", "repetitions", "s", "compiled later", "MB", "MB each"):
        shown.add_column(name, justify="right")
    for run in runs:
        numbers = f"{run.seconds:.0f}", str(run.compiled)
        memory = f"{run.early:.0f} to {run.late:.0f}", f"{run.each:.3f}"
        shown.add_row(run.work, f"{run.repetitions:,}", *numbers, *memory)
    return shown


def _network() -> tuple[dict, tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    sizes = {"first": (96, 64), "second": (64, 8)}
    params = {
        name: {"kernel": jnp.asarray(rng.normal(size=size) / 8, jnp.float32)}
        for name, size in sizes.items()
    }
    x = rng.normal(size=(256, 96)).astype(np.float32)
    return params, (x, x[:, :8])


def _loss_fn(params: dict, batch: tuple) -> jax.Array:
    x, y = batch
    hidden = jnp.tanh(x @ params["first"]["kernel"])
    return jnp.mean(jnp.square(hidden @ params["second"]["kernel"] - y))


def _prune(loss_fn: Callable, **options: Any) -> None:
    params, data = _network()
    swapjax.prune(
        loss_fn, params, data, sparsity=0.8, samples=64, key=jax.random.key(0),
        **{"method": swapjax.magnitude(), **options},
    )  # fmt: skip


def _prunes() -> Callable[[int], None]:
    settings = swapjax.FineTune(optax.adam(1e-3), steps=2, batch=32)
    methods = swapjax.magnitude, swapjax.obd, swapjax.linear_regression

    # Methods are made anew, as in users' loops, and take turns.
    def work(i: int) -> None:
        _prune(_loss_fn, method=methods[i % 3](), finetune=settings)

    return work


def _sparse_steps() -> Callable[[int], None]:
    params, data = _network()
    schedule = swapjax.constant(0, 75_000, every=100)
    tx = swapjax.sparse(
        optax.adam(1e-3), swapjax.rigl(), sparsity=0.8, schedule=schedule,
        key=jax.random.key(0),
    )  # fmt: skip

    step = training_step(tx, _loss_fn, data)
    carry = [params, tx.init(params)]

    def work(i: int) -> None:
        carry[:] = step(*carry)

    return work


def _losses() -> Callable[[int], None]:
    def work(i: int) -> None:
        teacher = np.full(100_000, i, np.float32)

        def loss_fn(params: dict, batch: tuple) -> jax.Array:
            return _loss_fn(params, batch) + 0 * jnp.asarray(teacher)[i]

        _prune(loss_fn, method=swapjax.obd())

    return work


def _optimizers() -> Callable[[int], None]:
    def work(i: int) -> None:
        settings = swapjax.FineTune(optax.adam(1e-3 + 1e-6 * i), steps=2, batch=32)
        _prune(_loss_fn, finetune=settings)

    return work


def _settings() -> Callable[[int], None]:
    return lambda i: _prune(_loss_fn, method=swapjax.woodfisher(damping=1e-4 * (i + 1)))


_SWEEPS = {
    "losses": _losses,
    "optimizers": _optimizers,
    "settings of a method": _settings,
}
_WORK = {"prunes": _prunes, "sparse steps": _sparse_steps, **_SWEEPS}


if __name__ == "__main__":
    start(main, tyro.cli(Options))
