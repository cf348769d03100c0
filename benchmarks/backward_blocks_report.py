"""What `backward_blocks.py` measured, in a table."""

import dataclasses
import math
import statistics
from collections.abc import Sequence


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


def report(speeds: Sequence[Speed], lines: Sequence[Line]) -> str:
    """Tell times, and accuracy as mean and deviation over seeds, in Markdown.

    A run whose loss is above that of guessing has diverged.
    """
    text = [
        "| network | kept | ms a step | gain | quartiles | accuracy | training loss |",
        "|---|---|---|---|---|---|---|",
    ]
    for speed in sorted(speeds, key=_order):
        mine = [line for line in lines if arm_of(line) == arm_of(speed)]
        fine = [line for line in mine if line.loss < math.log(10)]
        accuracy = loss = f"{len(mine) - len(fine)} of {len(mine)} diverged"
        if len(fine) == len(mine):
            scores = [line.accuracy for line in mine]
            accuracy = f"{statistics.mean(scores):.2f} ± {statistics.stdev(scores):.2f}"
            loss = f"{statistics.mean(line.loss for line in mine):.4f}"
        kept = f"{speed.keep} of {speed.along}"
        text.append(
            f"| {speed.network} | {'all' if speed.along == 'nothing' else kept} "
            f"| {speed.milliseconds:.1f} | {speed.gain:.2f} "
            f"| {speed.low:.2f} to {speed.high:.2f} | {accuracy} | {loss} |"
        )
    return "\n".join(text)


def _order(arm: Arm) -> tuple:
    """Order arms by network, dense gradients first."""
    kinds = ("nothing", "examples", "channels")
    return arm.network != "mlp", kinds.index(arm.along), -arm.keep
