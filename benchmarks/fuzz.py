"""Ten thousand damaged files of every kind that swapjax reads.

The same damage each time, drawn from a seed and the number of the input. A reader may
refuse a file in one line that names it, or accept it: what is accepted and covered by
checksums or a digest is as it was, bit for bit, and anything else is finite and whole.

Exits with 1 where something else came to pass; writes results.json.
"""

import collections
import dataclasses
import json
import random
import resource
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import tyro
from damage import FaultError, Kind, Outcome, attack
from damaged_files import kinds
from rich.table import Table
from shared import RESULTS, console, start

from swapjax.core import files


@dataclasses.dataclass(frozen=True)
class Options:
    """Damage files and read them."""

    inputs: int = 10_000
    """How many, spread evenly over the kinds of files."""
    seed: int = 0
    """Of the damage."""
    out: Path = RESULTS / "fuzz"
    """The folder to write to."""


def main(options: Options) -> None:
    """Damage, read, and show what it came to."""
    options.out.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("error")  # a reader has nothing to say besides its sentence
    with tempfile.TemporaryDirectory() as folder:
        found = kinds(Path(folder))
        before = peak()
        each = -(-options.inputs // len(found))
        rows = [run(kind, Path(folder), each, options.seed) for kind in found]
    console.print(table(rows))
    grown = peak() - before
    console.print(f"The process grew by at most {grown:.0f} MB.")
    text = json.dumps({"kinds": rows, "grown_mb": round(grown)}, indent=1) + "\n"
    files.write_text(options.out / "results.json", text)
    console.print(f"Written to {options.out}.", soft_wrap=True)
    sys.exit(any(row["faults"] for row in rows))


def run(kind: Kind, folder: Path, inputs: int, seed: int) -> dict[str, Any]:
    """Damage files of a kind; tell how often they came to what, and how long it took.

    Returns:
        The name of the kind, bytes of a sound file, counts by outcome, and the seconds
        of the slowest input.
    """
    path = folder / f"damaged{kind.suffix}"
    path.write_bytes(kind.content)
    sound = kind.read(path)
    counts: collections.Counter[str] = collections.Counter()
    slowest = 0.0
    for number in range(inputs):
        started = time.perf_counter()
        chance = random.Random(f"{seed} {kind.name} {number}")
        try:
            counts[attack(kind, path, sound, chance).value] += 1
        except FaultError as e:
            counts["faults"] += 1
            console.print(f"{kind.name}, input {number}: {e}", soft_wrap=True)
        slowest = max(slowest, time.perf_counter() - started)
    told = {name: counts[name] for name in (*Outcome, "faults")}
    size = len(kind.content)
    return {"kind": kind.name, "bytes": size, **told, "slowest_s": round(slowest, 2)}


def peak() -> float:
    """Return the most memory that this process has held, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def table(rows: list[dict[str, Any]]) -> Table:
    """Show how many inputs of each kind came to what."""
    result = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for name in rows[0]:
        left = name == "kind"
        result.add_column(name, justify="left" if left else "right", no_wrap=left)
    for row in rows:
        result.add_row(*map(str, row.values()))
    return result


if __name__ == "__main__":
    start(main, tyro.cli(Options))
