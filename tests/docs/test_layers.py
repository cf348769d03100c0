"""The plan that the page about layers shows is the one that its program makes."""

import re

from pages import DOCS, run

PAGE = DOCS / "guide" / "layers.md"


def test_the_printed_plan_is_that_of_the_program(capsys):
    names = run(PAGE, {})
    shown = re.search(r"```text\n(.*?)```", PAGE.read_text(), re.DOTALL)[1]
    assert capsys.readouterr().out == shown
    assert max(map(len, shown.splitlines())) <= 100
    floors = names["thinner"].layout.layers.index("blocks/up/kernel[11]")
    assert float(names["thinner"].overrides[floors]) == 0.5
