"""Architectures by name: which operation is on which edge of a cell."""

import ast
import dataclasses
import re
from collections.abc import Iterable

Edge = tuple[int, int]
Choice = tuple[int, int, str]

_OPERATION = re.compile(r"([A-Za-z0-9_.-]+)~([0-9]+)")


@dataclasses.dataclass(frozen=True)
class Genotype:
    """The operations of an architecture.

    Its text is that of NAS-Bench-201, ``|op~0|+|op~0|op~1|+...``: nodes between plus
    signs, for each the operations on the edges from earlier nodes. Several kinds of
    cells follow one another as ``kind: text; kind: text``. Where these are ``normal``
    and ``reduce``, it is the text of DARTS,
    ``Genotype(normal=[('op', node), ...], normal_concat=range(2, 6), ...)``.

    Attributes:
        cells: for each kind of cell its name and its edges, ``(from, to, operation)``;
            they are put in order of ``to``, then of ``from``.
    """

    cells: tuple[tuple[str, tuple[Choice, ...]], ...]

    def __post_init__(self) -> None:
        try:
            cells = tuple((kind, _in_order(choices)) for kind, choices in self.cells)
        except (TypeError, ValueError):
            raise ValueError(
                "cells must be kinds with edges (from, to, operation) each; to read a "
                f"text call the space's parse; got {self.cells!r}"
            ) from None
        object.__setattr__(self, "cells", cells)

    def of(self, kind: str) -> tuple[Choice, ...]:
        """Return the edges of one kind of cell.

        Raises:
            ValueError: if there is no such kind.
        """
        for name, choices in self.cells:
            if name == kind:
                return choices
        kinds = ", ".join(name for name, _ in self.cells)
        raise ValueError(f"genotype has cells of kind {kinds}, not {kind!r}")

    def __str__(self) -> str:
        if [kind for kind, _ in self.cells] == ["normal", "reduce"]:
            return f"Genotype({', '.join(_darts_part(*cell) for cell in self.cells)})"
        texts = [_cell_text(choices) for _, choices in self.cells]
        if len(texts) == 1:
            return texts[0]
        kinds = [kind for kind, _ in self.cells]
        return "; ".join(f"{k}: {t}" for k, t in zip(kinds, texts, strict=True))


def parse(text: str, kind: str = "cell") -> Genotype:
    """Read the text of a genotype, of one of the forms that `Genotype` writes.

    Args:
        text: of one architecture.
        kind: the kind of cell, where the text names none.

    Raises:
        ValueError: for what is no genotype.
    """
    if not isinstance(text, str):
        raise ValueError(f"genotype must be a text, got {type(text).__name__}")
    if "(" in text:
        return Genotype(_darts_cells(text.strip()))
    cells = []
    for part in text.split(";"):
        name, colon, rest = part.rpartition(":")
        cells.append((name.strip() if colon else kind, _cell(text, rest.strip())))
    return Genotype(tuple(cells))


def _cell(whole: str, text: str) -> tuple[Choice, ...]:
    """Read one cell of the form of NAS-Bench-201."""
    choices = []
    for node, part in enumerate(text.split("+"), 1):
        if len(part) < 2 or part[0] + part[-1] != "||":
            raise ValueError(_no_genotype(whole))
        for told in part[1:-1].split("|") if part != "||" else ():
            match = _OPERATION.fullmatch(told)
            if match is None or int(match[2]) >= node:
                raise ValueError(_no_genotype(whole))
            choices.append((int(match[2]), node, match[1]))
    return tuple(choices)


def _cell_text(choices: tuple[Choice, ...]) -> str:
    nodes = max((to for _, to, _ in choices), default=0)
    parts = []
    for node in range(1, nodes + 1):
        told = [f"{op}~{source}" for source, to, op in choices if to == node]
        parts.append(f"|{'|'.join(told)}|" if told else "||")
    return "+".join(parts)


def _darts_part(kind: str, choices: tuple[Choice, ...]) -> str:
    pairs = [(op, source) for source, _, op in choices]
    last = max((to for _, to, _ in choices), default=1)
    return f"{kind}={pairs}, {kind}_concat=range(2, {last + 1})"


def _darts_cells(text: str) -> tuple[tuple[str, tuple[Choice, ...]], ...]:
    """Read the form of DARTS: two pairs for each node, from node 2 on."""
    try:
        call = ast.parse(text, mode="eval").body
        if not isinstance(call, ast.Call) or call.args:
            raise ValueError
        told = {keyword.arg: keyword.value for keyword in call.keywords}
        cells = []
        for kind in ("normal", "reduce"):
            pairs = ast.literal_eval(told.pop(kind))
            if any(type(n) is not int for _, n in pairs):
                raise ValueError
            choices = [(n, 2 + i // 2, str(op)) for i, (op, n) in enumerate(pairs)]
            concat = ast.unparse(told.pop(f"{kind}_concat")).replace(" ", "")
            last = 2 + len(choices) // 2
            nodes = ",".join(map(str, range(2, last)))
            if concat not in (f"range(2,{last})", f"[{nodes}]", f"({nodes})"):
                raise ValueError
            if len(choices) % 2 or any(not 0 <= a < b for a, b, _ in choices):
                raise ValueError
            cells.append((kind, tuple(choices)))
        if told:
            raise ValueError
    except (SyntaxError, KeyError, TypeError, ValueError):
        raise ValueError(_no_genotype(text)) from None
    return tuple(cells)


def _in_order(choices: Iterable[Choice]) -> tuple[Choice, ...]:
    numbers = [(int(source), int(to), str(op)) for source, to, op in choices]
    return tuple(sorted(numbers, key=lambda choice: (choice[1], choice[0])))


def _no_genotype(text: str) -> str:
    return (
        f"genotype must read |op~0|+|op~0|op~1|+... with nodes that come before, or as "
        f"DARTS writes it with all inner nodes concatenated, got {text!r}"
    )
