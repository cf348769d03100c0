"""How far a run is, and how long it will take."""

import dataclasses
import sys
from collections.abc import Callable
from typing import TextIO

_WIDTH = 24


@dataclasses.dataclass(frozen=True)
class Progress:
    """Where a run stands after a block.

    Attributes:
        block: the number of the block that was done last, from 1.
        blocks: how many there are.
        name: of that block, ``layers/3`` or ``layers[3]``.
        seconds: that it took; 0 for those that a file had.
        elapsed: seconds since the run began, or went on.
        left: seconds that are left if an entry takes as long as until now; NaN where
            nothing was done yet.
    """

    block: int
    blocks: int
    name: str
    seconds: float
    elapsed: float
    left: float

    def __str__(self) -> str:
        done = f"block {self.block} of {self.blocks} ({self.name})"
        return f"{done}, {clock(self.elapsed)} gone, {clock(self.left)} left"


def clock(seconds: float) -> str:
    """Write a time as minutes and seconds, or with hours.

    Example:
        >>> clock(75), clock(3675), clock(float("nan"))
        ('1:15', '1:01:15', '?')
    """
    if seconds != seconds:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def show(stream: TextIO | None = None) -> Callable[[Progress], None]:
    """Make a function that shows progress: a bar on a terminal, lines elsewhere.

    Args:
        stream: to write to, by default ``sys.stderr``.
    """

    def write(progress: Progress) -> None:
        out = sys.stderr if stream is None else stream
        if not out.isatty():
            print(progress, file=out, flush=True)
            return
        full = _WIDTH * progress.block // progress.blocks
        bar = "#" * full + "-" * (_WIDTH - full)
        end = "\n" if progress.block == progress.blocks else ""
        print(f"\r\x1b[K[{bar}] {progress}", end=end, file=out, flush=True)

    return write
