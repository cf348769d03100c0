"""Make Markdown of what docstrings hold in other forms."""

import re
from typing import Any

import griffe

import swapjax

BORDER = re.compile(r"^=+( +=+)+$")


def table(lines: list[str]) -> list[str]:
    """Turn a table with borders of ``=`` into one with ``|``."""
    columns = [match.span() for match in re.finditer("=+", lines[0])]
    columns[-1] = (columns[-1][0], max(map(len, lines)))
    parts: list[list[list[str]]] = [[]]
    for line in lines[1:-1]:
        cells = [line[start:end].strip() for start, end in columns]
        if BORDER.match(line):
            parts.append([])
        elif parts[-1] and not cells[0]:  # goes on
            pairs = zip(parts[-1][-1], cells, strict=True)
            parts[-1][-1] = [f"{a} {b}".strip() for a, b in pairs]
        else:
            parts[-1].append(cells)
    head = parts[0] if len(parts) > 1 else [[""] * len(columns)]
    rows = [*head, ["---"] * len(columns), *parts[-1]]
    return ["", *("| " + " | ".join(row) + " |" for row in rows), ""]


def markdown(text: str, names: set[str]) -> str:
    """Rewrite tables, headings of examples, and names that the reference has."""
    done: list[str] = []
    lines = text.splitlines()
    while lines:
        if BORDER.match(lines[0]):
            end = next((i for i, line in enumerate(lines[1:], 1) if not line), None)
            done += table(lines[:end])
            del lines[:end]
        else:
            done.append(lines.pop(0))
    text = "\n".join(done).replace("\nExample:\n", "\nExamples:\n")

    def link(match: re.Match) -> str:
        name = match[1].removeprefix("swapjax.")
        return f"[`{name}`][swapjax.{name}]" if name in names else match[0]

    return re.sub(r"(?<!`)`([\w.]+)`(?!`)", link, text)


def of_same_name(package: griffe.Module, path: str) -> str:
    """Follow a path to a module that has a function of its own name."""
    found: Any = package
    for part in path.split(".")[1:]:
        found = found.members[part]
        if found.is_alias:
            return of_same_name(package, found.target_path)
    name = path.rpartition(".")[2]
    return f"{path}.{name}" if found.is_module and name in found.members else path


class Docstrings(griffe.Extension):
    """Rewrite each docstring as it is read."""

    def __init__(self) -> None:
        self.names = set(swapjax.__all__)  # as many as the reference has

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Tell functions from the modules that they have their names of."""
        for name in self.names if pkg.path == "swapjax" else ():
            alias = pkg.members.get(name)
            if alias is not None and alias.is_alias:
                path = of_same_name(pkg, alias.target_path)
                pkg.set_member(name, griffe.Alias(name, path, parent=pkg))

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """See every object once."""
        if not obj.is_alias and obj.docstring:
            obj.docstring.value = markdown(obj.docstring.value, self.names)
