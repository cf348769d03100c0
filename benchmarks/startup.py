"""How long the command takes to answer, beside an import of JAX.

``swapjax --help`` and ``swapjax --version`` must take less than 1.5 times as long as
``import jax``. Each is a process of its own, all by turns, so that what else the
machine does meets all of them. Prints the best and the median of the times.

Exits with 1 beyond the limit.
"""

import dataclasses
import subprocess
import sys
import time

import numpy as np
import tyro
from rich.table import Table
from shared import console, start

LIMIT = 1.5
COMMANDS = {
    "import jax": ("-c", "import jax"),
    "import swapjax": ("-c", "import swapjax"),
    "import swapjax, use it": ("-c", "import swapjax; swapjax.prune"),
    "swapjax --version": ("-m", "swapjax.cli", "--version"),
    "swapjax --help": ("-m", "swapjax.cli", "--help"),
    "swapjax prune --help": ("-m", "swapjax.cli", "prune", "--help"),
    "swapjax train --help": ("-m", "swapjax.cli", "train", "--help"),
}
LIMITED = ("swapjax --version", "swapjax --help")


@dataclasses.dataclass(frozen=True)
class Options:
    """Time the start of the command."""

    repeats: int = 10
    """Runs of each, after one that does not count."""


def main(options: Options) -> None:
    """Measure, and show it."""
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for repeat in range(1 + options.repeats):
        for name, words in COMMANDS.items():
            seconds = answer(words)
            if repeat:
                times[name].append(seconds)
    console.print(table(times))
    over = [name for name in LIMITED if ratio(times, name) >= LIMIT]
    verdict = f"beyond {LIMIT:g}: {', '.join(over)}" if over else f"within {LIMIT:g}"
    console.print(verdict)
    sys.exit(bool(over))


def answer(words: tuple[str, ...]) -> float:
    """Return the seconds of a process."""
    started = time.perf_counter()
    command = [sys.executable, *words]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def ratio(times: dict[str, list[float]], name: str) -> float:
    """Return how many times as long as an import of JAX, by the best of each."""
    return min(times[name]) / min(times["import jax"])


def table(times: dict[str, list[float]]) -> Table:
    """Show seconds, and how many times those of an import of JAX."""
    result = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    result.add_column("what", no_wrap=True)
    for name in ("best s", "median s", "times jax"):
        result.add_column(name, justify="right")
    for name, found in times.items():
        numbers = (min(found), float(np.median(found)), ratio(times, name))
        result.add_row(name, *(f"{number:.3f}" for number in numbers))
    return result


if __name__ == "__main__":
    start(main, tyro.cli(Options))
