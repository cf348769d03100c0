"""The folder that a command writes to: who may, what is replaced, what stays."""

import os
import signal
import subprocess
import sys
import tracemalloc

import pytest

from swapjax.cli.lock import exclusive
from swapjax.cli.output import Output, draw, folder

NAMES = ("params", "report")


def names(path):
    return sorted(p.name for p in path.iterdir())


def write(text):
    return lambda path: path.write_text(text)


def fail(error):
    def raises(path):
        path.write_text("half")
        raise error

    return raises


# Who may


def test_a_second_run_is_refused_naming_folder_and_process(tmp_path):
    with folder(tmp_path / "out", NAMES):
        saying = f"--out {tmp_path}/out: another run .process {os.getpid()}. writes"
        with (
            pytest.raises(ValueError, match=saying),
            folder(tmp_path / "out", NAMES),
        ):
            raise AssertionError("two at once")
    with folder(tmp_path / "out", NAMES):
        pass


def test_files_beside_each_other_have_locks_of_their_own(tmp_path):
    with exclusive(tmp_path, "a", ".a"), exclusive(tmp_path, "b", ".b"):
        assert names(tmp_path) == [".a", ".b"]
    assert names(tmp_path) == []


def test_a_run_that_was_killed_locks_nothing_and_leaves_nothing(tmp_path):
    script = f"""
import os
from pathlib import Path
from swapjax.cli.lock import exclusive
with exclusive(Path({str(tmp_path)!r}), "it"):
    Path({str(tmp_path)!r}, ".swapjax-new").mkdir()
    Path({str(tmp_path)!r}, ".swapjax-new", "params").touch()
    os.kill(os.getpid(), {signal.SIGKILL})
"""
    done = subprocess.run([sys.executable, "-c", script])
    assert done.returncode == -signal.SIGKILL
    assert names(tmp_path) == [".swapjax-lock", ".swapjax-new"]
    with folder(tmp_path, NAMES):
        pass
    assert names(tmp_path) == []


def test_a_file_system_without_locks_is_told_and_used(tmp_path, monkeypatch, capsys):
    fcntl = pytest.importorskip("fcntl")

    def refuse(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with folder(tmp_path, NAMES) as output:
        output.replace({"params": write("new")})
    assert "cannot be locked (No locks available)" in capsys.readouterr().err
    assert names(tmp_path) == ["params"]


def test_a_folder_in_the_place_of_a_file_is_found_at_once(tmp_path):
    (tmp_path / "report").mkdir()
    with (
        pytest.raises(ValueError, match="report is a folder"),
        folder(tmp_path, NAMES),
    ):
        raise AssertionError("too late")
    assert names(tmp_path) == ["report"]


# What is replaced, and what stays


@pytest.mark.parametrize("error", [ValueError, OSError, KeyboardInterrupt])
def test_a_failing_run_leaves_what_was_there_and_what_others_wrote(error, tmp_path):
    (tmp_path / "params").write_text("of before")

    def run():
        with folder(tmp_path, NAMES):
            (tmp_path / "report").write_text("of somebody else")
            raise error

    with pytest.raises(error):
        run()
    assert (tmp_path / "params").read_text() == "of before"
    assert (tmp_path / "report").read_text() == "of somebody else"
    assert names(tmp_path) == ["params", "report"]


def test_a_folder_that_stays_empty_goes_with_its_parents(tmp_path):
    (tmp_path / "there").mkdir()
    with folder(tmp_path / "there" / "new" / "out", NAMES):
        assert (tmp_path / "there" / "new" / "out").is_dir()
    assert names(tmp_path / "there") == []


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError])
def test_results_are_replaced_all_or_none(error, tmp_path):
    output = Output(tmp_path)
    output.replace({"params": write("1"), "report": write("1")})
    with pytest.raises((OSError, ValueError)) as raised:
        output.replace({"params": write("2"), "report": fail(error)})
    if isinstance(error, OSError):
        assert str(tmp_path / "report") in str(raised.value)
        assert "swapjax-new" not in str(raised.value)
    assert [(tmp_path / name).read_text() for name in NAMES] == ["1", "1"]
    assert names(tmp_path) == ["params", "report"]


def test_a_replaced_file_keeps_its_rights_and_its_place(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    place = tmp_path / "elsewhere" / "params"
    place.write_text("of before")
    (tmp_path / "params").symlink_to(place)
    (tmp_path / "report").write_text("of before")
    (tmp_path / "report").chmod(0o640)
    Output(tmp_path).replace({"params": write("new"), "report": write("new")})
    assert (tmp_path / "params").is_symlink()
    assert place.read_text() == (tmp_path / "report").read_text() == "new"
    assert (tmp_path / "report").stat().st_mode & 0o777 == 0o640


def test_results_that_are_there_are_not_read(tmp_path):
    with (tmp_path / "params").open("wb") as file:
        file.truncate(1 << 28)
    tracemalloc.start()
    with pytest.raises(ValueError, match="bad"), folder(tmp_path, NAMES):
        raise ValueError("bad")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.parametrize("error", [RuntimeError("a\nb"), MemoryError(), OSError(5)])
def test_a_picture_that_fails_says_that_all_else_is_there(error, tmp_path):
    def figure():
        raise error

    with pytest.raises(ValueError, match=r"could not be drawn .*all other results are"):
        draw(figure, tmp_path / "report.png")
    assert names(tmp_path) == []
