"""What the commands show while they work, and how they fail."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Any, TextIO

from swapjax.cli import ending
from swapjax.core import extras
from swapjax.core.text import printable

try:
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
    from rich.text import Text
except ImportError:
    extras.require("cli", __name__)
    raise

_PERIOD = 24 * 3600.0  # of the steps that an estimate looks back on; rich's is 30 s


class Screen(Console):
    """A console that shows what others have named, and obeys none of it.

    Names of files and leaves may hold what looks like markup or an emoji's name, and
    what a terminal would take for a command.

    Attributes:
        results: the standard output while nothing but results goes there, else None.
    """

    results: TextIO | None = None

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **options)

    @property
    def encoding(self) -> str:
        """The encoding of what is written to by now; rich asks a file of its own."""
        return (getattr(self.file, "encoding", None) or "utf-8").lower()

    def render_str(self, text: str, **options: Any) -> Text:
        """Make a text of a string, what a terminal would obey spelled out."""
        return super().render_str(printable(text, keep="\n"), **options)

    def on_broken_pipe(self) -> None:
        """Say no more where nobody listens; the work goes on, its results are files."""
        self.quiet = True
        ending.silence(self.file)


console = Screen()
errors = Screen(stderr=True)


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
        disable=console.quiet or not errors.is_terminal,
    )
    with bar:
        yield bar, bar.add_task(what, total=total)


@contextmanager
def speaking(*, quiet: bool = False, aside: bool = False) -> Iterator[None]:
    """Say what a command says elsewhere, or not at all.

    Args:
        quiet: say nothing but errors and warnings.
        aside: say it to the standard error stream, as the standard output has results.
            So goes what modules of users print.
    """
    before = console.quiet, console.results
    console.quiet = quiet or console.quiet
    console.results = sys.stdout if aside else None
    try:
        with redirect_stdout(sys.stderr) if aside else nullcontext():
            yield
    finally:
        console.quiet, console.results = before


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
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(f"{name} {folder}: {existing} cannot be written to")
