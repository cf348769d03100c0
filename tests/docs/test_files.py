"""What the page on files says is what happens."""

import re

from pages import DOCS, run
from safetensors import safe_open

PAGE = DOCS / "guide" / "files.md"


def test_a_checkpoint_of_hugging_face_comes_out_as_it_went_in(
    digits, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    run(PAGE, {"data": digits.data, "model": digits.model, "trained": digits})
    (shown,) = re.findall(r"```text\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert capsys.readouterr().out == shown
    files = sorted(path.name for path in (tmp_path / "encoder").iterdir())
    assert sorted(path.name for path in (tmp_path / "smaller").iterdir()) == files
    for file in files[:2]:
        before, after = (
            safe_open(tmp_path / folder / file, "np")
            for folder in ("encoder", "smaller")
        )
        assert list(before.keys()) == list(after.keys())
        assert before.metadata() == after.metadata() == {"format": "pt"}
