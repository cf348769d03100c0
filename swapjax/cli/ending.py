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

_WORDS = {
    int(getattr(signal, name)): word
    for name, word in (
        ("SIGINT", "interrupted"),
        ("SIGTERM", "terminated"),
        ("SIGHUP", "hung up"),
    )
    if hasattr(signal, name)  # Windows has two of them
}


def code_of(work: Callable[[Callable[[], None]], None], process: bool) -> int:
    """Carry out a command and say in a sentence how it failed, if it did.

    Args:
        work: the command; it calls what it is given once all is imported.
        process: whether this process is the command's own. Until all is imported such
            a one is left at once: an exception in the middle of an import may end in
            libraries that abort the process.

    Returns:
        The exit code: 0, 2 for bad input, missing packages and disks that are full, 130
        after Ctrl-C, 143 when terminated, 129 when the terminal was closed.
    """
    signals = _Signals(loading=process)
    with signals.caught(), _plain_warnings():
        try:
            work(signals.loaded)
        except BrokenPipeError:  # of a --help that was too long for its reader
            silence(sys.stdout)
            return 0
        except KeyboardInterrupt:
            return signals.stopped()
        except Exception as e:
            # Whoever was interrupted may have made another exception of it.
            if signals.received:
                return signals.stopped()
            if not isinstance(e, ValueError | ImportError | OSError):
                raise
            tell(_sentence(e))
            return 2
    return 0


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error) or type(error).__name__


def tell(text: str) -> None:
    """Write one line to the standard error stream."""
    line = printable(text.strip())
    if not line.startswith("swapjax "):
        line = f"swapjax: {line}"
    with suppress(OSError, ValueError):  # nobody reads it
        screen = getattr(sys.modules.get("swapjax.cli.console"), "errors", None)
        if screen is None:
            sys.stderr.write(f"{line}\n")
            sys.stderr.flush()
        else:
            screen.print(line, highlight=False, soft_wrap=True)


@contextmanager
def streams(process: bool) -> Iterator[None]:
    """Make the streams of a process fit to be written to, whoever started it.

    Args:
        process: whether this process is the command's own.

    Raises:
        SystemExit: where what was said could not be written, to a full disk say.
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
            except OSError as e:
                silence(stream)
                tell(str(e))
                raise SystemExit(2) from None


def silence(stream: Any) -> None:
    """Let what is written to a stream from now on, or is yet to be flushed, vanish."""
    # A stream in memory has no number.
    with suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, stream.fileno())
        finally:
            os.close(nowhere)


class _Stopped(KeyboardInterrupt):
    """A signal came.

    Python itself remembers a bare KeyboardInterrupt that leaves the text of an exec, as
    dataclasses are made by, and kills its process in the end whatever the exit code.
    """


class _Signals:
    """Signals that end a process: each raises KeyboardInterrupt.

    Attributes:
        received: those that came.
    """

    def __init__(self, loading: bool) -> None:
        self.received: list[int] = []
        self._loading = loading
        self._before: dict[int, Any] = {}

    def loaded(self) -> None:
        """Say that all is imported."""
        self._loading = False

    @contextmanager
    def caught(self) -> Iterator[None]:
        """Catch them, as far as the main thread runs this, which alone may."""
        process, unraisable = self._loading, sys.unraisablehook
        sys.unraisablehook = lambda lost: self._lost(lost, unraisable)
        with suppress(ValueError):
            for number in _WORDS:
                # What runs in the background, or under nohup, ignores some on purpose.
                if signal.getsignal(number) not in (signal.SIG_IGN, None):
                    self._before[number] = signal.signal(number, self._stop)
            if process and hasattr(signal, "SIGALRM"):
                self._before[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._stop)
        try:
            yield
        finally:
            sys.unraisablehook = unraisable
            if not (process and self.received):  # it ends, and nothing may disturb that
                for number, handler in self._before.items():
                    signal.signal(number, handler)

    def stopped(self) -> int:
        """Say what came; return the exit code."""
        for number in self._before:
            signal.signal(number, signal.SIG_IGN)
        number = self.received[0] if self.received else signal.SIGINT
        tell(
            f"{_WORDS[number]}. Stages, epochs and runs that were finished are kept: "
            "call it again in the same words to go on."
        )
        return 128 + number

    def _stop(self, number: int, _: FrameType | None) -> None:
        if self._loading:
            with suppress(OSError):
                os.write(2, f"swapjax: {_WORDS[number]}.\n".encode())
            os._exit(128 + number)
        if number in _WORDS:
            self.received.append(number)
        raise _Stopped

    def _lost(self, lost: Any, otherwise: Callable[[Any], Any]) -> None:
        """Raise once more what came while Python could not pass it on.

        JAX and others have functions called by the garbage collector, for instance,
        which lets no exception out.
        """
        if isinstance(lost.exc_value, KeyboardInterrupt) and self.received:
            if signal.SIGALRM in self._before:
                signal.setitimer(signal.ITIMER_REAL, 0.01)
        else:
            otherwise(lost)


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Show a warning as one line, without the line of code that gave it."""
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: (
        f"swapjax: {printable(str(message).strip())}\n"
    )
    try:
        yield
    finally:
        warnings.formatwarning = before
