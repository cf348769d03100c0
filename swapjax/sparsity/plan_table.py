"""A plan as a table: what each leaf is, what it keeps, what is left out and why."""

import math
import re
import textwrap
from collections.abc import Sequence
from typing import NamedTuple

from swapjax.sparsity.allocation import some
from swapjax.sparsity.layout import Layout
from swapjax.sparsity.stacking import Stacking

_WIDTH = 100
_HEADS = ("leaf", "shape", "stack", "inputs", "outputs", "entries", "keeps", "rule")
_LEFT = (0, 7)  # the columns that begin at the left
_MANY = 24  # lines; if there are more, leaves that differ in numbers alone share one
_FEW = 6  # paths, which are listed as they are
_NUMBER = re.compile(r"\d+")


class _Row(NamedTuple):
    """What one line tells: of a leaf, or of what leaves have in common.

    Attributes:
        path: of the leaf.
        axes: its shape, and the sides that are stack, inputs and outputs.
        entries: how many there are.
        keeps: how many stay; None where that is not known.
        rule: by which.
    """

    path: str
    axes: tuple[str, str, str, str]
    entries: int
    keeps: int | None
    rule: str

    def cells(self) -> tuple[str, ...]:
        told = "" if self.keeps is None else f"{self.keeps:,}"
        path = self.path or "the array"
        return (path, *self.axes, f"{self.entries:,}", told, self.rule)


def tabulate(
    layout: Layout,
    stacking: Stacking,
    keep: Sequence[int | None],
    rules: Sequence[str],
    kept: int,
    left_out: Sequence[tuple[str, str]],
) -> str:
    """Tabulate a plan, a line for each leaf, and for each layer that has its own rule.

    In a long table the leaves of a list share a line, with their sums, where they are
    alike: ``layers.0-31.mlp.up_proj.weight``.

    Args:
        layout: the prunable leaves.
        stacking: their layers.
        keep: what each layer keeps; None where it competes with others.
        rules: by which each layer is pruned.
        kept: the entries that are kept in all.
        left_out: the other leaves, and why each is one of them.

    Returns:
        Lines of at most 100 characters, unless a path is longer; a path that has not
        enough room has a line of its own.
    """
    rows = []
    names = stacking.names(layout.paths, layout.shapes)
    for i, path in enumerate(layout.paths):
        numbers, size = stacking.numbers[i], layout.sizes[i]
        common = max({rules[n] for n in numbers}, key=[rules[n] for n in numbers].count)
        own = [n for n in numbers if rules[n] != common]
        counts = [keep[n] for n in numbers if n not in own]
        rows.append(_Row(path, _axes(layout, i), size, _sum(counts), common))
        each, none = size // len(numbers), ("",) * 4
        rows += [_Row(names[n], none, each, keep[n], rules[n]) for n in own]
    if len(rows) > _MANY:
        rows = _gathered(rows)
    rows.append(_Row("all", ("",) * 4, layout.total, kept, ""))
    listed = [*_told_by(layout), *_reasons(left_out)]
    lines = _aligned([_HEADS, *(row.cells() for row in rows)])
    return "\n".join(lines + [part for text in listed for part in _wrap(text)])


def _sum(counts: Sequence[int | None]) -> int | None:
    """Sum counts, if all are known."""
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def _gathered(rows: Sequence[_Row]) -> list[_Row]:
    """Let rows share one that are alike but for numbers in their paths."""
    alike: dict[tuple[object, ...], list[_Row]] = {}
    for row in rows:
        alike.setdefault((row.axes, row.rule, _unnumbered(row.path)), []).append(row)
    found = []
    for group in alike.values():
        path = _joint([row.path for row in group])
        if path is None:
            found += group
            continue
        entries = sum(row.entries for row in group)
        keeps = _sum([row.keeps for row in group])
        found.append(group[0]._replace(path=path, entries=entries, keeps=keeps))
    return found


def _shortened(paths: Sequence[str]) -> list[str]:
    """Let paths share one that are alike but for numbers."""
    alike: dict[str, list[str]] = {}
    for path in paths:
        alike.setdefault(_unnumbered(path), []).append(path)
    found: list[str] = []
    for group in alike.values():
        joint = _joint(group)
        found += group if joint is None else [joint]
    return found


def _unnumbered(path: str) -> str:
    return _NUMBER.sub("#", path)


def _joint(paths: Sequence[str]) -> str | None:
    """Write paths that differ in numbers as one; None where some would be missing."""
    if len(paths) == 1:
        return paths[0]
    numbers = {tuple(map(int, _NUMBER.findall(path))) for path in paths}
    places = [sorted(set(place)) for place in zip(*numbers, strict=True)]
    if math.prod(map(len, places)) != len(paths):
        return None
    told = map(_ranges, places)
    return _NUMBER.sub(lambda _: next(told), paths[0])


def _ranges(numbers: Sequence[int]) -> str:
    """Write ascending numbers, as in ``0-3,5``."""
    ends: list[list[int]] = []
    for n in numbers:
        if ends and ends[-1][-1] == n - 1:
            ends[-1] = [ends[-1][0], n]
        else:
            ends.append([n])
    return ",".join("-".join(map(str, pair)) for pair in ends)


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Align cells in columns, beginning with a path that may be too long for one."""
    widths = [max(len(row[c]) for row in rows) for c in range(len(_HEADS))]
    room = _WIDTH - sum(widths[1:]) - 2 * (len(widths) - 1)
    if widths[0] > room:
        widths[0] = max(len(row[0]) for row in rows if len(row[0]) <= max(room, 4))
    lines = []
    for path, *cells in rows:
        row = [path, *cells]
        if len(path) > widths[0]:
            lines.append(path)
            row[0] = ""
        line = "  ".join(
            f"{cell:<{w}}" if c in _LEFT else f"{cell:>{w}}"
            for c, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        lines.append(line.rstrip())
    return lines


def _axes(layout: Layout, leaf: int) -> tuple[str, str, str, str]:
    """Tell the shape of a leaf, and the sides of it that are stack, input and output.

    The axes of what is no matrix are not known.
    """
    shape, role = layout.shapes[leaf], layout.roles[leaf]
    parts = (role.stack, role.inputs, role.outputs)
    stack, inputs, outputs = (_sides([shape[a] for a in part]) for part in parts)
    if role.groups > 1:
        outputs += f" in {role.groups}"
    return _sides(shape), stack, inputs, outputs


def _sides(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _told_by(layout: Layout) -> list[str]:
    """Say where the roles of leaves come from."""
    pairs = list(zip(layout.paths, layout.roles, strict=True))
    sources = dict.fromkeys(role.reason for _, role in pairs if role.kind == "matrix")
    unknown = [path or "the array" for path, role in pairs if role.kind != "matrix"]
    told = [f"stack, inputs and outputs are told by {', '.join(sources)}"]
    more = [f"stack, inputs and outputs are not known: {some(unknown)}"]
    return told * bool(sources) + more * bool(unknown)


def _reasons(left_out: Sequence[tuple[str, str]]) -> list[str]:
    """List what is left out, by reason, a few of each.

    Reasons follow a path in a sentence, as in ``"is looked up by gather"``.
    """
    found: dict[str, list[str]] = {}
    for path, reason in left_out:
        found.setdefault(reason, []).append(path or "the array")
    return [
        f"left out, {(reason or 'no matrix').removeprefix('is ')}: "
        f"{some(paths if len(paths) <= _FEW else _shortened(paths))}"
        for reason, paths in found.items()
    ]


def _wrap(text: str) -> list[str]:
    return textwrap.wrap(
        text, _WIDTH, subsequent_indent="  ", break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip
