"""The command line: swapjax prune, compare, inspect, demo."""

from collections.abc import Sequence
from typing import Any

import tyro

from swapjax.cli.compare import Compare, compare
from swapjax.cli.demo import Demo, demo
from swapjax.cli.inspect import Inspect, inspect
from swapjax.cli.prune import Prune, prune
from swapjax.cli.screen import errors


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: those of the process by default.

    Returns:
        The exit code: 0, 2 for bad arguments or input, 130 after Ctrl-C.
    """
    commands: dict[type, Any] = {
        Prune: prune,
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
        commands[type(options)](options)
    except (ValueError, ImportError, OSError) as e:
        errors.print(f"swapjax: {e}", highlight=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        errors.print(
            "swapjax: interrupted; call it again in the same words to go on from the "
            "last finished stage or run."
        )
        return 130
    return 0
