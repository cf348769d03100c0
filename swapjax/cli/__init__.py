"""The command line: swapjax prune, train, compare, inspect, demo."""

from collections.abc import Sequence
from typing import Any

import scipy.linalg  # noqa: F401  # loads the BLAS that JAX will call
import tyro
from threadpoolctl import threadpool_limits

from swapjax.cli.compare import Compare, compare
from swapjax.cli.console import errors
from swapjax.cli.demo import Demo, demo
from swapjax.cli.inspect import Inspect, inspect
from swapjax.cli.prune import Prune, prune
from swapjax.cli.train import Train, train


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: those of the process by default.

    Returns:
        The exit code: 0, 2 for bad arguments or input, 130 after Ctrl-C.
    """
    commands: dict[type, Any] = {
        Prune: prune,
        Train: train,
        Compare: compare,
        Inspect: inspect,
        Demo: demo,
    }
    options = tyro.extras.subcommand_cli_from_dict(
        {kind.__name__.lower(): kind for kind in commands},
        prog="swapjax",
        description="Prune neural networks in JAX.",
        args=arguments,
    )
    try:
        # OpenBLAS waits by spinning: on shared cores its threads cost minutes, and on
        # idle ones they gain nothing here. One thread also makes results repeatable.
        with threadpool_limits(1, user_api="blas"):
            commands[type(options)](options)
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
