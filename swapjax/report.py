"""What was pruned, as tables for people and JSON for programs."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from swapjax import files, trees
from swapjax.experiments import Row
from swapjax.oneshot import Stage
from swapjax.types import Masks, Params


def layers(params: Params, masks: Masks) -> list[dict[str, Any]]:
    """Count entries leaf by leaf.

    Returns:
        One dict a leaf: its path, shape, entries, non-zeros, and whether it was
        prunable.
    """
    import jax

    rows = []
    for path, leaf, mask in zip(
        trees.paths(params),
        jax.tree.leaves(params),
        jax.tree.leaves(masks),
        strict=True,
    ):
        rows.append(
            {
                "leaf": path,
                "shape": list(leaf.shape),
                "entries": leaf.size,
                "nonzeros": int(np.count_nonzero(np.asarray(leaf))),
                "prunable": bool(np.ndim(mask)),
            }
        )
    return rows


def layer_table(rows: Sequence[Mapping[str, Any]], title: str | None = None) -> Table:
    """Show `layers`, or what `inspect` read from a file, with a sum."""
    # Text, not str: names may hold what looks like rich's markup.
    table = Table(title=None if title is None else Text(title), title_justify="left")
    table.add_column("leaf")
    for name in ("shape", "entries", "non-zero", "density"):
        table.add_column(name, justify="right")
    for row in rows:
        shape = "x".join(map(str, row["shape"])) or "scalar"
        name = row["leaf"] if row.get("prunable", True) else f"{row['leaf']} (kept)"
        table.add_row(Text(name), shape, *_counts(row["nonzeros"], row["entries"]))
    nonzeros = sum(row["nonzeros"] for row in rows)
    entries = sum(row["entries"] for row in rows)
    table.add_section()
    table.add_row("all", "", *_counts(nonzeros, entries))
    return table


def stage_table(history: Sequence[Stage]) -> Table:
    """Show what each stage did."""
    table = Table(title="Stages", title_justify="left")
    for name in ("stage", "sparsity", "kept", "objective", "loss", "seconds"):
        table.add_column(name, justify="right")
    table.add_column("status")
    for stage in history:
        first, last = stage.objective
        objective = "" if np.isnan(last) else f"{first:.4g} to {last:.4g}"
        table.add_row(
            str(stage.stage),
            f"{stage.sparsity:.4f}",
            f"{stage.kept:,}",
            objective,
            f"{stage.loss:.4f}",
            f"{stage.seconds:.2f}",
            stage.status.name.lower().replace("_", " "),
        )
    return table


def comparison_table(rows: Sequence[Row], dense: float | None = None) -> Table:
    """Show accuracies, one line a method and noise, one column a sparsity.

    Several seeds are shown as mean and standard deviation; the best of each noise and
    sparsity is bold.
    """
    levels = sorted({row.sparsity for row in rows})
    title = "Test accuracy in percent"
    if dense is not None:
        title += f"; the dense network has {dense:.2f}"
    table = Table(title=title, title_justify="left")
    table.add_column("gradients")
    table.add_column("method")
    for level in levels:
        table.add_column(f"{level:g}", justify="right")
    table.add_column("seconds a run", justify="right")
    for noise in dict.fromkeys(row.noise for row in rows):
        group = [row for row in rows if row.noise == noise]
        methods = list(dict.fromkeys(row.method for row in group))
        means = {
            (m, s): np.mean(v)
            for m in methods
            for s in levels
            if (v := _of(group, m, s))
        }
        best = {  # NaN, of a run that failed, is not >= 0
            s: max((v for (_, t), v in means.items() if t == s and v >= 0), default=0)
            for s in levels
        }
        label = "clean" if noise is None else f"noise {noise[0]:g} on {noise[1]:.0%}"
        for i, method in enumerate(methods):
            cells = []
            for level in levels:
                values = _of(group, method, level)
                bold = values and np.mean(values) >= best[level] - 1e-9
                cells.append(Text(_spread(values), style="bold" if bold else ""))
            seconds = np.mean([r.seconds for r in group if r.method == method])
            table.add_row("" if i else label, Text(method), *cells, f"{seconds:.1f}")
        table.add_section()
    return table


def write_json(path: str | Path, content: Any) -> None:
    """Write JSON, whole or not at all; numbers that are not finite become null."""
    files.write_text(path, json.dumps(_strict(content), indent=2) + "\n")


def write_rows(path: str | Path, rows: Sequence[Row]) -> None:
    """Write a JSON list with one run a line, whole or not at all."""
    lines = ",\n".join(json.dumps(row.to_dict()) for row in rows)
    files.write_text(path, f"[\n{lines}\n]\n" if rows else "[]\n")


def read_rows(path: str | Path) -> list[Row]:
    """Read what `write_rows` wrote.

    Raises:
        ValueError: for a file of something else.
    """
    try:
        return [Row.from_dict(row) for row in json.loads(Path(path).read_text())]
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise ValueError(f"{path}: not a table of runs: {e}") from None


def _of(rows: Sequence[Row], method: str, sparsity: float) -> list[float]:
    return [r.accuracy for r in rows if r.method == method and r.sparsity == sparsity]


def _spread(values: list[float]) -> str:
    if not values:
        return ""
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{np.mean(values):.2f} ± {np.std(values, ddof=1):.2f}"


def _counts(nonzeros: int, entries: int) -> tuple[str, str, str]:
    density = f"{nonzeros / entries:.2%}" if entries else ""
    return f"{entries:,}", f"{nonzeros:,}", density


def _strict(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _strict(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(v) for v in value]
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value
