"""How a network holds against attacks, and against wrong labels: tables and panels."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from rich.table import Table
from rich.text import Text

from swapjax.core.text import printable
from swapjax.robust import Evaluation
from swapjax.robust.fast import ROBUST_BATCH
from swapjax.training import Epoch

CHEAP = ("pgd-ce:10", "pgd-margin:10")
"""The attacks of a curve."""


class _Line(NamedTuple):
    """How a number that epochs tell is drawn, in percent."""

    label: str
    color: str
    style: str = "-"
    times: float = 1.0


_LINES = {
    "accuracy": _Line("test", "#d62728"),
    ROBUST_BATCH: _Line("test, under PGD of 5 steps", "#9467bd", times=100.0),
    "fitted": _Line("right labels, as labelled", "#1f77b4"),
    "memorized": _Line("flipped labels, as labelled", "#ff7f0e"),
    "recovered": _Line("flipped labels, as they were", "#2ca02c", "--"),
}


class Robustness(NamedTuple):
    """What attacks left of a network.

    Attributes:
        epsilon: radius of the attacks, as a part of the range of pixels.
        found: by the attacks that were asked for.
        radii: other radii, and the accuracy in percent that `CHEAP` left at each, of
            the same images.
    """

    epsilon: float
    found: Evaluation
    radii: tuple[tuple[float, float], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Convert to what JSON takes, accuracies in percent."""
        found = self.found
        return {
            "epsilon": self.epsilon,
            "norm": found.norm,
            "examples": found.examples,
            "clean": 100 * found.clean,
            "robust": 100 * found.robust,
            "attacks": [
                {
                    "attack": a.attack,
                    "tried": a.tried,
                    "fell": a.fell,
                    "left": 100 * a.left,
                }
                for a in found.attempts
            ],
            "zero_gradients": found.zero_gradients,
            "missed_by_cross_entropy": found.missed,
            "warnings": list(found.warnings),
            "radii": [{"epsilon": e, "accuracy": a} for e, a in self.radii],
        }


def attack_table(robustness: Robustness) -> Table:
    """Show what each attack did to the images that the ones before had left."""
    found = robustness.found
    table = Table(
        title=f"Attacks within {robustness.epsilon:.3g} of the range of pixels on "
        f"{found.examples:,} test images",
        title_justify="left",
    )
    table.add_column("attack", overflow="fold")
    for name in ("tried", "fell", "left %"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_row("none", f"{found.examples:,}", "", f"{100 * found.clean:.2f}")
    for a in found.attempts:
        shown = Text(printable(a.attack))
        table.add_row(shown, f"{a.tried:,}", f"{a.fell:,}", f"{100 * a.left:.2f}")
    return table


def draw_radii(axes: Axes, robustness: Robustness) -> None:
    """Draw accuracy against the radius of attacks."""
    found = robustness.found
    at = [0.0, *(radius for radius, _ in robustness.radii)]
    left = [100 * found.clean, *(accuracy for _, accuracy in robustness.radii)]
    axes.plot(at, left, "o-", ms=3, color="#d62728", label="PGD of 10 steps")
    axes.plot(
        [robustness.epsilon], [100 * found.robust], "kx", label="all attacks asked for"
    )
    axes.set_xlabel("radius, as a part of the range of pixels")
    axes.set_ylabel("accuracy under attack (%)")
    axes.set_ylim(0, 102)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")


def draw_epochs(axes: Axes, history: Sequence[Epoch]) -> None:
    """Draw test accuracy, and what was learnt of right and flipped labels, by epoch."""
    at = [epoch.epoch for epoch in history]
    for name, line in _LINES.items():
        # Objectives may tell an accuracy too, of training.
        values = [
            {**epoch.told, "accuracy": epoch.accuracy}.get(name) for epoch in history
        ]
        known = [line.times * value for value in values if value is not None]
        if len(known) == len(at):
            axes.plot(at, known, line.style, color=line.color, label=line.label)
    axes.set_xlabel("epoch")
    axes.set_ylabel("share of examples (%)")
    axes.set_ylim(0, 102)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
