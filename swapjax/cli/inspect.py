"""swapjax inspect: what is in a file of params or masks."""

import dataclasses
from pathlib import Path

import numpy as np
import tyro

from swapjax.cli.console import console
from swapjax.experiments import report
from swapjax.io import checkpoint


@dataclasses.dataclass(frozen=True)
class Inspect:
    """Show the arrays of a file of params or masks, and how sparse they are."""

    file: tyro.conf.Positional[Path]
    """A .safetensors or .npz file."""


def inspect(options: Inspect) -> None:
    """Run the command.

    Raises:
        ValueError: for a file that cannot be read.
    """
    arrays, _ = checkpoint.read(options.file)
    rows = [
        {
            "leaf": name,
            "shape": list(array.shape),
            "entries": array.size,
            "nonzeros": int(np.count_nonzero(array)),
        }
        for name, array in arrays.items()
    ]
    size = options.file.stat().st_size
    console.print(f"{options.file}, {size:,} bytes", soft_wrap=True)
    console.print(report.layer_table(rows))
