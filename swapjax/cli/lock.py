"""Folders that one run at a time writes to."""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from swapjax.cli.console import errors

_TAKEN = (errno.EAGAIN, errno.EACCES)  # network file systems say the latter


@contextmanager
def exclusive(folder: Path, what: str, name: str = ".swapjax-lock") -> Iterator[None]:
    """Make a folder, and keep other runs out of it.

    The system lets go of the lock of a process that is killed. Where a file system has
    no locks a line says so, and the run goes on; Windows has none of this kind.

    Args:
        folder: it and its parents are made, and those made go again if nothing is in
            them in the end.
        what: the option and its value, for what is said.
        name: of the file in the folder that is locked; it is removed in the end.

    Raises:
        ValueError: where another run has the lock, naming its process.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    file = folder / name
    try:
        handle = _lock(file, what)
        try:
            yield
        finally:
            # First the name, so that nobody can lock a file that is about to go.
            with suppress(OSError):
                file.unlink()
            os.close(handle)
    finally:
        for path in missing:
            with suppress(OSError):  # somebody may use it by now
                path.rmdir()


def _lock(file: Path, what: str) -> int:
    """Open and lock a file; return its handle."""
    while True:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        except FileNotFoundError:  # a run that ended has removed the folder
            continue
        try:
            _take(handle)
        except OSError as e:
            if e.errno in _TAKEN:
                owner = os.read(handle, 20).decode("ascii", "replace")
                os.close(handle)
                raise ValueError(
                    f"{what}: another run"
                    f"{f' (process {owner})' if owner.isdigit() else ''} writes to it; "
                    "wait for its end, or name another"
                ) from None
            errors.print(
                f"swapjax: {what} cannot be locked ({e.strerror}); let "
                "no other run write to it.",
                highlight=False,
                soft_wrap=True,
            )
        if _is_there(file, handle):
            with suppress(OSError):  # on a full disk nobody learns the number
                os.ftruncate(handle, 0)
                os.write(handle, str(os.getpid()).encode())
            return handle
        os.close(handle)


def _take(handle: int) -> None:
    """Lock a file, or raise OSError."""
    if sys.platform != "win32":
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_there(file: Path, handle: int) -> bool:
    """Tell whether a file is what was opened: a run that ended may have removed it."""
    try:
        return os.path.samestat(os.fstat(handle), file.stat())
    except FileNotFoundError:
        return False
