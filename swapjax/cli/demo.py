"""swapjax demo: real digits, three methods, clean and noisy gradients, in a minute."""

import dataclasses

from swapjax.cli.compare import Run, carry_out
from swapjax.cli.console import require_writable
from swapjax.cli.options import Demo, Options

METHODS = ("magnitude", "linear-regression", "swap")
_SPARSITIES = (0.5, 0.7, 0.8, 0.9, 0.95)
_NOISES = (None, (4.0, 0.5))


def demo(options: Demo) -> None:
    """Run the command."""
    require_writable(options.out, "--out")
    common, target = Options(samples=500, stages=8), options.out / "demo.json"
    runs = [
        Run(dataclasses.replace(common, noise=noise), method, sparsity, seed=0)
        for noise in _NOISES
        for method in METHODS
        for sparsity in _SPARSITIES
    ]
    carry_out(runs, _SPARSITIES, target, options.out / "demo.png")
