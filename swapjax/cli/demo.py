"""swapjax demo: real digits, four methods, clean and noisy gradients, in a minute."""

from swapjax.cli.compare import Run, carry_out
from swapjax.cli.console import require_writable
from swapjax.cli.options import Demo, Options, noises

METHODS = ("magnitude", "linear-regression", "swap", "kfac-regression")
_SPARSITIES = (0.8, 0.9, 0.95)
_SEEDS = (0, 1, 2)
_NOISES = ("clean", "gaussian:4,0.5")


def demo(options: Demo) -> None:
    """Run the command."""
    require_writable(options.out, "--out")
    common = Options(samples=500, stages=8, noise=_NOISES)
    target = options.out / "demo.json"
    runs = [
        Run(common, method, sparsity, seed, noise=noise)
        for noise in noises(common)
        for method in METHODS
        for sparsity in _SPARSITIES
        # Magnitude is the same for all seeds.
        for seed in (_SEEDS if method != "magnitude" else _SEEDS[:1])
    ]
    carry_out(runs, _SPARSITIES, target, options.out / "demo.png")
