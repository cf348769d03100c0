"""Parse the options of a command, then import and run it."""

import contextlib
import functools
import importlib
import io
from collections.abc import Callable, Sequence
from typing import Any

import tyro

from swapjax.cli import config, options, search_options, train_options
from swapjax.cli.console import speaking
from swapjax.cli.options import Compare, Demo, Inspect, Prune
from swapjax.cli.search_options import Search
from swapjax.cli.train_options import Train
from swapjax.core.text import printable
from swapjax.core.threads import one_blas_thread

OPTIONS: dict[str, type] = {
    "prune": Prune,
    "train": Train,
    "search": Search,
    "compare": Compare,
    "inspect": Inspect,
    "demo": Demo,
}

# Of commands whose docstring does not tell all.
_DESCRIPTIONS: dict[str, Callable[[], str]] = {
    "prune": functools.partial(options.description, Prune),
    "train": train_options.description,
    "search": search_options.description,
    "compare": functools.partial(options.description, Compare),
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
    chosen = _parse(command, words)
    work = getattr(importlib.import_module(f"swapjax.cli.{command}"), command)
    loaded()
    quiet, aside = getattr(chosen, "quiet", False), getattr(chosen, "json", None) == "-"
    # BLAS in all of it, beyond what stages do for themselves: losses and data have it.
    with one_blas_thread(), speaking(quiet=quiet, aside=aside):
        work(chosen)


def _parse(command: str, words: Sequence[str]) -> Any:
    def parse(words: Sequence[str]) -> Any:
        return tyro.cli(
            OPTIONS[command],
            prog=f"swapjax {command}",
            description=_DESCRIPTIONS[command]() if command in _DESCRIPTIONS else None,
            args=words,
        )

    words = _with_config(command, parse, words)
    spelled = [printable(word) for word in words]
    if spelled == list(words):
        return parse(words)
    # What is wrong would be shown as it was typed, escape sequences included.
    with contextlib.redirect_stderr(io.StringIO()), contextlib.suppress(SystemExit):
        return parse(words)
    return parse(spelled)


def _with_config(
    command: str, parse: Callable[[Sequence[str]], Any], words: Sequence[str]
) -> Sequence[str]:
    """Put the options of a report in front, if one is named.

    Raises:
        ValueError: for a file that is no report of this command.
    """
    whole = config.expanded(command, OPTIONS[command], words)
    if whole != list(words) and not {"-h", "--help"} & set(words):
        before = whole[: len(whole) - len(words)]
        with contextlib.redirect_stderr(io.StringIO()):
            try:
                parse(before)
            except SystemExit:
                raise ValueError(
                    f"--config: its options are none of swapjax {command} as it is now"
                ) from None
    return whole
