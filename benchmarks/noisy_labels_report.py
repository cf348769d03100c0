"""Runs of the study of noisy labels, its tables and its picture."""

import dataclasses
import math
from collections.abc import Sequence

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


def report(lines: Sequence[Line]) -> str:
    """Make tables in Markdown, one a noise: means and standard errors over seeds."""
    text = []
    for noise in dict.fromkeys(line.noise for line in lines):
        text += ["", f"### {noise.capitalize()}", ""]
        text.append(
            "| loss | last epoch | best less last | memorised | recovered | seeds |"
        )
        text.append("|---|---|---|---|---|---|")
        rows = []
        for loss in dict.fromkeys(line.loss for line in lines):
            some = [x for x in lines if (x.loss, x.noise) == (loss, noise)]
            if some:
                rows.append((np.mean([x.accuracy for x in some]), loss, some))
        for _, loss, some in sorted(rows, key=lambda row: -row[0]):
            cells = [
                [x.accuracy for x in some],
                [x.best - x.accuracy for x in some],
                [x.memorized for x in some],
                [x.recovered for x in some],
            ]
            told = " | ".join(mean_of(values) for values in cells)
            text.append(f"| {loss} | {told} | {len(some)} |")
    return "\n".join(text)


def mean_of(values: Sequence[float]) -> str:
    """Return the mean, and the standard error of more than one."""
    mean = float(np.mean(values))
    if math.isnan(mean):
        return ""
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
