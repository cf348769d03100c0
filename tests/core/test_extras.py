"""What is said where an extra is missing: one sentence with the line to type."""

import importlib
import re
import sys
import tomllib
from pathlib import Path

import pytest

from swapjax.core import extras

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


def brought(extra, groups):
    """The distributions that an extra names, those of extras in it included."""
    names = set()
    for line in groups[extra]:
        if inner := re.match(r"swapjax\[(.*)\]", line):
            for other in inner[1].split(","):
                names |= brought(other, groups)
        else:
            names.add(re.match(r"[\w-]+", line)[0])
    return names


@pytest.mark.parametrize("extra", extras.PACKAGES)
def test_the_table_names_what_pyproject_installs(extra):
    groups = tomllib.loads(PYPROJECT.read_text())["project"]["optional-dependencies"]
    names = {extras.DISTRIBUTIONS.get(n, n) for n in extras.PACKAGES[extra]}
    assert names == brought(extra, groups)


def test_bounds_are_lower_ones_and_every_line_says_what_it_is_for():
    text = PYPROJECT.read_text()
    listed = text[text.index("dependencies = [") : text.index("[project.scripts]")]
    lines = [line for line in listed.splitlines() if line.startswith('    "')]
    assert len(lines) > 20
    for line in lines:
        assert re.fullmatch(
            r'    "(swapjax\[[a-z,]+\]|[\w-]+>=[\d.]+)", +# \S.*', line
        ), line


@pytest.mark.parametrize("name", ["flax", "PIL"])
def test_the_laboratory_says_what_to_install(name, monkeypatch):
    monkeypatch.setitem(sys.modules, name, None)
    wanted = extras.DISTRIBUTIONS.get(name, name)
    with pytest.raises(ImportError) as error:
        importlib.reload(importlib.import_module("swapjax.experiments"))
    assert str(error.value) == (
        f'swapjax.experiments needs {wanted}: pip install "swapjax[experiments]"'
    )


def test_a_finder_that_refuses_is_taken_as_missing(monkeypatch):
    class Refuse:
        def find_spec(self, name, *_):
            if name == "tyro":
                raise ImportError(name)

    for name in [n for n in sys.modules if n.split(".")[0] == "tyro"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Refuse(), *sys.meta_path])
    with pytest.raises(
        ImportError, match=r'^x needs tyro: pip install "swapjax\[cli\]"$'
    ):
        extras.require("cli", "x")
