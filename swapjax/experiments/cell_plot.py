"""Pictures of the cells of architectures: nodes in a row, operations as arcs."""

import math
from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path

from swapjax.core.text import printable
from swapjax.search.genotype import Choice, Genotype

# The first word that is in the name of an operation gives its colour.
_COLOURS = {
    "none": "#cccccc",
    "skip": "#7f7f7f",
    "pool": "#2ca02c",
    "dil": "#9467bd",
    "1x1": "#ff7f0e",
    "5x5": "#d62728",
    "": "#1f77b4",
}
_RISE = 0.42  # of an arc, per node that it spans
_NAME, _TITLE = 24, 140  # the most characters drawn of a name, and of a title


def cell_figure(
    genotype: Genotype,
    *,
    title: str,
    scores: Mapping[str, np.ndarray] | None = None,
    edges: Mapping[str, tuple[tuple[int, int], ...]] | None = None,
    ops: tuple[str, ...] = (),
) -> Figure:
    """Draw the cells of an architecture, and the scores that chose it.

    Args:
        genotype: the architecture.
        title: above everything.
        scores: for each kind of cell float[edges, ops], drawn as parts of the largest
            on each edge; None for none.
        edges: of the rows of scores.
        ops: of their columns.
    """
    kinds = [kind for kind, _ in genotype.cells]
    wide = max(1 + to for _, choices in genotype.cells for _, to, _ in choices)
    columns = 1 if scores is None else 2
    figure = Figure(
        figsize=(1.9 * wide + 4.5 * (columns - 1), 4.2 * len(kinds)),
        layout="constrained",
    )
    text = printable(title)
    figure.suptitle(text[:_TITLE], parse_math=False, usetex=False)
    grid = figure.subplots(
        len(kinds), columns, squeeze=False,
        width_ratios=[1.9 * wide, 4.5][:columns],
    )  # fmt: skip
    for kind, row in zip(kinds, grid, strict=True):
        _draw_cell(row[0], genotype.of(kind))
        if len(kinds) > 1:
            row[0].set_title(kind, fontsize="medium")
        if scores is not None and edges is not None:
            _draw_scores(row[1], scores[kind], edges[kind], ops)
    return figure


def _draw_cell(axes: Axes, choices: tuple[Choice, ...]) -> None:
    """Draw arcs from even nodes above the row, from odd ones below; all lead right."""
    last = max(to for _, to, _ in choices)
    rises = [
        (_RISE * (to - source) if to > source + 1 else 0.0) * (-1 if source % 2 else 1)
        for source, to, _ in choices
    ]
    for (source, to, op), rise in zip(choices, rises, strict=True):
        middle = (source + to) / 2
        path = Path(
            [(source, 0), (middle, 2 * rise), (to, 0)],
            [Path.MOVETO, Path.CURVE3, Path.CURVE3],
        )
        colour = next(c for word, c in _COLOURS.items() if word in op)
        axes.add_patch(
            PathPatch(path, fc="none", ec=colour, lw=2, ls=":" if op == "none" else "-")
        )
        axes.annotate(
            _shorten(op), (middle, rise), (0, 5), textcoords="offset points",
            ha="center", va="bottom", fontsize="small", parse_math=False, zorder=2,
            bbox={"fc": "white", "ec": "none", "alpha": 0.8, "pad": 0.5},
        )  # fmt: skip
    for node in range(last + 1):
        axes.plot(node, 0, "o", ms=20, mfc="white", mec="black", zorder=3)
        axes.text(node, 0, str(node), ha="center", va="center", zorder=4)
    low, high = min(0, *rises) - 0.4, max(0, *rises) + 0.5
    axes.set(xlim=(-0.4, last + 0.4), ylim=(low, high))
    axes.axis("off")


def _draw_scores(
    axes: Axes, scores: np.ndarray, edges: tuple[tuple[int, int], ...], ops: tuple
) -> None:
    """Draw scores edge by edge, on a scale of powers of ten below the largest."""
    sizes = np.abs(np.asarray(scores, np.float64))
    top = sizes.max(1, keepdims=True)
    parts = np.divide(sizes, top, out=np.zeros_like(sizes), where=top > 0)
    levels = np.log10(np.maximum(parts, 1e-6))
    image = axes.imshow(levels, cmap="viridis", vmin=-6, vmax=0, aspect="auto")
    axes.set_xticks(
        range(len(ops)), [_shorten(op) for op in ops], rotation=35, ha="right",
        fontsize="small", parse_math=False,
    )  # fmt: skip
    axes.set_yticks(range(len(edges)), [f"{a} to {b}" for a, b in edges])
    axes.set_ylabel("edge")
    bar = axes.figure.colorbar(image, ax=axes, shrink=0.8)
    bar.set_label("score, of the largest on the edge")
    ticks = range(-6, 1, 2)
    bar.set_ticks(list(ticks), labels=[f"1e{n}" if n else "1" for n in ticks])


def _shorten(name: str) -> str:
    name = printable(name)
    if len(name) <= _NAME:
        return name
    return f"{name[: math.ceil(_NAME / 2)]}…{name[-_NAME // 2 + 1 :]}"
