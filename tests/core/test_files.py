"""Files are written whole or not at all."""

import os

import pytest

from swapjax.core import files


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "weights.bin"
    files.write_text(path, "old")

    def fail_midway(temporary):
        temporary.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.write_atomically(path, fail_midway)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["weights.bin"]


def test_a_finished_write_replaces_the_old_file_only_at_its_end(tmp_path):
    path = tmp_path / "notes.txt"
    files.write_text(path, "old")

    def write(temporary):
        temporary.write_text("naïve", encoding="utf-8")
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".txt"
        assert path.read_text() == "old"

    files.write_atomically(path, write)
    assert path.read_text(encoding="utf-8") == "naïve"
    assert os.listdir(tmp_path) == ["notes.txt"]


def test_a_written_file_has_the_rights_of_any_new_file(tmp_path):
    usual = tmp_path / "usual"
    usual.write_text("")
    files.write_text(tmp_path / "ours", "")
    assert (tmp_path / "ours").stat().st_mode == usual.stat().st_mode


def test_a_folder_that_is_missing_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        files.write_text(tmp_path / "missing" / "file", "text")
