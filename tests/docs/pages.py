"""The Python of a page of the docs, as a reader would run it from top to bottom."""

import re
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
_BLOCK = re.compile(
    r"^(?P<indent> *)```python\n(?P<code>.*?)^(?P=indent)```$", re.DOTALL | re.MULTILINE
)


def blocks(path):
    """The examples of a page, those in a fold included."""
    return [textwrap.dedent(m["code"]) for m in _BLOCK.finditer(path.read_text())]


def run(path, names):
    """Run them one after the other; an error names the page and the example."""
    for i, block in enumerate(blocks(path), 1):
        where = f"{path.relative_to(ROOT)}, example {i}"
        exec(compile(block, where, "exec"), names)
    return names


def lines(code):
    """How many lines of code there are."""
    return len([x for x in code.splitlines() if x.strip()])
