"""How the command starts: what it says at once, and what it leaves alone."""

import importlib
import subprocess
import sys
from importlib import metadata
from typing import get_type_hints

import pytest

from swapjax.cli import COMMANDS, commands, main
from swapjax.core import extras
from swapjax.pruning.methods import METHODS

# What no command needs before its options are parsed.
HEAVY = "flax, matplotlib, ott, sklearn, PIL, swapjax.experiments.models"


def loaded_after(*words):
    """Which of HEAVY a process has imported when the command ends."""
    script = f"""
import sys
from swapjax.cli import main
try:
    main({list(words)})
except SystemExit as end:
    assert not end.code, end.code
print(*(n for n in "{HEAVY}".split(", ") if n in sys.modules), sep=", ")
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    "words", [["--help"], ["--version"], ["train", "--help"], ["compare", "--help"]]
)
def test_what_is_heavy_waits_for_a_command_that_needs_it(words):
    assert loaded_after(*words) == ""


def test_the_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"swapjax {metadata.version('swapjax')}\n"


@pytest.mark.parametrize("words", [[], ["prun"], ["--prune"]])
def test_what_is_no_command_is_refused(words, capsys):
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 2
    commands = "prune,train,search,compare,inspect,demo"
    assert f"usage: swapjax {{{commands}}} [" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--help"], ["--version"]])
def test_help_and_version_need_no_extra(words, monkeypatch):
    for name in extras.PACKAGES["cli"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(SystemExit) as end:
        main(words)
    assert end.value.code == 0


@pytest.mark.parametrize("name", ["rich", "tyro", "flax", "sklearn"])
def test_without_its_extra_a_command_is_one_sentence(name, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, name, None)
    assert main(["demo"]) == 2
    wanted = extras.DISTRIBUTIONS.get(name, name)
    assert capsys.readouterr().err == (
        f'swapjax demo needs {wanted}: pip install "swapjax[cli]"\n'
    )


def test_every_command_has_options_and_a_function():
    assert list(COMMANDS) == list(commands.OPTIONS)
    for name, kind in commands.OPTIONS.items():
        assert COMMANDS[name].removesuffix(".") in kind.__doc__
        assert callable(getattr(importlib.import_module(f"swapjax.cli.{name}"), name))


def test_options_are_data():
    for kind in commands.OPTIONS.values():
        for base in kind.__mro__[:-1]:
            own = [name for name in vars(base) if not name.startswith("__")]
            assert set(own) <= get_type_hints(base).keys()


def test_every_option_of_a_method_is_one_of_the_command():
    fields = get_type_hints(commands.OPTIONS["prune"])
    for row in METHODS.values():
        assert set(row.options) <= fields.keys()
