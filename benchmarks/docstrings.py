"""A corpus for retrieval that comes with Python: docstrings and their functions.

A query is the first line of a docstring in the standard library, its document the
function without the docstring and without comments. Which half a pair is in, for
calibration or for the test, the hash of its name tells.
"""

import ast
import copy
import hashlib
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_LEAST = 4  # words of a query
_APART = {"test", "tests", "idlelib", "lib2to3", "turtledemo", "site-packages"}


class Pair(NamedTuple):
    """A docstring and its function.

    Attributes:
        name: of the module and the function.
        query: the first line of the docstring.
        document: the source of the function, without the docstring.
    """

    name: str
    query: str
    document: str


def split(calibration: int, test: int) -> tuple[list[Pair], list[Pair]]:
    """Pick pairs for calibration and for the test, by the hashes of their names.

    Args:
        calibration: how many.
        test: how many.
    """
    ordered = sorted(pairs(), key=lambda pair: _hash(pair.name))
    halves: tuple[list[Pair], list[Pair]] = ([], [])
    for pair in ordered:
        halves[_hash(pair.name)[-1] % 2].append(pair)
    return halves[0][:calibration], halves[1][:test]


def pairs(root: Path | None = None) -> list[Pair]:
    """Find all pairs, none of which shares its query or document with another.

    Args:
        root: the folder of the standard library; by default that of this Python.
    """
    root = Path(sysconfig.get_paths()["stdlib"]) if root is None else root
    found: dict[str, Pair] = {}
    queries: set[str] = set()
    documents: set[str] = set()
    for path in sorted(root.rglob("*.py")):
        inside = path.relative_to(root)
        if _APART.isdisjoint(inside.parts):
            module = ".".join(inside.with_suffix("").parts)
            for pair in _in_module(path, module):
                if pair.query not in queries and pair.document not in documents:
                    found.setdefault(pair.name, pair)
                queries.add(pair.query)
                documents.add(pair.document)
    return list(found.values())


def _in_module(path: Path, module: str) -> Iterator[Pair]:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError):  # files that other tools are tested with
        return
    yield from _inside(tree, module)


def _inside(node: ast.AST, name: str) -> Iterator[Pair]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            yield from _inside(child, f"{name}.{child.name}")
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            told = (ast.get_docstring(child) or "").strip().partition("\n")[0]
            if len(told.split()) >= _LEAST and len(child.body) > 1:
                bare = copy.copy(child)
                bare.body, bare.decorator_list = child.body[1:], []
                yield Pair(f"{name}.{child.name}", told, ast.unparse(bare))


def _hash(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()
