"""Examples of the guide, and of what one writes oneself, run as they are written."""

import pytest
from pages import DOCS, blocks, lines, run

GUIDE = sorted(
    path
    for folder in ("guide", "robust", "backward", "search")
    for path in (DOCS / folder).glob("*.md")
    if blocks(path) and path.stem not in ("first-steps", "files")
)


@pytest.fixture
def names(digits):
    """What the page of first steps leaves behind."""
    return {"data": digits.data, "model": digits.model, "trained": digits}


def test_first_steps_run(capsys):
    names = run(DOCS / "guide" / "first-steps.md", {})
    assert 0.099 < float(capsys.readouterr().out.split()[0]) < 0.101
    assert len(names["history"]) == 4


@pytest.mark.parametrize("path", GUIDE, ids=lambda path: path.stem)
def test_a_page_of_the_guide_runs(path, names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if path.stem == "export":  # what jax.export serialises with
        pytest.importorskip("flatbuffers")
    run(path, names)


def test_ones_own_criterion_and_rule_run_and_are_short(names):
    path = DOCS / "write-your-own.md"
    run(path, names)
    criterion, rule = (
        next(block for block in blocks(path) if word in block)
        for word in ("def score", "def choose")
    )
    assert lines(criterion) < 10
    assert lines(rule) < 15
    assert names["pruned"].masks
