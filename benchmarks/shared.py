"""What the benchmarks share: one loop that resumes, runs in files, clocks."""

import csv
import dataclasses
import io
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import jax
import optax
from rich.console import Console

from swapjax.core import files

DATA = Path(__file__).parents[2] / "shared"  # MNIST, CIFAR-10, published weights
RESULTS = Path(__file__).parent / "results"
_COMPILED = "/jax/core/compile/backend_compile_duration"
Run = TypeVar("Run")
Item = TypeVar("Item")
# Names may hold what looks like rich's markup.
console = Console(markup=False)


class Compilations:
    """What XLA compiled: how many programs, in how many CPU seconds."""

    def __init__(self) -> None:
        self.count, self.seconds, self._last = 0, 0.0, time.process_time()
        jax.monitoring.register_event_duration_secs_listener(self._hear)

    def _hear(self, event: str, duration_secs: float, **_: str | int) -> None:
        # Lowering, which ends where compilation begins, is an event too.
        now = time.process_time()
        if event == _COMPILED:
            self.count += 1
            self.seconds += now - self._last
        self._last = now


def told(items: Sequence[Item]) -> Iterator[Item]:
    """Yield items, each after a line that names it and before one with its seconds."""
    for number, item in enumerate(items, 1):
        console.print(f"{number} of {len(items)}: {item}", soft_wrap=True)
        started = time.perf_counter()
        yield item
        console.print(f"  {time.perf_counter() - started:.1f} s", highlight=False)


def complete(
    wanted: Sequence[Item],
    done: dict[Any, Any],
    work: Callable[[Item], Mapping[Any, Any]],
    save: Callable[[dict[Any, Any]], None],
    keys: Callable[[Item], Iterable[Any]],
) -> None:
    """Do what is not done yet, and save all after each.

    Args:
        wanted: what to do; ``str(item)`` names it while it is done.
        done: results of earlier calls by key; new ones are added.
        work: gives the results of an item by key.
        save: writes ``done``, whole or not at all.
        keys: of the results that an item must have to be done.
    """
    left = [item for item in wanted if not all(key in done for key in keys(item))]
    console.print(f"{len(wanted) - len(left)} of {len(wanted)} runs are done already.")
    for item in told(left):
        done |= work(item)
        save(done)


def complete_csv(
    path: Path, wanted: Sequence[Any], work: Callable[[Any], Any]
) -> dict[Any, Any]:
    """Do the runs that a CSV file does not hold yet, and write each as it ends.

    Args:
        path: of a CSV file by `write_runs`, or of one to be.
        wanted: runs of one dataclass with a ``key``, without their measurements.
        work: fills in the measurements of a run.

    Returns:
        All runs of the file by key, wanted or not.
    """
    done = {run.key: run for run in read_runs(path, type(wanted[0]))} if wanted else {}
    complete(
        wanted,
        done,
        lambda run: {run.key: work(run)},
        lambda done: write_runs(path, list(done.values())),
        lambda run: (run.key,),
    )
    return done


def read_runs(path: Path, kind: type[Run]) -> list[Run]:
    """Read the runs of an earlier call, none without a file.

    Args:
        path: of a CSV file by `write_runs`.
        kind: a dataclass of strings and numbers.
    """
    if not path.exists():
        return []
    types = get_type_hints(kind)
    with path.open(newline="") as file:
        return [
            kind(**{name: _read(types[name], text) for name, text in row.items()})
            for row in csv.DictReader(file)
        ]


def write_runs(path: Path, runs: Sequence[Any]) -> None:
    """Write all runs, whole or not at all."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [field.name for field in dataclasses.fields(runs[0])])
    writer.writeheader()
    writer.writerows(dataclasses.asdict(run) for run in runs)
    files.write_text(path, text.getvalue())


def clock(work: Callable, *args: Any) -> float:
    """Return the seconds of a call."""
    started = time.perf_counter()
    jax.block_until_ready(work(*args))
    return time.perf_counter() - started


def fastest(work: Callable, *args: Any, repeats: int = 3) -> float:
    """Return the seconds of the fastest of some calls after the first."""
    jax.block_until_ready(work(*args))
    return min(clock(work, *args) for _ in range(repeats))


def training_step(
    tx: optax.GradientTransformation, loss_fn: Callable, batch: Any
) -> Callable[[Any, Any], tuple[Any, Any]]:
    """Make the compiled ``(params, state) -> (params, state)`` of users' loops."""

    @jax.jit
    def step(params: Any, state: Any) -> tuple[Any, Any]:
        slopes = jax.grad(loss_fn)(params, batch)
        updates, state = tx.update(slopes, state, params)
        return optax.apply_updates(params, updates), state

    return step


def start(main: Callable[..., None], *args: Any) -> None:
    """Call what a script is for; Ctrl-C ends it in a line."""
    try:
        main(*args)
    except KeyboardInterrupt:
        console.print("Interrupted; call it again to go on.")


def _read(kind: Any, text: str) -> Any:
    """Read a cell as a type, or as the first of a union."""
    return (get_args(kind) or (kind,))[0](text)
