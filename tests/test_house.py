"""The rule of the house: nothing imports upward, no room is too large to read."""

import ast
import graphlib
from pathlib import Path

import pytest

HOUSE = Path(__file__).parents[1] / "swapjax"
FLOORS = (
    {"core"}, {"roles"}, {"sparsity", "loops"}, {"corruptions", "gradients", "io"},
    {"activations"},
    {"pruning", "robust", "training", "backward", "search", "deploy"},
    {"experiments"}, {"cli"}, {"face"},
)  # fmt: skip
INSIDE = ("method", "solvers", "methods", "prune")  # of pruning, from below
EXTRAS = {"flax", "matplotlib", "rich", "tyro", "sklearn", "PIL"}
FILES = {
    ".".join(("swapjax", *path.relative_to(HOUSE).with_suffix("").parts)): path
    for path in sorted(HOUSE.rglob("*.py"))
}


def imports(path):
    """What a file imports anywhere in it, for types only and in functions included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                there = {whole, f"{whole}.__init__"} & set(FILES)
                yield whole if there else node.module


def floor(module):
    room = module.split(".")[1]
    return next(i for i, rooms in enumerate(FLOORS) if room in rooms)


def upward(module, imported):
    """Whether an import climbs, or goes to another room on the same floor."""
    source, target = module.split("."), imported.split(".")
    if target[0] in EXTRAS:
        return source[1] not in ("experiments", "cli")
    if target[0] != "swapjax":
        return False
    if len(target) == 1:
        return True  # the face is above all
    if source[1] != target[1]:
        return floor(imported) >= floor(module)
    if source[1] == "pruning" and {source[2], target[2]} <= set(INSIDE):
        return INSIDE.index(target[2]) > INSIDE.index(source[2])
    return False


@pytest.mark.parametrize("module", [m for m in FILES if m != "swapjax.__init__"])
def test_nothing_imports_upward(module):
    found = [name for name in imports(FILES[module]) if upward(module, name)]
    assert not found, f"{module} imports {found}"


def test_no_import_runs_in_a_circle():
    def file_of(name):
        return name if name in FILES else f"{name}.__init__"

    graph = {
        module: {file_of(n) for n in imports(path) if file_of(n) in FILES} - {module}
        for module, path in FILES.items()
    }
    tuple(graphlib.TopologicalSorter(graph).static_order())  # CycleError names it


def test_only_the_face_and_rooms_lie_at_the_root():
    loose = {path.name for path in HOUSE.iterdir() if path.is_file()}
    assert loose == {"__init__.py", "py.typed"}


@pytest.mark.parametrize("module", FILES)
def test_everything_can_be_read_at_a_glance(module):
    text = FILES[module].read_text()
    assert text.count("\n") <= 350
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef):
            assert node.end_lineno - node.lineno < 250, node.name
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            told = ast.get_docstring(node, clean=False) or ""
            lines = node.end_lineno - node.lineno + 1 - len(told.splitlines())
            assert lines <= 80, f"{node.name} has {lines} lines"
