"""What `backward_blocks.py` measured, as tables."""

import dataclasses
import statistics
from collections.abc import Sequence

from rich.table import Table


@dataclasses.dataclass(frozen=True)
class Arm:
    """A network and what of its gradients is kept.

    Attributes:
        network: ``"mlp"`` or ``"convolutions"``.
        along: ``"examples"`` or ``"channels"``, ``"nothing"`` for dense gradients.
        keep: share of the blocks that is kept.
    """

    network: str
    along: str
    keep: float

    def __str__(self) -> str:
        return f"{self.network}, {self.along} {self.keep}"


@dataclasses.dataclass(frozen=True)
class Line(Arm):
    """A run.

    Attributes:
        seed: of the run.
        loss: the mean over the steps of the last epoch.
        accuracy: on the test set in the end, in percent.
        seconds: of wall time, compilation included.
    """

    seed: int
    loss: float
    accuracy: float
    seconds: float

    @property
    def key(self) -> tuple[Arm, int]:
        """What tells it from others."""
        return arm_of(self), self.seed


@dataclasses.dataclass(frozen=True)
class Speed(Arm):
    """Training steps, timed by turns with dense ones.

    Attributes:
        milliseconds: of CPU, the median of a step.
        gain: the median over rounds of the dense step's time by that of this step.
        low, high: quartiles of that.
    """

    milliseconds: float
    gain: float
    low: float
    high: float


def arm_of(line: Arm) -> Arm:
    """Take the arm alone."""
    return Arm(line.network, line.along, line.keep)


def rows(speeds: Sequence[Speed], lines: Sequence[Line]) -> list[list[str]]:
    """Make the rows of the table: time, and accuracy as mean and deviation."""
    made = []
    for speed in speeds:
        mine = [line for line in lines if arm_of(line) == arm_of(speed)]
        scores = [line.accuracy for line in mine]
        made.append(
            [
                speed.network,
                "dense" if speed.along == "nothing" else f"{speed.along}, {speed.keep}",
                f"{speed.milliseconds:.1f}",
                f"{speed.gain:.2f}",
                f"{statistics.mean(scores):.2f} ± {statistics.stdev(scores):.2f}",
                f"{statistics.mean(line.loss for line in mine):.4f}",
            ]
        )
    return made


def table(speeds: Sequence[Speed], lines: Sequence[Line]) -> Table:
    """Show them."""
    shown = Table("network", "kept", "ms a step", "gain", "accuracy", "training loss")
    for row in rows(speeds, lines):
        shown.add_row(*row)
    return shown
