"""The command line: swapjax prune, train, search, compare, inspect, demo."""

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

from swapjax.cli import ending
from swapjax.core import extras

# Only the first word is parsed here: what a command needs is imported once it is known.
COMMANDS = {
    "prune": "Prune a trained network.",
    "train": "Train a network that is sparse in the end.",
    "search": "Find an architecture without training it.",
    "compare": "Compare methods at several sparsities and seeds.",
    "inspect": "Show the arrays of a file of params or masks.",
    "demo": "Prune a small network on real digits in three ways.",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: those of the process by default.

    Returns:
        The exit code: 0, 2 for bad arguments, bad input, missing packages and disks
        that are full, 130 after Ctrl-C, 143 when terminated.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    process = arguments is None
    with ending.streams(process):
        code = ending.code_of(functools.partial(_run, words), process)
    if process:
        ending.leave(code)
    return code


def _run(words: list[str], loaded: Callable[[], None]) -> None:
    command = _parser().parse_args(words[:1]).command
    extras.require("cli", f"swapjax {command}")
    from swapjax.cli import commands

    commands.run(command, words[1:], loaded)


def _parser() -> Any:
    """Make the parser of the first word alone."""
    # Imported here so that Ctrl-C is listened to before.
    import argparse
    from importlib import metadata

    lines = [f"  • {name:10}{summary}" for name, summary in COMMANDS.items()]
    parser = argparse.ArgumentParser(
        prog="swapjax",
        usage=f"swapjax {{{','.join(COMMANDS)}}} [OPTIONS]",
        description="Prune neural networks in JAX.",
        epilog="\n".join(["commands, each with a --help of its own:", *lines]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--version",
        action="version",
        version=f"swapjax {metadata.version('swapjax')}",
        help="show the version and exit",
    )
    parser.add_argument(
        "command", metavar="COMMAND", choices=COMMANDS, help=argparse.SUPPRESS
    )
    return parser
