"""What methods gain over linear regression, run by run: a table and a heat map."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from rich import box
from rich.table import Table
from rich.text import Text
from scipy import special

from swapjax.core.text import printable
from swapjax.experiments.row import Row

CONTROL = "linear-regression"
_SURE = 0.95
_ABREAST = 3  # heat maps


class Gain(NamedTuple):
    """What a method gains in one cell of a comparison, over all seeds.

    Attributes:
        method: its name.
        noise: the word for it.
        sparsity: as asked for.
        mean: points of test accuracy above those of the control with the same seed.
        error: the standard error of that mean, NaN for a single seed.
        seeds: how many.
    """

    method: str
    noise: str
    sparsity: float
    mean: float
    error: float
    seeds: int

    @property
    def sure(self) -> bool:
        """Whether a paired t-test at 5 % tells it from 0."""
        if self.seeds < 2:
            return False
        quantile = float(special.stdtrit(self.seeds - 1, (1 + _SURE) / 2))
        return abs(self.mean) > quantile * self.error

    def __str__(self) -> str:
        mean = f"{self.mean:+.2f}"
        return mean if math.isnan(self.error) else f"{mean}±{self.error:.2f}"


def gains(rows: Sequence[Row]) -> list[Gain]:
    """Pair every run with that of the control with the same noise, sparsity and seed.

    Args:
        rows: runs, each method with one setting.

    Returns:
        A gain for each method but the control, noise and sparsity, in the order of
        rows; none where the control did not run.
    """
    control = {_cell(row): row.accuracy for row in rows if row.method == CONTROL}
    cells: dict[tuple[str, str, float], list[float]] = {}
    for row in rows:
        if row.method != CONTROL and _cell(row) in control:
            cell = cells.setdefault((row.method, row.noise, row.sparsity), [])
            cell.append(row.accuracy - control[_cell(row)])
    return [
        Gain(*at, float(np.mean(values)), _standard_error(values), len(values))
        for at, values in cells.items()
    ]


def _cell(row: Row) -> tuple[str, float, int]:
    return row.noise, row.sparsity, row.seed


def _standard_error(values: Sequence[float]) -> float:
    if len(values) < 2:
        return math.nan
    return float(np.std(values, ddof=1)) / math.sqrt(len(values))


def gains_table(found: Sequence[Gain]) -> Table:
    """Show gains: one line a method, one column a sparsity, a section a kind of noise.

    Those that several seeds make sure are bold.
    """
    levels = sorted({gain.sparsity for gain in found})
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0)
    table.add_column("method", no_wrap=True)
    for level in levels:
        table.add_column(f"{level:g}", justify="right", no_wrap=True, min_width=6)
    for noise in dict.fromkeys(gain.noise for gain in found):
        table.add_row(Text(printable(noise)), style="italic")
        group = [gain for gain in found if gain.noise == noise]
        for method in dict.fromkeys(gain.method for gain in group):
            here = {gain.sparsity: gain for gain in group if gain.method == method}
            cells = (here.get(level) for level in levels)
            table.add_row(
                Text(printable(method)),
                *(
                    Text("") if g is None else Text(str(g), "bold" if g.sure else "")
                    for g in cells
                ),
            )
        table.add_section()
    return table


def gains_figure(found: Sequence[Gain], *, title: str) -> Figure:
    """Draw gains as heat maps: one a method, one line a kind of noise.

    Those that several seeds make sure are bold.
    """
    methods = list(dict.fromkeys(gain.method for gain in found))
    noises = list(dict.fromkeys(gain.noise for gain in found))
    levels = sorted({gain.sparsity for gain in found})
    finite = [abs(gain.mean) for gain in found if math.isfinite(gain.mean)]
    most = max(finite, default=0) or 1.0
    wide = min(_ABREAST, len(methods))
    high = math.ceil(len(methods) / wide)
    size = (2.2 + wide * (0.8 * len(levels) + 0.5), high * (0.36 * len(noises) + 1.1))
    figure = Figure(figsize=(max(size[0], 5), size[1] + 0.4), layout="constrained")
    figure.suptitle(printable(title), parse_math=False, usetex=False)
    grid = figure.subplots(high, wide, sharey=True, squeeze=False)
    for axes in grid.flat[len(methods) :]:
        axes.remove()
    for axes, method in zip(grid.flat, methods, strict=False):
        means = np.full((len(noises), len(levels)), np.nan)
        for gain in found:
            if gain.method == method:
                i, j = noises.index(gain.noise), levels.index(gain.sparsity)
                means[i, j] = gain.mean
                axes.text(
                    j, i, f"{gain.mean:+.1f}", ha="center", va="center",
                    fontsize="small", weight="bold" if gain.sure else "normal",
                    color="white" if abs(gain.mean) > 0.7 * most else "black",
                )  # fmt: skip
        shown = axes.imshow(means, cmap="RdBu", vmin=-most, vmax=most, aspect="auto")
        axes.set_title(printable(method), parse_math=False, usetex=False)
        axes.set_xticks(range(len(levels)), [f"{level:g}" for level in levels])
        axes.set_yticks(range(len(noises)), noises, parse_math=False, usetex=False)
        axes.set_xlabel("sparsity")
    figure.colorbar(
        shown, ax=list(grid.flat[: len(methods)]), label=f"points over {CONTROL}"
    )
    return figure
