"""The table of networks within budgets."""

import dataclasses
from collections.abc import Sequence

NAN = float("nan")


@dataclasses.dataclass(frozen=True)
class Line:
    """A network within a budget, shrunk and counted anew by its program.

    Attributes:
        network: the name of it.
        budget: ``"flops"`` or ``"size"``.
        part: that may be left.
        scores: ``"magnitude"`` or ``"fisher"``.
        macs: multiplications that are left, as a part.
        bytes: that are left, as a part.
        accuracy: percent of the test images, batch norm estimated anew; NaN for
            networks that are not trained.
    """

    network: str
    budget: str
    part: float
    scores: str
    macs: float = NAN
    bytes: float = NAN
    accuracy: float = NAN

    def __str__(self) -> str:
        return f"{self.network}, {self.budget} {self.part:g}, {self.scores}"

    @property
    def key(self) -> tuple:
        """What tells it from others."""
        return self.network, self.budget, self.part, self.scores


def report(lines: Sequence[Line]) -> str:
    """Write the table."""
    heads = ["", "budget", "scores", "macs", "bytes", "accuracy"]
    rows = [heads, ["---"] * len(heads)]
    for line in sorted(lines, key=lambda x: (x.network, x.budget, -x.part, x.scores)):
        told = "" if line.accuracy != line.accuracy else f"{line.accuracy:.2f}"
        budget = f"`{line.budget}={line.part:g}`"
        rows.append(
            [line.network, budget, line.scores, f"{line.macs:.4f}",
             f"{line.bytes:.4f}", told]
        )  # fmt: skip
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
