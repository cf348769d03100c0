"""What was pruned, as tables for people and JSON for programs."""

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

from swapjax.core import files, keys, trees
from swapjax.core.text import printable
from swapjax.core.types import Masks, Params
from swapjax.experiments.row import Row
from swapjax.pruning import Stage
from swapjax.roles.find import find_roles
from swapjax.roles.role import Role
from swapjax.sparsity.stacking import Stacking
from swapjax.training import Epoch, Level

_ROWS = 24  # of a table of epochs
_KEPT = 12  # leaves that are never pruned, which are shown one by one
# Columns of it, where epochs tell these: images that stand under a few steps of PGD,
# flipped labels that are learnt, and multiplications that are left of the way back.
_TOLD = {
    "PGD %": ("robust_batch", 100.0),
    "flipped %": ("memorized", 1.0),
    "backward %": ("backward", 100.0),
}
_LEAF = 10  # columns for names of leaves, in however narrow a terminal


def layers(params: Params, masks: Masks) -> list[dict[str, Any]]:
    """Count entries leaf by leaf, and layer by layer of one that is a stack.

    Returns:
        One dict a layer: its name, shape, entries, non-zeros, and whether it was
        prunable.
    """
    import jax

    # Of the keys of a dropout the bits are counted, as files have them.
    paths, leaves = trees.paths(params), [*map(keys.bits, jax.tree.leaves(params))]
    roles = find_roles(params)
    rows = []
    for i, mask in enumerate(jax.tree.leaves(masks)):
        shape, prunable = leaves[i].shape, bool(np.ndim(mask))
        alone = [paths[i]], [shape], [roles[i] if prunable else Role("unknown")]
        stacking = Stacking.of(*alone)
        parts = np.asarray(stacking.slices(0, leaves[i]))
        for name, part in zip(stacking.names(*alone[:2]), parts, strict=True):
            rows.append(
                {
                    "leaf": name,
                    "shape": list(part.shape),
                    "entries": part.size,
                    "nonzeros": int(np.count_nonzero(part)),
                    "prunable": prunable,
                }
            )
    return rows


def layer_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Show `layers`, or what `inspect` read from a file, with sums."""
    table = Table()
    table.add_column("leaf", overflow="fold", min_width=_LEAF)
    for name in ("shape", "entries", "non-zero", "density"):
        table.add_column(name, justify="right", no_wrap=True)
    kept = [row for row in rows if not row.get("prunable", True)]
    if len(kept) > _KEPT:
        rows = [row for row in rows if row.get("prunable", True)]
    for row in rows:
        shape = "x".join(map(str, row["shape"])) or "scalar"
        name = row["leaf"] if row.get("prunable", True) else f"{row['leaf']} (kept)"
        # Text, not str: names may hold what looks like rich's markup.
        table.add_row(
            Text(printable(name)), shape, *_counts(row["nonzeros"], row["entries"])
        )
    table.add_section()
    prunable = [row for row in rows if row.get("prunable", True)]
    if kept:
        table.add_row("prunable", "", *_total(prunable))
    if len(kept) > _KEPT:
        table.add_row(f"{len(kept)} leaves (kept)", "", *_total(kept))
    table.add_row("all", "", *_total([*prunable, *kept]))
    return table


def stage_table(history: Sequence[Stage]) -> Table:
    """Show what each stage did."""
    table = Table()
    for name in ("stage", "sparsity", "kept", "objective", "loss", "seconds"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("status", min_width=9)  # wraps, so that numbers need not
    for stage in history:
        first, last = stage.objective
        table.add_row(
            str(stage.stage),
            f"{stage.sparsity:.4f}",
            f"{stage.kept:,}",
            "" if np.isnan(last) else f"{first:.3g} to {last:.3g}",
            f"{stage.loss:.4f}",
            f"{stage.seconds:.2f}",
            _words(stage.status.name),
        )
    return table


def training_table(history: Sequence[Epoch] | Sequence[Level]) -> Table:
    """Show what epochs did, or the levels of a lottery; of many, not all."""
    pick = max(1, math.ceil(len(history) / _ROWS))
    # The last one is always there.
    first = (len(history) - 1) % pick if history else 0
    some: list[Epoch | Level] = [*history[first::pick]]
    table = Table(caption=f"every {pick} epochs" if pick > 1 else None)
    told = _told([part for part in some if isinstance(part, Epoch)])
    if any(isinstance(part, Level) for part in some):
        names = ["level", "sparsity", "kept", "test %", "seconds"]
    else:
        names = ["epoch", "loss", "test %", *told, "sparsity", "churn", "seconds"]
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for i, part in enumerate(some):
        accuracy = "" if part.accuracy is None else f"{part.accuracy:.2f}"
        sparsity, seconds = f"{part.sparsity:.4f}", f"{part.seconds:.2f}"
        if isinstance(part, Level):
            kept = f"{part.kept:,}"
            table.add_row(str(part.level), sparsity, kept, accuracy, seconds)
        else:
            more = (f"{values[i]:.2f}" for values in told.values())
            table.add_row(str(part.epoch), f"{part.loss:.4f}", accuracy, *more,
                          sparsity, f"{part.churn:,}", seconds)  # fmt: skip
    return table


def _told(history: Sequence[Epoch]) -> dict[str, list[float]]:
    """Take from epochs what all of them tell of columns, in percent."""
    found = {}
    for name, (key, times) in _TOLD.items():
        values = [epoch.told[key] for epoch in history if key in epoch.told]
        if values and len(values) == len(history):
            found[name] = [times * value for value in values]
    return found


def comparison_table(rows: Sequence[Row]) -> Table:
    """Show test accuracies: one line a method, one column a sparsity.

    Several seeds are shown as mean and standard deviation; the best of each column is
    bold, for every kind of noise. The last column is the median time of a run, since
    the first run of a method compiles it. Five sparsities fit 80 columns.
    """
    levels = sorted({row.sparsity for row in rows})
    noises = list(dict.fromkeys(row.noise for row in rows))
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=0)
    table.add_column("method", no_wrap=True)
    for level in levels:
        table.add_column(f"{level:g}", justify="right", no_wrap=True, min_width=6)
    table.add_column("a run", justify="right", no_wrap=True, style="dim", min_width=6)
    for noise in noises:
        group = [row for row in rows if row.noise == noise]
        methods = list(dict.fromkeys(row.method for row in group))
        columns = [
            _best_in_bold(
                [
                    [r.accuracy for r in group if (r.method, r.sparsity) == (m, level)]
                    for m in methods
                ]
            )
            for level in levels
        ]
        if len(noises) > 1:
            table.add_row(Text(printable(noise)), style="italic")
        for method, *cells in zip(methods, *columns, strict=True):
            seconds = float(np.median([r.seconds for r in group if r.method == method]))
            table.add_row(Text(printable(method)), *cells, f"{seconds:.1f} s")
        table.add_section()
    return table


def write_json(path: str | Path, content: Any) -> None:
    """Write JSON, whole or not at all; numbers that are not finite become null."""
    files.write_text(path, to_json(content))


def to_json(content: Any) -> str:
    """Make JSON; numbers that are not finite become null."""
    return json.dumps(_strict(content), indent=2) + "\n"


def write_rows(path: str | Path, rows: Sequence[Row]) -> None:
    """Write a JSON list with one run a line, whole or not at all.

    Each has a digest of its other columns.
    """
    columns = [row.to_dict() for row in rows]
    lines = ",\n".join(json.dumps({**c, "digest": _digest(c)}) for c in columns)
    files.write_text(path, f"[\n{lines}\n]\n" if rows else "[]\n")


def read_rows(path: str | Path) -> list[Row]:
    """Read what `write_rows` wrote.

    Raises:
        ValueError: for a file of something else, and rows that were changed since.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(content, list):
            raise ValueError("a list wanted")
        return [_row(number, columns) for number, columns in enumerate(content, 1)]
    except (OSError, ValueError, RecursionError) as e:
        raise ValueError(f"{path}: not a table of runs: {e}") from None


def _row(number: int, columns: Any) -> Row:
    own = dict(columns) if isinstance(columns, dict) else columns
    digest = own.pop("digest", None) if isinstance(own, dict) else None
    try:
        row = Row.from_dict(own)
    except ValueError as e:
        raise ValueError(f"row {number}: {e}") from None
    if digest is None:
        raise ValueError(
            f"row {number} has no digest, as rows of swapjax 0.2 and before"
        )
    if digest != _digest(own):
        raise ValueError(f"row {number} is not as it was written")
    return row


def _digest(columns: Mapping[str, Any]) -> str:
    text = json.dumps(columns, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _best_in_bold(values: Sequence[list[float]]) -> list[Text]:
    # A mean of NaN, of a run that failed, is not >= 0.
    means = [float(np.mean(v)) if v else -1.0 for v in values]
    best = max((m for m in means if m >= 0), default=0.0)
    return [
        Text(_spread(v), style="bold" if m >= best - 1e-9 else "")
        for v, m in zip(values, means, strict=True)
    ]


def _spread(values: list[float]) -> str:
    if not values:
        return ""
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{np.mean(values):.2f}±{np.std(values, ddof=1):.2f}"


def _total(rows: Sequence[Mapping[str, Any]]) -> tuple[str, str, str]:
    nonzeros = sum(row["nonzeros"] for row in rows)
    return _counts(nonzeros, sum(row["entries"] for row in rows))


def _words(name: str) -> str:
    return name.lower().replace("_", " ")


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
