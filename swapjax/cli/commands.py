"""Parse the options of a command, then import and run it."""

import importlib
from collections.abc import Sequence
from typing import Any

import tyro
from threadpoolctl import threadpool_limits

from swapjax.cli import train_options
from swapjax.cli.console import errors
from swapjax.cli.options import Compare, Demo, Inspect, Prune
from swapjax.cli.train_options import Train

OPTIONS: dict[str, type] = {
    "prune": Prune,
    "train": Train,
    "compare": Compare,
    "inspect": Inspect,
    "demo": Demo,
}


def run(command: str, words: Sequence[str]) -> int:
    """Run a command: the function of its name in the module of its name.

    Args:
        command: a key of `OPTIONS`.
        words: the options as they were typed.

    Returns:
        The exit code, as `swapjax.cli.main` does.
    """
    options: Any = tyro.cli(
        OPTIONS[command],
        prog=f"swapjax {command}",
        description=train_options.description() if command == "train" else None,
        args=words,
    )
    try:
        work = getattr(importlib.import_module(f"swapjax.cli.{command}"), command)
        # Limits reach libraries that are loaded; JAX calls the BLAS of SciPy.
        importlib.import_module("scipy.linalg")
        # OpenBLAS waits by spinning: on shared cores its threads cost minutes, and on
        # idle ones they gain nothing here. One thread also makes results repeatable.
        with threadpool_limits(1, user_api="blas"):
            work(options)
    except (ValueError, ImportError, OSError) as e:
        errors.print(f"swapjax: {e}", highlight=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        errors.print(
            "swapjax: interrupted. Stages, epochs and runs that were finished are "
            "kept: call it again in the same words to go on.",
            soft_wrap=True,
        )
        return 130
    return 0
