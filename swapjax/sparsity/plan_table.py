"""A plan as a table: what each leaf is, what it keeps, what is left out and why."""

import textwrap
from collections.abc import Sequence

from swapjax.roles.role import Role
from swapjax.sparsity.allocation import some
from swapjax.sparsity.layout import Layout
from swapjax.sparsity.stacking import Stacking

_WIDTH = 100
_HEADS = ("leaf", "shape", "stack", "inputs", "outputs", "entries", "keeps", "rule")
_LEFT = (0, 7)  # the columns that begin at the left


def tabulate(
    layout: Layout,
    stacking: Stacking,
    keep: Sequence[int | None],
    rules: Sequence[str],
    kept: int,
    left_out: Sequence[tuple[str, str]],
) -> str:
    """Tabulate a plan, a line for each leaf, and for each layer that has its own rule.

    Args:
        layout: the prunable leaves.
        stacking: their layers.
        keep: what each layer keeps; None where it competes with others.
        rules: by which each layer is pruned.
        kept: the entries that are kept in all.
        left_out: the other leaves, and why each is one of them.

    Returns:
        Lines of at most 100 characters, unless paths are long.
    """
    rows = [_HEADS]
    names = stacking.names(layout.paths, layout.shapes)
    for i, path in enumerate(layout.paths):
        numbers, size = stacking.numbers[i], f"{layout.sizes[i]:,}"
        common = max({rules[n] for n in numbers}, key=[rules[n] for n in numbers].count)
        own = [n for n in numbers if rules[n] != common]
        counts = [keep[n] for n in numbers if n not in own]
        known = [count for count in counts if count is not None]
        told = f"{sum(known):,}" if len(known) == len(counts) else ""
        rows.append((path, *_axes(layout, i), size, told, common))
        each = layout.sizes[i] // len(numbers)
        for n in own:
            told = "" if keep[n] is None else f"{keep[n]:,}"
            rows.append((names[n], "", "", "", "", f"{each:,}", told, rules[n]))
    rows.append(("all", "", "", "", "", f"{layout.total:,}", f"{kept:,}", ""))
    widths = [max(len(row[c]) for row in rows) for c in range(len(_HEADS))]
    lines = [
        "  ".join(
            f"{cell:<{w}}" if c in _LEFT else f"{cell:>{w}}"
            for c, (cell, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    listed = [_told_by(layout.roles), *_reasons(left_out)]
    return "\n".join(lines + [part for text in listed for part in _wrap(text)])


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


def _told_by(roles: Sequence[Role]) -> str:
    """Say where the roles of leaves come from."""
    found = dict.fromkeys(
        role.reason if role.kind == "matrix" else "nothing" for role in roles
    )
    return f"stack, inputs and outputs are told by {', '.join(found)}"


def _reasons(left_out: Sequence[tuple[str, str]]) -> list[str]:
    """List what is left out, by reason, a few of each."""
    found: dict[str, list[str]] = {}
    for path, reason in left_out:
        found.setdefault(reason, []).append(path or "the array")
    return [
        f"left out, {reason or 'is no matrix'}: {some(paths)}"
        for reason, paths in found.items()
    ]


def _wrap(text: str) -> list[str]:
    return textwrap.wrap(
        text, _WIDTH, subsequent_indent="  ", break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip
