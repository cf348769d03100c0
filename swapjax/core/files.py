"""Atomic writes: a file is there whole or not at all, and on the disk when it is."""

import contextlib
import errno
import hashlib
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

if sys.platform != "win32":
    import fcntl

_DAY = 24 * 3600.0
_BOOT = Path("/proc/sys/kernel/random/boot_id")


def write_atomically(path: str | Path, write: Callable[[Path], object]) -> None:
    """Write a file under a temporary name beside it, then rename it.

    An interruption leaves what was there before. A process that is killed leaves its
    temporary file too, which the next write of the same file removes; one whose process
    still writes stays. File and folder are synced, so that a loss of power leaves the
    file of before or this one.

    Args:
        path: the file; it is replaced if it exists, with the rights it has. Where it
            is a link, the file that it points to is. Devices and pipes are no files to
            replace, and are written to.
        write: writes into the file it is given the path of.

    Raises:
        OSError: naming the file, when the folder does not exist, cannot be written to
            or is full.
    """
    path, target = Path(path), Path(os.path.realpath(path))
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    with _naming(path), contextlib.ExitStack() as undo:
        if path.exists() and not path.is_file():
            write(path)
            return
        temporary, handle = _create(target)
        undo.callback(_remove, temporary)
        if sys.platform == "win32":  # where a file that is open keeps its name
            os.close(handle)
        else:
            undo.callback(os.close, handle)
            _sweep(target, temporary)
        write(temporary)
        _sync(temporary, _mode(target))
        temporary.replace(target)
    _sync_folder(target.parent)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file whole or not at all."""
    write_atomically(path, lambda p: p.write_text(text, encoding="utf-8"))


def naming(error: OSError, path: Path) -> OSError:
    """Make the same error of another file."""
    if error.errno is None:
        return OSError(f"{path}: {error}")
    return OSError(error.errno, error.strerror, str(path))


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Let what goes wrong name the file, which has no temporary name for a user."""
    try:
        yield
    except OSError as e:
        raise naming(e, path) from None


def _prefix(target: Path) -> str:
    """Begin the temporary names of a file; of any length, its own may be too long."""
    return f".swapjax-{_short(os.fsencode(target.name))}-"


def _machine() -> str:
    """Name the machine whose locks can be relied on: this one, until it starts anew."""
    boot = _BOOT.read_bytes() if _BOOT.exists() else b""
    return _short(platform.node().encode() + boot)


def _short(name: bytes) -> str:
    return hashlib.sha256(name).hexdigest()[:12]


def _create(target: Path) -> tuple[Path, int]:
    """Make a temporary file, locked as long as its handle is open."""
    suffix = target.suffix if len(os.fsencode(target.suffix)) <= 16 else ""
    while True:
        handle, name = tempfile.mkstemp(
            prefix=f"{_prefix(target)}{_machine()}-", suffix=suffix, dir=target.parent
        )
        if sys.platform == "win32":
            return Path(name), handle
        with contextlib.suppress(OSError):  # not every file system has locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        if os.path.exists(name):
            return Path(name), handle
        os.close(handle)  # another process took it for a dead one's before the lock


def _sweep(target: Path, mine: Path) -> None:
    """Remove the temporary files that killed processes have left of a file."""
    prefix, machine, now = _prefix(target), _machine(), mine.stat().st_mtime
    left: list[os.DirEntry[str]] = []
    with contextlib.suppress(OSError), os.scandir(target.parent) as entries:
        left = [e for e in entries if e.name.startswith(prefix) and e.name != mine.name]
    for entry in left:
        with contextlib.suppress(OSError):  # it is another user's, or gone
            # Locks of other machines may be unknown here; a day without a write is not.
            idle = now - entry.stat(follow_symlinks=False).st_mtime > _DAY
            if idle or entry.name.removeprefix(prefix).startswith(machine):
                _remove_unlocked(Path(entry.path), idle)


def _remove_unlocked(path: Path, idle: bool) -> None:
    """Remove a file that no process has locked; where nothing locks, one that is idle.

    It holds the lock while it does, lest the file be that of a process that is only
    about to lock it.
    """
    if sys.platform == "win32":
        return
    handle = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _remove(path)
    except BlockingIOError:
        return
    except OSError:
        if idle:
            _remove(path)
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):  # what went wrong before matters more
        path.unlink(missing_ok=True)


def _mode(target: Path) -> int:
    """Return the rights of a file, or those of a new one."""
    with contextlib.suppress(FileNotFoundError):
        return target.stat().st_mode & 0o777
    umask = os.umask(0)
    os.umask(umask)
    return 0o666 & ~umask


def _sync(path: Path, mode: int) -> None:
    """Put a file on the disk, its rights included."""
    handle = os.open(path, os.O_RDWR)
    try:
        path.chmod(mode)
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_folder(folder: Path) -> None:
    """Put a folder on the disk, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
