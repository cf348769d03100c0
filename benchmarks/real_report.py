"""What `real.py` measured, as tables and as a picture."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from swapjax.pruning.methods import METHODS

DENSE = "dense"
# What is measured of each network.
TOLD = {
    "crepe-tiny": "raw pitch accuracy, within 50 cents, %",
    "crepe-full": "raw pitch accuracy, within 50 cents, %",
    "efficientnet-lite0": "images in the class that the dense network gives, %",
    "minilm-l6": "mean reciprocal rank of a docstring's function, x 100",
}
_LEVELS = ("0.5", "0.7", "0.8", "0.9", "2:4")


@dataclasses.dataclass(frozen=True)
class Run:
    """One cell of the results.

    Attributes:
        network: a row of the table of networks.
        method: a row of the table of methods, or the dense network.
        stages: how many.
        sparsity: a number, or 2:4.
        accuracy: percent.
        seconds: of CPU, without those of the compiler.
        peak_mb: of the process, in megabytes.
        status: of the method, or why there is no figure.
        zeros: the share of the prunable weights, measured.
    """

    network: str
    method: str
    stages: int
    sparsity: str
    accuracy: float = float("nan")
    seconds: float = float("nan")
    peak_mb: int = 0
    status: str = ""
    zeros: float = float("nan")

    def __str__(self) -> str:
        stages = f", {self.stages} stages" if self.stages > 1 else ""
        return f"{self.network}, {self.method}, {self.sparsity}{stages}"

    @property
    def key(self) -> tuple:
        """What tells it from other cells."""
        return self.network, self.method, self.stages, self.sparsity


def markdown(runs: Sequence[Run]) -> list[str]:
    """Make two tables a network: accuracies, and what they cost, where it is known."""
    found = []
    for network in dict.fromkeys(run.network for run in runs):
        own = [run for run in runs if run.network == network]
        found.append(_accuracies(network, own))
        if any(run.seconds > 0 for run in own):
            found.append(_costs(network, own))
    return found


def _accuracies(network: str, runs: Sequence[Run]) -> str:
    dense = {run.method: run.accuracy for run in runs if run.method.startswith(DENSE)}
    lines = [f"| {network} | stages | " + " | ".join(_LEVELS) + " |"]
    lines.append("|---|---|" + "---|" * len(_LEVELS))
    lines += [f"| {name} | | {value:.2f} | | | | |" for name, value in dense.items()]
    for (stages, method), cells in _rows(runs).items():
        told = " | ".join(_accuracy(cells.get(level)) for level in _LEVELS)
        lines.append(f"| {method} | {stages} | {told} |")
    return "\n".join(lines)


def _costs(network: str, runs: Sequence[Run]) -> str:
    """Make the table of seconds and memory, the most of all sparsities."""
    lines = [f"| {network} | stages | CPU s | peak, MB |", "|---|---|---|---|"]
    for (stages, method), cells in _rows(runs).items():
        known = [run for run in cells.values() if not np.isnan(run.accuracy)]
        if known:
            seconds = max(run.seconds for run in known)
            peak = max(run.peak_mb for run in known)
            lines.append(f"| {method} | {stages} | {seconds:.0f} | {peak:,} |")
    return "\n".join(lines)


def _rows(runs: Sequence[Run]) -> dict[tuple[int, str], dict[str, Run]]:
    """Group cells by stages and method, in the order of the runs, sparsities within."""
    rows: dict[tuple[int, str], dict[str, Run]] = {}
    for run in sorted(runs, key=lambda run: run.stages):
        if not run.method.startswith(DENSE):
            rows.setdefault((run.stages, run.method), {})[run.sparsity] = run
    return rows


def _accuracy(run: Run | None) -> str:
    if run is None:
        return ""
    if np.isnan(run.accuracy):
        return run.status.removeprefix("skipped: ")
    return f"{run.accuracy:.2f}"


def figure(runs: Sequence[Run]) -> Figure:
    """Draw accuracy against sparsity, one panel a network, dashed for several stages.

    Colours and markers are those of the methods in all pictures.
    """
    networks = list(dict.fromkeys(run.network for run in runs))
    count = max(1, len(networks))
    result = Figure(figsize=(5.2 * count, 4.4), layout="constrained")
    for axes, network in zip(result.subplots(1, count, squeeze=False)[0], networks):  # noqa: B905
        own = [run for run in runs if run.network == network]
        for run in own:
            if run.method == DENSE:
                label = f"dense ({run.accuracy:.1f})"
                axes.axhline(run.accuracy, color="black", lw=0.8, ls=":", label=label)
        for (stages, method), cells in _rows(own).items():
            levels = [level for level in _LEVELS if level in cells and level != "2:4"]
            style = METHODS[method.partition(",")[0]]
            several = f", {stages} stages" if stages > 1 else ""
            axes.plot(
                [float(level) for level in levels],
                [cells[level].accuracy for level in levels],
                color=style.colour,
                marker=style.marker,
                ls="-" if stages == 1 else "--",
                mfc="none" if "global" in method else style.colour,
                ms=5,
                label=f"{method}{several}",
            )
        axes.set_xlim(0.45, 0.95)
        axes.set_title(network)
        axes.set_xlabel("sparsity")
        axes.set_ylabel(TOLD[network], fontsize="small")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="x-small")
    return result
