"""The README's examples run as they are written."""

import re
from pathlib import Path

import swapjax
from swapjax.cli.methods import METHODS

ROOT = Path(__file__).parents[2]


def test_the_examples_run_one_after_the_other(capsys):
    text = (ROOT / "README.md").read_text()
    examples = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    names = {}
    for example in examples[:2]:
        exec(example, names)
    density, accuracy, _ = re.findall(r"[\d.]+", capsys.readouterr().out)[:3]
    assert abs(float(density) - 0.1) < 1e-3
    assert float(accuracy) > 80
    for example in examples[2:]:
        assert len(example.splitlines()) <= 10
        exec(example, names)
        if "pruned" in example:
            assert swapjax.density(names["pruned"].masks) <= 0.5
    for method in METHODS:
        assert f"swapjax.{method.replace('-', '_')}(" in "".join(examples)


def test_the_commands_that_are_named_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"    make ([a-z]+)  ", (ROOT / "README.md").read_text()):
        assert f"\n{target}:" in makefile
