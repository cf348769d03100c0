"""What `backward_vcas.py` measured, as a table and a picture."""

import dataclasses
import statistics
from collections.abc import Sequence

from matplotlib.figure import Figure
from rich.table import Table


@dataclasses.dataclass(frozen=True)
class Line:
    """One epoch of a run.

    Attributes:
        method: ``"exact"`` or ``"vcas"``.
        seed: of the run.
        epoch: from 1.
        loss: the mean over its steps.
        accuracy: on the test set after it, in percent.
        backward: share of the multiplications of the backward pass that is left.
        adaptations: those of adaptations, at most, as a share of all of exact training.
        norm_share: that is kept.
        added: variance at the last adaptation, as a share of that of SGD.
        seconds: of wall time.
    """

    method: str
    seed: int
    epoch: int
    loss: float
    accuracy: float
    backward: float
    adaptations: float
    norm_share: float
    added: float
    seconds: float

    @property
    def key(self) -> tuple[str, int, int]:
        """What tells it from others."""
        return self.method, self.seed, self.epoch


def by_epoch(lines: Sequence[Line], method: str, field: str) -> dict[int, list[float]]:
    """Gather a number of all seeds, in their order, by epoch."""
    found: dict[int, list[float]] = {}
    for line in sorted(lines, key=lambda line: (line.epoch, line.seed)):
        if line.method == method:
            found.setdefault(line.epoch, []).append(getattr(line, field))
    return found


def table(lines: Sequence[Line]) -> Table:
    """Tell each epoch: means over seeds, and the deviation of exact training."""
    shown = Table("epoch", "loss, exact", "loss, VCAS", "deviation of exact",
                  "accuracy, exact", "accuracy, VCAS", "backward left")  # fmt: skip
    for row in rows(lines):
        shown.add_row(*row)
    return shown


def rows(lines: Sequence[Line]) -> list[list[str]]:
    """Make the rows of the table."""
    loss = {m: by_epoch(lines, m, "loss") for m in ("exact", "vcas")}
    accuracy = {m: by_epoch(lines, m, "accuracy") for m in ("exact", "vcas")}
    left = by_epoch(lines, "vcas", "backward")
    return [
        [
            str(epoch),
            f"{statistics.mean(loss['exact'][epoch]):.4f}",
            f"{statistics.mean(loss['vcas'][epoch]):.4f}",
            f"{statistics.stdev(loss['exact'][epoch]):.4f}",
            f"{statistics.mean(accuracy['exact'][epoch]):.2f}",
            f"{statistics.mean(accuracy['vcas'][epoch]):.2f}",
            f"{100 * statistics.mean(left[epoch]):.1f} %",
        ]
        for epoch in left
    ]


def picture(lines: Sequence[Line]) -> Figure:
    """Draw losses of both, and what is left of the backward pass."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    above, below = figure.subplots(1, 2)
    for method, label, style in (("exact", "exact", "-"), ("vcas", "VCAS", "--")):
        found = by_epoch(lines, method, "loss")
        epochs = list(found)
        for number in range(len(found[epochs[0]])):
            losses = [found[epoch][number] for epoch in epochs]
            above.plot(epochs, losses, style, color=f"C{number}",
                       label=f"{label}, seed {number}")  # fmt: skip
    above.set(xlabel="epoch", ylabel="training loss", yscale="log")
    above.legend(fontsize="x-small")
    left = by_epoch(lines, "vcas", "backward")
    for number in range(len(left[1])):
        below.plot(list(left), [100 * x[number] for x in left.values()],
                   color=f"C{number}")  # fmt: skip
    below.set(xlabel="epoch", ylabel="backward pass left, percent", ylim=(0, 100))
    figure.suptitle("VCAS at its default budget, a transformer on rows of MNIST")
    return figure
