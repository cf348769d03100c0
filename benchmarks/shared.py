"""What the benchmarks share: runs in CSV files, a clock, and how a script ends."""

import csv
import dataclasses
import io
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import jax

from swapjax.cli.console import console
from swapjax.core import files

DATA = Path(__file__).parents[2] / "shared"  # MNIST, CIFAR-10, published weights
RESULTS = Path(__file__).parent / "results"
Run = TypeVar("Run")


def read_runs(path: Path, kind: type[Run]) -> list[Run]:
    """The runs of an earlier call, none without a file.

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
    """The seconds of a call."""
    started = time.perf_counter()
    jax.block_until_ready(work(*args))
    return time.perf_counter() - started


def fastest(work: Callable, *args: Any, repeats: int = 3) -> float:
    """The seconds of the fastest of some calls after the first."""
    jax.block_until_ready(work(*args))
    return min(clock(work, *args) for _ in range(repeats))


def start(main: Callable[..., None], *args: Any) -> None:
    """Call what a script is for; Ctrl-C ends it in a line."""
    try:
        main(*args)
    except KeyboardInterrupt:
        console.print("Interrupted; call it again to go on.")


def _read(kind: Any, text: str) -> Any:
    """A cell as a type, or as the first of a union."""
    return (get_args(kind) or (kind,))[0](text)
