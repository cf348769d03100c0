"""Files are written whole or not at all."""

import concurrent.futures
import errno
import multiprocessing
import os
import signal
import time

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


# What killed processes leave, and what living ones still write


def begin(path, ending):
    """A process that writes a file, and waits or ends in the middle."""
    ready = path.parent / "ready"
    process = multiprocessing.get_context("spawn").Process(
        target=half, args=(path, ready, ending)
    )
    process.start()
    while not ready.exists():
        assert process.is_alive() or ready.exists()
        time.sleep(0.01)
    ready.unlink()
    return process


def half(path, ready, ending):
    def write(temporary):
        temporary.write_text("half")
        ready.write_text("")
        time.sleep(60)

    files.write_atomically(path, write)


def hidden(folder):
    return [name for name in os.listdir(folder) if name.startswith(".")]


def test_the_next_write_removes_what_killed_ones_left_and_no_other(tmp_path):
    path, other = tmp_path / "state.bin", tmp_path / "other.bin"
    killed = [begin(path, "killed") for _ in range(2)]
    alive = begin(path, "alive")
    elsewhere = begin(other, "killed")
    try:
        for process, number in zip(
            [*killed, elsewhere], [signal.SIGKILL, signal.SIGTERM, signal.SIGKILL],
            strict=True,
        ):  # fmt: skip
            os.kill(process.pid, number)
            process.join()
        assert len(hidden(tmp_path)) == 4
        files.write_text(path, "new")
        assert path.read_text() == "new"
        assert len(hidden(tmp_path)) == 2
        files.write_text(other, "new")
        assert len(hidden(tmp_path)) == 1
    finally:
        alive.kill()
        alive.join()
    files.write_text(path, "newer")
    assert hidden(tmp_path) == []


def leave_one(path, patch):
    """Leave the temporary file of a write that failed, as a killed process does."""
    patch.setattr(files, "_remove", lambda path: None)
    with pytest.raises(RuntimeError):
        files.write_atomically(path, fail)
    (left,) = hidden(path.parent)
    return left


def test_what_another_machine_writes_stays_for_a_day(tmp_path, monkeypatch):
    path = tmp_path / "state.bin"
    with monkeypatch.context() as there:
        there.setattr(files.platform, "node", lambda: "elsewhere")
        left = leave_one(path, there)
    files.write_text(path, "new")
    assert hidden(tmp_path) == [left]
    day = 24 * 3600 + 60
    os.utime(tmp_path / left, times=(time.time() - day,) * 2)
    files.write_text(path, "newer")
    assert hidden(tmp_path) == []


def test_without_locks_only_what_is_old_goes(tmp_path, monkeypatch):
    path = tmp_path / "state.bin"

    def lock(handle, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(files.fcntl, "flock", lock)
    with monkeypatch.context() as there:
        left = leave_one(path, there)
    files.write_text(path, "new")
    assert hidden(tmp_path) == [left]
    os.utime(tmp_path / left, times=(0, 0))
    files.write_text(path, "newer")
    assert hidden(tmp_path) == []


def fail(temporary):
    raise RuntimeError


def test_a_temporary_file_that_is_taken_for_dead_is_made_anew(tmp_path, monkeypatch):
    """Between its making and its lock another process may remove it."""
    path, lock, taken = tmp_path / "state.bin", files.fcntl.flock, []

    def late(handle, how):
        if not taken:
            taken.extend(hidden(tmp_path))
            (tmp_path / taken[0]).unlink()
        lock(handle, how)

    monkeypatch.setattr(files.fcntl, "flock", late)
    files.write_text(path, "new")
    assert path.read_text() == "new"
    assert hidden(tmp_path) == []
    assert len(taken) == 1


# On the disk


def test_file_and_folder_are_synced_before_and_after_the_rename(tmp_path, monkeypatch):
    done, replace, sync = [], files.Path.replace, os.fsync

    def synced(handle):
        done.append("folder" if os.path.isdir(f"/proc/self/fd/{handle}") else "file")
        sync(handle)

    def renamed(self, target):
        done.append("rename")
        return replace(self, target)

    monkeypatch.setattr(files.os, "fsync", synced)
    monkeypatch.setattr(files.Path, "replace", renamed)
    files.write_text(tmp_path / "a.txt", "text")
    assert done == ["file", "rename", "folder"]


def test_what_cannot_be_synced_is_not_renamed(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    files.write_text(path, "old")

    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match=rf"No space left on device: '{path}'"):
        files.write_text(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


# Names, links and rights


@pytest.mark.parametrize(
    "name",
    ["n" * 255, "s." + "x" * 253, "ä" * 127, "a\nb", "-rf", ".hidden", "a b.txt"],
)
def test_a_file_may_have_any_name(name, tmp_path):
    files.write_text(tmp_path / name, "one")
    files.write_text(tmp_path / name, "two")
    assert (tmp_path / name).read_text() == "two"
    assert os.listdir(tmp_path) == [name]


def test_a_name_that_is_too_long_is_an_error_that_names_it(tmp_path):
    path = tmp_path / ("n" * 256)
    with pytest.raises(OSError, match="File name too long") as caught:
        files.write_text(path, "text")
    assert caught.value.filename == str(path)
    assert os.listdir(tmp_path) == []


def test_a_link_stays_one_and_its_target_is_written(tmp_path):
    (tmp_path / "far").mkdir()
    for there in (True, False):
        target, link = tmp_path / "far" / f"{there}", tmp_path / f"link-{there}"
        if there:
            target.write_text("old")
        link.symlink_to(target)
        files.write_text(link, "new")
        assert link.is_symlink()
        assert target.read_text() == "new"
    assert hidden(tmp_path) == hidden(tmp_path / "far") == []


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444])
def test_a_file_keeps_its_rights(mode, tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    path.chmod(mode)
    files.write_text(path, "new")
    assert path.stat().st_mode & 0o777 == mode
    assert path.read_text() == "new"


def test_devices_and_pipes_are_written_to_and_stay(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        read = pool.submit(pipe.read_text)
        files.write_text(pipe, "text")
        assert read.result() == "text"
    assert os.listdir(tmp_path) == ["pipe"]
    link = tmp_path / "nothing"
    link.symlink_to("/dev/null")
    files.write_text(link, "text")
    assert link.is_char_device()
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
        files.write_text("/dev/full", "text")
    assert files.Path("/dev/full").is_char_device()


def test_errors_name_the_file_and_not_the_temporary_one(tmp_path):
    for path in (tmp_path / "missing" / "file", tmp_path):
        with pytest.raises(OSError, match=r"No such file|Is a directory") as caught:
            files.write_text(path, "text")
        assert caught.value.filename == str(path)

    def full(temporary):
        with open("/dev/full", "w") as file:
            file.write("text")

    with pytest.raises(OSError, match="No space left on device") as caught:
        files.write_atomically(tmp_path / "a.txt", full)
    assert caught.value.filename == str(tmp_path / "a.txt")
    assert os.listdir(tmp_path) == []


def test_many_writers_of_one_file_leave_one_whole_file(tmp_path):
    path = tmp_path / "state.bin"
    texts = [str(i) * 10_000 for i in range(8)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda text: files.write_text(path, text), texts * 20))
    assert path.read_text() in texts
    assert os.listdir(tmp_path) == ["state.bin"]
