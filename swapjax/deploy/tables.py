"""A report as text."""

import textwrap
from collections.abc import Sequence

from swapjax.deploy.forms import Form, Row

_WIDTH = 100
_HEADS = (
    "",
    "entries",
    "nonzero",
    "bytes",
    "bytes packed",
    "bytes deflated",
    "macs",
    "macs left",
    "time of a call",
    "its quartiles",
    "time of dense",
    "compilation",
    "flops of XLA",
    "temporary bytes",
)


def write(
    forms: Sequence[Form], rows: Sequence[Row], other_macs: int, notes: Sequence[str]
) -> str:
    """Write the tables of forms and of leaves, and the notes.

    Args:
        forms: of the network.
        rows: of its leaves.
        other_macs: multiplications of data with data.
        notes: sentences.
    """
    columns = [_HEADS, *map(_form, forms)]
    # What was not measured has no line.
    lines = [line for line in zip(*columns, strict=True) if any(line[1:])]
    told = [f"{note[:1].upper()}{note[1:]}." for note in notes]
    wrapped = [line for text in told for line in textwrap.wrap(text, _WIDTH)]
    tables = [*_aligned(lines), "", *_leaves(rows, other_macs)]
    return "\n".join([*tables, "", *wrapped])


def _form(form: Form) -> tuple[str, ...]:
    size, time = form.size, form.time
    cells = [form.name, *map(_short, (*size, form.macs, form.macs_left))]
    if time is None:
        return (*cells, *[""] * (len(_HEADS) - len(cells)))
    optional = ("" if n is None else _short(n) for n in (time.flops, time.temporary))
    return (
        *cells,
        _seconds(time.seconds),
        " - ".join(map(_seconds, time.quartiles)),
        f"{form.of_dense:.2f}",
        _seconds(time.compile_seconds),
        *optional,
    )


def _leaves(leaves: Sequence[Row], other_macs: int) -> list[str]:
    heads: tuple[str, ...] = ("leaf", "shape", "entries", "nonzero", "macs", "left")
    shrunk = any(row.shrunk_shape is not None for row in leaves)
    heads += ("shrunk to", "macs") if shrunk else ()
    rows = [heads, *(_row(row, shrunk) for row in leaves)]
    if other_macs:
        blank = ("",) * (len(heads) - 5)
        told = _short(other_macs)
        rows.append(("data with data", "", "", "", told, *blank))
    return _aligned(rows)


def _row(row: Row, shrunk: bool) -> tuple[str, ...]:
    cells = [row.path or "the array", _sides(row.shape)]
    cells += [_short(n) for n in (row.entries, row.nonzeros, row.macs, row.macs_left)]
    if shrunk:
        shape = "" if row.shrunk_shape is None else _sides(row.shrunk_shape)
        cells += [shape, _short(row.shrunk_macs or 0)]
    return tuple(cells)


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Align cells in columns, the first of which begins at the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            f"{cell:<{w}}" if i == 0 else f"{cell:>{w}}"
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _sides(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _short(number: float) -> str:
    """Write a number with three digits."""
    for unit, size in (("", 1), ("k", 1e3), ("M", 1e6), ("G", 1e9)):
        if number < 999.5 * size:
            return f"{number / size:.3g}{unit}"
    return f"{number / 1e12:.3g}T"


def _seconds(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} us"
