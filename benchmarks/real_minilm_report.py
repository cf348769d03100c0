"""What is written of MiniLM's runs: their lines, ranks, tables and the picture."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from swapjax.core import files

SETTINGS = ("50%", "2:4", "70%")
# What the page calls a method, in its order.
NAMES = {
    "magnitude": "`magnitude()`",
    "wanda": "`wanda()`",
    "layerwise-obs, columns": '`layerwise_obs(order="columns", refit=False)`',
    "layerwise-obs": "`layerwise_obs()`",
    "alps": "`alps()`",
    "linear-regression": "`linear_regression()`",
    "kfac-regression": "`kfac_regression()`",
}
PAIRS = (
    ("alps", "layerwise-obs, columns"),
    ("layerwise-obs, columns", "wanda"),
    ("wanda", "magnitude"),
)


@dataclasses.dataclass(frozen=True)
class Run:
    """One line of the results."""

    method: str
    setting: str
    stages: int
    sequential: str
    seed: int
    mrr: float = float("nan")
    first: float = float("nan")
    cosine: float = float("nan")
    sparsity: float = float("nan")
    seconds: float = float("nan")
    cpu: float = float("nan")
    peak: int = 0
    status: str = ""

    def __str__(self) -> str:
        order = ", in order" if self.sequential == "yes" else ""
        stages = f", {self.stages} stages" if self.stages > 1 else ""
        return f"{self.method}, {self.setting}{stages}{order}, seed {self.seed}"

    @property
    def key(self) -> tuple:
        """What tells it from other runs."""
        return self.method, self.setting, self.stages, self.sequential, self.seed


def keep_ranks(path: Path, run: Run, ranks: np.ndarray) -> None:
    """Write ranks beside those of other runs, a line a run."""
    kept = read_ranks(path) | {str(run): ranks}
    lines = [f"{k};{' '.join(f'{r:g}' for r in v)}\n" for k, v in kept.items()]
    files.write_text(path, "".join(lines))


def read_ranks(path: Path) -> dict[str, np.ndarray]:
    """Read the ranks of all runs, by their names."""
    lines = path.read_text().splitlines() if path.exists() else []
    pairs = (line.split(";") for line in lines)
    return {name: np.array(told.split(), float) for name, told in pairs}


def markdown(runs: Sequence[Run], ranks: Mapping[str, np.ndarray]) -> str:
    """Tabulate the mean reciprocal rank, and what each method took.

    Beside each stands its loss against the dense network, and the standard error of
    that over queries, which both answer.
    """
    dense = next(run for run in runs if run.method == "dense")
    text = [
        f"| method | {' | '.join(SETTINGS)} | cosine at 70% | CPU s | peak, GB |",
        "|---|---:|---:|---:|---:|---:|---:|",
        f"| dense | {dense.mrr:.3f} | | | | | {dense.peak / 1e9:.1f} |",
    ]
    for name, sequential in ((n, s) for n in NAMES for s in ("no", "yes")):
        own = [r for r in runs if (r.method, r.sequential) == (name, sequential)]
        own = [r for r in own if r.stages == 1 and r.seed == 0]
        if not own:
            continue
        by_setting = {run.setting: run for run in own}
        cells = [_cell(by_setting.get(s), dense, ranks) for s in SETTINGS]
        worst = by_setting.get("70%")
        cells.append(f"{worst.cosine:.3f}" if worst else "")
        cells.append(f"{np.median([run.cpu for run in own]):.0f}")
        cells.append(f"{max(run.peak for run in own) / 1e9:.1f}")
        in_order = ", in order" if sequential == "yes" else ""
        text.append(f"| {NAMES[name]}{in_order} | {' | '.join(cells)} |")
    return "\n".join(text) + "\n"


def differences(ranks: Mapping[str, np.ndarray]) -> str:
    """Tabulate how far each method is before the one it is held against."""
    text = ""
    for one, other in PAIRS:
        cells = []
        for setting in SETTINGS:
            a, b = (1 / ranks[f"{x}, {setting}, seed 0"] for x in (one, other))
            error = np.std(a - b, ddof=1) / math.sqrt(len(a))
            cells.append(f"{np.mean(a - b):+.3f} ± {error:.3f}")
        text += f"| {NAMES[one]} less {NAMES[other]} | {' | '.join(cells)} |\n"
    return text


def _cell(run: Run | None, dense: Run, ranks: Mapping[str, np.ndarray]) -> str:
    if run is None:
        return ""
    lost = 1 / ranks[str(run)] - 1 / ranks[str(dense)]
    error = np.std(lost, ddof=1) / math.sqrt(len(lost))
    return f"{run.mrr:.3f} ({np.mean(lost):+.3f} ± {error:.3f})"


def figure(runs: Sequence[Run]) -> Figure:
    """Mean reciprocal rank by setting, a line a method."""
    dense = next(run for run in runs if run.method == "dense")
    result = Figure(figsize=(6.4, 4), layout="constrained")
    axis = result.subplots()
    axis.axhline(dense.mrr, color="black", linewidth=1, label="dense")
    for i, name in enumerate(NAMES):
        for sequential, style in (("no", "o-"), ("yes", "s--")):
            own = {
                run.setting: run.mrr
                for run in runs
                if (run.method, run.sequential) == (name, sequential)
                and (run.stages, run.seed) == (1, 0)
            }
            places = [k for k, s in enumerate(SETTINGS) if s in own]
            if places:
                label = name + (", in order" if sequential == "yes" else "")
                heights = [own[SETTINGS[k]] for k in places]
                axis.plot(places, heights, style, color=f"C{i}", label=label)
    axis.set_xticks(range(len(SETTINGS)), SETTINGS)
    axis.set_ylabel("mean reciprocal rank")
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small")
    return result
