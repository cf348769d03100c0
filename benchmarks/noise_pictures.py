"""Pictures of the study of noise, from its runs alone."""

import collections
import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from noise_kinds import KINDS
from noise_report import FIRST, Run, baseline, gain, mean, ordered

_COLOURS = {
    "magnitude": "#7f7f7f",
    "linear-regression": "#1f77b4",
    "swap": "#d62728",
    "chita": "#ff7f0e",
    "woodfisher": "#2ca02c",
    "layerwise-obs": "#17becf",
    "kfac-regression": "#111111",
    "kfac-swap": "#9467bd",
}
_LARGEST = 15.0  # points at which colours of the heat map end


def heat_map(runs: Sequence[Run]) -> Figure:
    """Draw gains over linear regression, a panel a network and recipe.

    Numbers are points of accuracy; those less than two standard errors from 0, and of
    one seed, are in brackets on grey.
    """
    panels = []
    for network, recipe in dict.fromkeys((run.network, run.recipe) for run in runs):
        group = [run for run in runs if (run.network, run.recipe) == (network, recipe)]
        methods = [
            method
            for method in dict.fromkeys(run.method for run in group)
            if method != baseline(method)
        ]
        cells = [
            c for c in ordered(group) if any(gain(group, c, m).seeds for m in methods)
        ]
        if methods and cells:
            panels.append((f"{network}, {recipe}", group, cells, methods))
    rows = [max(2, len(methods)) for *_, methods in panels]
    width = max([3.0 + 0.62 * len(cells) for _, _, cells, _ in panels], default=3.0)
    height = sum(1.9 + 0.3 * count for count in rows) + 0.5
    figure = Figure(figsize=(max(width, 6.0), height), layout="constrained")
    if not panels:
        return figure
    axes = figure.subplots(len(panels), 1, height_ratios=rows, squeeze=False)[:, 0]
    for ax, (title, group, cells, methods) in zip(axes, panels, strict=True):
        _draw_gains(ax, group, cells, methods)
        ax.set_title(f"{title}: gain over linear regression (points)", fontsize=10)
    return figure


def _draw_gains(
    ax: Axes, runs: Sequence[Run], cells: Sequence[tuple], methods: Sequence[str]
) -> None:
    found = [[gain(runs, cell, method) for cell in cells] for method in methods]
    shown = [[m.value if m.is_clear else math.nan for m in row] for row in found]
    ax.set_facecolor("#dddddd")
    ax.imshow(
        np.ma.masked_invalid(shown),
        cmap="RdBu",
        aspect="auto",
        vmin=-_LARGEST,
        vmax=_LARGEST,
    )
    for i, row in enumerate(found):
        for j, more in enumerate(row):
            if not more.seeds:
                continue
            # No sign before what rounds to nothing.
            text = f"{more.value:+.1f}".replace("+0.0", "0.0").replace("-0.0", "0.0")
            light = more.is_clear and abs(more.value) > 0.6 * _LARGEST
            ax.text(
                j, i, text if more.is_clear else f"({text})", fontsize=7,
                ha="center", va="center", color="white" if light else "black",
            )  # fmt: skip
    ax.set_yticks(range(len(methods)), methods, fontsize=8)
    names = [f"{cell[2]} at {cell[3]:g}" for cell in cells]
    ax.set_xticks(range(len(cells)), names, fontsize=7, rotation=35, ha="right")
    ax.tick_params(length=0)


def curves(runs: Sequence[Run]) -> Figure:
    """Draw accuracy against sparsity, one panel a recipe and kind of noise.

    Bands are a standard error to both sides. Methods without the first-order step, on
    networks that were pruned to several sparsities, under kinds that have these with
    every recipe, if any have.
    """
    levels: dict[tuple, set[float]] = {}
    for run in runs:
        levels.setdefault((run.network, run.recipe), set()).add(run.sparsity)
    rows = [row for row, several in levels.items() if len(several) > 1]
    cells = {(run.network, run.recipe, run.kind, run.sparsity) for run in runs}
    counts = collections.Counter(cell[:3] for cell in cells)
    full = [k for k in KINDS if all(counts[*row, k] > 1 for row in rows)]
    runs = [
        run
        for run in runs
        if (run.network, run.recipe) in rows
        and FIRST not in run.method
        and (run.kind in full or not full)
    ]
    kinds = [k for k in KINDS if any(run.kind == k for run in runs)]
    size = 3.1 * max(1, len(kinds)) + 1.9, 2.9 * max(1, len(rows))
    figure = Figure(figsize=size, layout="constrained")
    if not runs:
        return figure
    grid = figure.subplots(len(rows), len(kinds), squeeze=False, sharey="row")
    handles = {}
    for line, (network, recipe) in zip(grid, rows, strict=True):
        part = [run for run in runs if (run.network, run.recipe) == (network, recipe)]
        ticks = sorted(levels[network, recipe])
        for ax, kind in zip(line, kinds, strict=True):
            group = [run for run in part if run.kind == kind]
            for method in dict.fromkeys(run.method for run in group):
                handles[method] = _draw_curve(ax, group, method, ticks)
            ax.set_xticks(range(len(ticks)), [f"{s:g}" for s in ticks])
            ax.set_title(f"{recipe}: {kind}", fontsize=9)
            ax.grid(alpha=0.3)
            if not group:
                ax.set_axis_off()
        line[0].set_ylabel(f"{network}, test accuracy (%)", fontsize=9)
    for ax in grid[-1]:
        ax.set_xlabel("sparsity", fontsize=9)
    figure.legend(
        list(handles.values()), list(handles), loc="outside right upper", fontsize=8
    )
    return figure


def _draw_curve(
    ax: Axes, runs: Sequence[Run], method: str, levels: Sequence[float]
) -> Line2D:
    found = {
        i: mean([r.accuracy for r in runs if (r.method, r.sparsity) == (method, level)])
        for i, level in enumerate(levels)
    }
    at = [i for i, value in found.items() if value.seeds]
    middle = np.array([found[i].value for i in at])
    error = np.array([found[i].error if found[i].seeds > 1 else 0.0 for i in at])
    base = method.partition(",")[0]
    style = "-" if base == method else "--"
    colour = _COLOURS.get(base, "#8c564b")
    (line,) = ax.plot(at, middle, style, color=colour, marker="o", ms=3, lw=1.4)
    ax.fill_between(at, middle - error, middle + error, color=colour, alpha=0.2, lw=0)
    return line
