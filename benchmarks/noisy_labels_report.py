"""Runs of the study of noisy labels, its tables and its picture."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

SPARSE = ("ce + sr", "fl + sr", "gce + sr")
HEADLINE = (
    *("ce", "ce + sr", "fl", "fl + sr", "gce", "gce + sr", "sce", "nce+rce", "nlnl"),
)


@dataclasses.dataclass(frozen=True)
class Line:
    """One run; percentages, of the last epoch but for the curves and the best."""

    plan: str
    loss: str
    noise: str
    seed: int
    images: int
    epochs: int
    accuracy: float = float("nan")
    best: float = float("nan")
    memorized: float = float("nan")
    recovered: float = float("nan")
    fitted: float = float("nan")
    largest_class: float = float("nan")
    seconds: float = float("nan")
    accuracies: str = ""
    memorized_by_epoch: str = ""

    def __str__(self) -> str:
        return f"{self.loss}, {self.noise}, seed {self.seed}"

    @property
    def key(self) -> tuple:
        """What tells it from others."""
        return self.plan, self.loss, self.noise, self.seed, self.images, self.epochs


TABLES: Mapping[str, Callable[[Line], float]] = {
    "Accuracy after the last epoch": lambda line: line.accuracy,
    "Best epoch less the last": lambda line: line.best - line.accuracy,
    "Flipped labels memorised": lambda line: line.memorized,
}


def report(lines: Sequence[Line]) -> str:
    """Make tables in Markdown, rows in the order of accuracy at most noise.

    A cell is a mean over seeds with its standard error, or the value of one seed.
    """
    noises = ("none", "symmetric 0.6", "symmetric 0.8", "asymmetric 0.4")
    found: dict[tuple[str, str], list[Line]] = {}
    for line in lines:
        found.setdefault((line.loss, line.noise), []).append(line)

    def last(loss: str) -> float:
        some = found.get((loss, "symmetric 0.8"), [])
        return -float(np.mean([x.accuracy for x in some])) if some else 0.0

    losses = sorted(dict.fromkeys(line.loss for line in lines), key=last)
    text = []
    for title, value in TABLES.items():
        shown = noises if title != "Flipped labels memorised" else noises[1:]
        text += [f"## {title}", "", f"| | {' | '.join(shown)} |"]
        text.append("|---" * (len(shown) + 1) + "|")
        for loss in losses:
            cells = [
                mean_of([value(x) for x in found.get((loss, noise), [])])
                for noise in shown
            ]
            text.append(f"| {loss} | {' | '.join(cells)} |")
        text.append("")
    return "\n".join(text)


def mean_of(values: Sequence[float]) -> str:
    """Tell the mean, and the standard error of more than one."""
    if not values:
        return ""
    mean = float(np.mean(values))
    if len(values) < 2:
        return f"{mean:.2f}"
    return f"{mean:.2f} ± {np.std(values, ddof=1) / math.sqrt(len(values)):.2f}"


def figure(lines: Sequence[Line]) -> Figure:
    """Accuracy by epoch above, the share of flipped labels memorised below."""
    noises = [n for n in dict.fromkeys(line.noise for line in lines) if n != "none"]
    result = Figure(figsize=(3.4 * len(noises), 6), layout="constrained")
    axes = result.subplots(2, len(noises), sharex=True, squeeze=False)
    for column, noise in zip(axes.T, noises, strict=True):
        for i, loss in enumerate(HEADLINE):
            some = [x for x in lines if (x.loss, x.noise) == (loss, noise)]
            if not some:
                continue
            for axis, name in zip(
                column, ("accuracies", "memorized_by_epoch"), strict=True
            ):
                curves = [[float(v) for v in getattr(x, name).split()] for x in some]
                mean = np.mean(curves, axis=0)
                style = "-" if loss in SPARSE else "--"
                axis.plot(
                    range(1, len(mean) + 1), mean, style, color=f"C{i}", label=loss
                )
        column[0].set_title(noise)
        column[1].set_xlabel("epoch")
        for axis in column:
            axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("test accuracy (%)")
    axes[1, 0].set_ylabel("flipped labels memorised (%)")
    axes[0, -1].legend(fontsize="small")
    return result
