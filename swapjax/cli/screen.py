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

console = Console()
errors = Console(stderr=True)


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
    )
    with bar:
        yield bar, bar.add_task(what, total=total)


def require_writable(path: Path, name: str) -> None:
    """Raise early if a file or folder could not be made there; nothing is made.

    Raises:
        ValueError: naming the option.
    """
    existing = path
    while not existing.exists():
        existing = existing.parent
    if existing != path and not existing.is_dir():
        raise ValueError(f"{name} {path}: {existing} is not a folder")
    if not os.access(existing, os.W_OK):
        raise ValueError(f"{name} {path}: {existing} cannot be written to")
