"""What the commands show while they work, and how they fail."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

# Names of files and leaves may hold what looks like rich's markup.
console = Console(markup=False)
errors = Console(stderr=True, markup=False)
_PERIOD = 24 * 3600.0  # of the steps that an estimate looks back on; rich's is 30 s


@contextmanager
def progress(what: str, total: int) -> Iterator[tuple[Progress, TaskID]]:
    """Show a bar with the time that is left; it disappears when done."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
        console=errors,
        transient=True,
        speed_estimate_period=_PERIOD,
        disable=not errors.is_terminal,
    )
    with bar:
        yield bar, bar.add_task(what, total=total)


def require_writable(folder: Path, name: str) -> None:
    """Raise early if a folder could not be made or written to; nothing is made.

    Raises:
        ValueError: naming the option.
    """
    existing = folder
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir():
        raise ValueError(f"{name} {folder}: {existing} is not a folder")
    if not os.access(existing, os.W_OK):
        raise ValueError(f"{name} {folder}: {existing} cannot be written to")
