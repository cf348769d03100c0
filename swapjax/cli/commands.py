"""Parse the options of a command, then import and run it."""

import contextlib
import importlib
import io
from collections.abc import Callable, Sequence
from typing import Any

import tyro
from threadpoolctl import threadpool_limits

from swapjax.cli import train_options
from swapjax.cli.options import Compare, Demo, Inspect, Prune
from swapjax.cli.train_options import Train
from swapjax.core.text import printable

OPTIONS: dict[str, type] = {
    "prune": Prune,
    "train": Train,
    "compare": Compare,
    "inspect": Inspect,
    "demo": Demo,
}


def run(command: str, words: Sequence[str], loaded: Callable[[], None]) -> None:
    """Run a command: the function of its name in the module of its name.

    Args:
        command: a key of `OPTIONS`.
        words: the options as they were typed.
        loaded: called once all is imported.

    Raises:
        ValueError: for bad arguments and bad input.
        SystemExit: after --help, and for words that are no options.
    """
    options = _parse(command, words)
    work = getattr(importlib.import_module(f"swapjax.cli.{command}"), command)
    # Limits reach libraries that are loaded; JAX calls the BLAS of SciPy.
    importlib.import_module("scipy.linalg")
    loaded()
    # OpenBLAS waits by spinning: on shared cores its threads cost minutes, and on
    # idle ones they gain nothing here. One thread also makes results repeatable.
    with threadpool_limits(1, user_api="blas"):
        work(options)


def _parse(command: str, words: Sequence[str]) -> Any:
    def parse(words: Sequence[str]) -> Any:
        return tyro.cli(
            OPTIONS[command],
            prog=f"swapjax {command}",
            description=train_options.description() if command == "train" else None,
            args=words,
        )

    spelled = [printable(word) for word in words]
    if spelled == list(words):
        return parse(words)
    # What is wrong would be shown as it was typed, escape sequences included.
    with contextlib.redirect_stderr(io.StringIO()), contextlib.suppress(SystemExit):
        return parse(words)
    return parse(spelled)
