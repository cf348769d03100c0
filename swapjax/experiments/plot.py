"""Pictures of what pruning did. Figures are drawn without pyplot: no global state."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from swapjax.core import files
from swapjax.core.text import printable
from swapjax.experiments.noise import parse
from swapjax.experiments.row import Row
from swapjax.pruning import Stage
from swapjax.pruning.methods import METHODS
from swapjax.training import Epoch, Level, Recovery

_ABREAST = 3  # panels of a comparison, at most
_LEGEND = 12  # layers that are told apart by name
_ROOMY, _LINE = 8, 0.19  # layers that have two lines each; inches of the one of others
_NAME, _TITLE = 40, 140  # the most characters drawn of a name, and of a title


def report_figure(
    history: Sequence[Stage],
    layers: Sequence[Mapping[str, Any]],
    *,
    title: str,
    first_layer: np.ndarray | None = None,
    image_shape: tuple[int, ...] = (),
) -> Figure:
    """Draw one run: its stages, its layers, and which pixels still count.

    Args:
        history: the stages.
        layers: from `report.layers`; only prunable ones are drawn.
        title: above everything.
        first_layer: the kernel of the first layer if it reads pixels directly,
            [pixels, units].
        image_shape: of one image.
    """
    pixels = None
    if first_layer is not None and first_layer.ndim == 2 and len(image_shape) >= 2:
        pixels = first_layer if len(first_layer) == math.prod(image_shape) else None
    prunable = [row for row in layers if row["prunable"]]
    size = 9 if pixels is None else 12.5, max(3.8, 1 + _LINE * len(prunable))
    figure = Figure(figsize=size, layout="constrained")
    _entitle(figure, title)
    axes = figure.subplots(1, 2 if pixels is None else 3)
    _draw_stages(axes[0], history)
    _draw_layers(axes[1], prunable)
    if pixels is not None:
        _draw_pixels(figure, axes[2], pixels, image_shape)
    return figure


def comparison_figure(rows: Sequence[Row], *, dense: float, title: str) -> Figure:
    """Draw accuracy against sparsity, one panel a kind of noise, one line a method.

    Several seeds show as a mean with a bar of one standard deviation.
    """
    noises = list(dict.fromkeys(row.noise for row in rows))
    levels = sorted({row.sparsity for row in rows})
    # As few lines of panels as there can be, all about as long.
    high = math.ceil(len(noises) / _ABREAST)
    wide = math.ceil(len(noises) / max(high, 1))
    figure = Figure(figsize=(5 * wide + 0.5, 4 * high), layout="constrained")
    _entitle(figure, title)
    grid = figure.subplots(high, wide, sharey=True, squeeze=False)
    panels, spare = grid.flat[: len(noises)], grid.flat[len(noises) :]
    for axes in spare:
        axes.remove()
    for axes, noise in zip(panels, noises, strict=True):
        axes.axhline(dense, color="black", lw=0.8, ls=":", label=f"dense ({dense:.1f})")
        group = [row for row in rows if row.noise == noise]
        for method in dict.fromkeys(row.method for row in group):
            _draw_method(axes, [r for r in group if r.method == method], levels)
        axes.set_xticks(range(len(levels)), [f"{level:g}" for level in levels])
        axes.set_xlabel("sparsity")
        axes.set_title(f"{noise}\n{parse(noise).told}", fontsize="medium")
        axes.grid(alpha=0.3)
    for axes in grid[:, 0]:
        axes.set_ylabel("test accuracy (%)")
    _explain(panels[0])
    return figure


def training_figure(
    history: Sequence[Epoch] | Sequence[Level],
    layers: Sequence[Mapping[str, Any]],
    *,
    title: str,
    more: Sequence[Callable[[Axes], None]] = (),
) -> Figure:
    """Draw a run of training: accuracy and sparsity, and what its masks did.

    Epochs show the entries that changed in each, and how dense every layer was; the
    levels of a lottery how dense layers are in the end.

    Args:
        history: the epochs or levels.
        layers: from `report.layers`; only prunable ones are drawn.
        title: above everything.
        more: what draws further panels.
    """
    epochs = [part for part in history if isinstance(part, Epoch)]
    own = 3 if epochs else 2
    count = own + len(more)
    high = math.ceil(count / _ABREAST)
    wide = math.ceil(count / high)
    figure = Figure(figsize=(4.5 * wide, 3.8 * high), layout="constrained")
    _entitle(figure, title)
    grid = figure.subplots(high, wide, squeeze=False).ravel()
    panels, others = grid[:own], grid[own:count]
    for axes in grid[count:]:
        axes.remove()
    for axes, draw in zip(others, more, strict=True):
        draw(axes)
    at = [p.epoch if isinstance(p, Epoch) else p.level for p in history]
    accuracies = [math.nan if p.accuracy is None else p.accuracy for p in history]
    panels[0].plot(at, accuracies, "o-", ms=3, color="#d62728")
    panels[0].set_ylabel("test accuracy (%)", color="#d62728")
    other = panels[0].twinx()
    other.plot(at, [p.sparsity for p in history], "s--", ms=2, color="#1f77b4")
    other.set_ylabel("sparsity", color="#1f77b4")
    other.set_ylim(0, 1)
    if epochs:
        panels[1].bar(at, [e.churn for e in epochs], color="#7f7f7f")
        panels[1].set_ylabel("entries of masks that changed")
        for path in epochs[0].densities:
            densities = [e.densities[path] for e in epochs]
            panels[2].plot(at, densities, ".-", label=_shorten(path))
        panels[2].set_ylabel("density of each layer")
        panels[2].set_ylim(0, 1.02)
        if len(epochs[0].densities) <= _LEGEND:
            _explain(panels[2])
    else:
        _draw_layers(panels[1], [row for row in layers if row["prunable"]])
    for axes in panels if epochs else panels[:1]:
        axes.set_xlabel("epoch" if epochs else "level")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.set_xlim(at[0] - 0.5, at[-1] + 0.5)
    return figure


def plasticity_figure(results: Sequence[Recovery], *, title: str) -> Figure:
    """Draw what checkpoints recover after pruning, against their epoch.

    One panel has the accuracies before pruning and after training on, the other their
    difference. One colour a rate, dashed without regeneration; several results of one
    kind, of seeds for instance, show as their mean.
    """
    figure = Figure(figsize=(10.5, 4), layout="constrained")
    _entitle(figure, title)
    accuracy, difference = figure.subplots(1, 2)
    _draw_means(
        accuracy, results, lambda r: r.before, color="black", ls=":", label="before"
    )
    difference.axhline(0, color="black", lw=0.8, ls=":")
    rates = sorted({r.rate for r in results})
    for i, rate in enumerate(rates):
        for regrown in (False, True):
            group = [r for r in results if (r.rate, r.regrown) == (rate, regrown)]
            style = {
                "color": f"C{i}",
                "ls": "-" if regrown else "--",
                "marker": "o" if regrown else "s",
                "label": f"{rate:g}, {'regrown' if regrown else 'pruned only'}",
            }
            if group:
                _draw_means(accuracy, group, lambda r: r.after, **style)
                _draw_means(difference, group, lambda r: r.plasticity, **style)
    accuracy.set_ylabel("test accuracy")
    difference.set_ylabel("plasticity: after less before")
    for axes in (accuracy, difference):
        axes.set_xlabel("epoch of the checkpoint")
        axes.grid(alpha=0.3)
    _explain(accuracy, title="pruned to")
    return figure


def save(figure: Figure, path: str | Path) -> None:
    """Write a figure, whole or not at all.

    Args:
        figure: to write.
        path: of the file, with the suffix of a kind that matplotlib knows.
    """
    with warnings.catch_warnings():
        # Names may hold what no font has; a box stands there then.
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        # Of many layers or long names, what is drawn is cut off at its borders.
        warnings.filterwarnings("ignore", "constrained_layout not applied")
        files.write_atomically(path, lambda p: figure.savefig(p, dpi=150))


def _entitle(figure: Figure, title: str) -> None:
    figure.suptitle(_shorten(title, _TITLE), parse_math=False, usetex=False)


def _explain(axes: Axes, **options: Any) -> None:
    """Draw a legend."""
    for text in axes.legend(fontsize="small", **options).get_texts():
        text.set_parse_math(False)
        text.set_usetex(False)


def _shorten(name: str, length: int = _NAME) -> str:
    """Make a name of others fit to be drawn; its ends tell most."""
    name = printable(name)
    if len(name) <= length:
        return name
    return f"{name[: length // 2 - 1]}…{name[-(length // 2) :]}"


def _draw_method(axes: Axes, rows: list[Row], levels: list[float]) -> None:
    method = rows[0].method
    known = METHODS.get(method)
    colour, marker = (known.colour, known.marker) if known else (None, "o")
    values = [[r.accuracy for r in rows if r.sparsity == level] for level in levels]
    at = [i for i, v in enumerate(values) if v]
    axes.errorbar(
        at,
        [np.mean(values[i]) for i in at],
        yerr=[
            float(np.std(values[i], ddof=1)) if len(values[i]) > 1 else 0.0 for i in at
        ],
        color=colour,
        marker=marker,
        ms=5,
        capsize=3,
        label=_shorten(method),
    )


def _draw_means(
    axes: Axes,
    results: Sequence[Recovery],
    value: Callable[[Recovery], float],
    **style: Any,
) -> None:
    epochs = sorted({r.epoch for r in results})
    means = [np.mean([value(r) for r in results if r.epoch == e]) for e in epochs]
    axes.plot(epochs, means, ms=5, **style)


def _draw_stages(axes: Axes, history: Sequence[Stage]) -> None:
    at = [stage.stage for stage in history]
    axes.plot(
        at, [s.loss_before for s in history], "v:", color="#7f7f7f", label="before"
    )
    axes.plot(at, [s.loss for s in history], "o-", color="#d62728", label="after")
    axes.set_xlabel("stage")
    axes.set_ylabel("loss of the stage's examples")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlim(at[0] - 0.5, at[-1] + 0.5)
    axes.legend(loc="upper left")
    other = axes.twinx()
    other.plot(at, [s.sparsity for s in history], "s--", ms=3, color="#1f77b4")
    other.set_ylabel("sparsity", color="#1f77b4")
    other.set_ylim(0, 1)


def _draw_layers(axes: Axes, layers: Sequence[Mapping[str, Any]]) -> None:
    many = len(layers) > _ROOMY
    between = ", " if many else "\n"
    names = [
        f"{_shorten(row['leaf'])}{between}{row['nonzeros']:,} of {row['entries']:,}"
        for row in layers
    ]
    densities = [row["nonzeros"] / max(row["entries"], 1) for row in layers]
    at = range(len(layers))
    axes.barh(at, densities, color="#1f77b4")
    size = 8 if many else 10
    axes.set_yticks(at, names, parse_math=False, usetex=False, fontsize=size)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.set_xlabel("density")


def _draw_pixels(
    figure: Figure, axes: Axes, kernel: np.ndarray, shape: tuple[int, ...]
) -> None:
    left = np.count_nonzero(kernel, axis=1).reshape(*shape[:2], -1).sum(-1)
    image = axes.imshow(left, cmap="magma", vmin=0)
    figure.colorbar(image, ax=axes, shrink=0.8, label="weights left")
    axes.set_title("what the first layer still reads", fontsize="medium")
    axes.set_xticks([])
    axes.set_yticks([])
