"""How a command ends: exit codes, signals, streams that nobody reads or has opened.

Nothing here needs an extra, or takes time to import.
"""

import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from swapjax.core.text import printable

_SIGNALS = [
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP")
    if hasattr(signal, name)  # Windows has two of them
]
_WORDS = {"SIGINT": "interrupted", "SIGTERM": "terminated", "SIGHUP": "hung up"}


def code_of(work: Callable[[], None]) -> int:
    """Carry out a command and say in a sentence how it failed, if it did.

    Args:
        work: the command.

    Returns:
        The exit code: 0, 2 for bad input, missing packages and disks that are full, 130
        after Ctrl-C, 143 when terminated, 129 when the terminal was closed.
    """
    with _listening() as received, _plain_warnings():
        try:
            work()
        except BrokenPipeError:  # of a --help that was too long for its reader
            silence(sys.stdout)
            return 0
        except KeyboardInterrupt:
            return _stopped(received)
        except Exception as e:
            # Whoever was interrupted may have made another exception of it.
            if received:
                return _stopped(received)
            if not isinstance(e, ValueError | ImportError | OSError):
                raise
            tell(f"{e}" or type(e).__name__)
            return 2
    return 0


def tell(text: str) -> None:
    """Write one line to the standard error stream."""
    line = " ".join(text.split("\n"))
    if not line.startswith("swapjax "):
        line = f"swapjax: {line}"
    with suppress(OSError, ValueError):  # nobody reads it
        screen = getattr(sys.modules.get("swapjax.cli.console"), "errors", None)
        if screen is None:
            sys.stderr.write(f"{printable(line)}\n")
            sys.stderr.flush()
        else:
            screen.print(line, highlight=False, soft_wrap=True)


@contextmanager
def streams(process: bool) -> Iterator[None]:
    """Make the streams of a process fit to be written to, whoever started it.

    Args:
        process: whether this process is the command's own.
    """
    if process:
        for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
            if getattr(sys, name) is None:
                # It is closed, and a file of results could get its number.
                setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
        for stream in (sys.stdout, sys.stderr):
            with suppress(AttributeError, ValueError):
                stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except BrokenPipeError:
                silence(stream)


def silence(stream: Any) -> None:
    """Let what is written to a stream from now on, or is yet to be flushed, vanish."""
    # A stream in memory has no number.
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, stream.fileno())
        finally:
            os.close(nowhere)


@contextmanager
def _listening() -> Iterator[list[int]]:
    """Raise KeyboardInterrupt at every signal that ends a process; collect them."""
    received: list[int] = []

    def stop(number: int, _: FrameType | None) -> None:
        received.append(number)
        raise KeyboardInterrupt

    before = {}
    with suppress(ValueError):  # not the main thread, which alone is told of signals
        for number in _SIGNALS:
            # What runs in the background, or under nohup, ignores some on purpose.
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, stop)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stopped(received: list[int]) -> int:
    number = signal.Signals(received[0] if received else signal.SIGINT)
    tell(
        f"{_WORDS[number.name]}. Stages, epochs and runs that were finished are kept: "
        "call it again in the same words to go on."
    )
    return 128 + number


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Show a warning as one line, without the line of code that gave it."""
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: (
        printable(f"swapjax: {' '.join(str(message).splitlines())}") + "\n"
    )
    try:
        yield
    finally:
        warnings.formatwarning = before
