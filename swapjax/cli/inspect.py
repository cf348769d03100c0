"""swapjax inspect: what is in a file of params or masks."""

import numpy as np

from swapjax.cli.console import console
from swapjax.cli.options import Inspect
from swapjax.core.text import printable
from swapjax.experiments import report
from swapjax.io import checkpoint


def inspect(options: Inspect) -> None:
    """Run the command.

    Raises:
        ValueError: for a file that cannot be read.
    """
    arrays, metadata = checkpoint.read(options.file)
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
    console.print(f"{printable(options.file)}, {size:,} bytes", soft_wrap=True)
    own = {k: v for k, v in metadata.items() if not k.startswith("swapjax.")}
    for name, text in sorted(own.items()):
        console.print(f"{name}: {printable(text)}", highlight=False, soft_wrap=True)
    console.print(report.layer_table(rows))
