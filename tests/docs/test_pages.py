"""The example of every method's and rule's page runs, on something small."""

import pytest
from pages import DOCS, run
from small import names

import swapjax

PAGES = sorted(
    path for folder in ("methods", "rules") for path in (DOCS / folder).glob("*.md")
    if path.stem != "index"
)  # fmt: skip


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_the_example_of_a_page_runs(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    left = run(path, names())
    if "pruned" in left:
        assert swapjax.density(left["pruned"].masks) <= 0.51
    if "tx" in left:
        left["tx"].init(left["params"])
