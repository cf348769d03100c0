"""The README's examples run as they are written."""

import re

from pages import ROOT, blocks

README = ROOT / "README.md"


def test_the_examples_run_one_after_the_other(capsys):
    names = {}
    for example in blocks(README):
        exec(example, names)
    density, accuracy, _ = re.findall(r"[\d.]+", capsys.readouterr().out)[:3]
    assert abs(float(density) - 0.1) < 1e-3
    assert float(accuracy) > 80


def test_it_is_short():
    assert len(README.read_text().splitlines()) <= 150


def test_the_commands_that_are_named_exist():
    makefile = (ROOT / "Makefile").read_text()
    text = README.read_text() + (ROOT / "CONTRIBUTING.md").read_text()
    for target in re.findall(r"(?:^    |`)make ([a-z]+)", text, re.MULTILINE):
        assert f"\n{target}:" in makefile
