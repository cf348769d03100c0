"""swapjax demo: real digits, every method, clean and noisy gradients, in a minute."""

import dataclasses
from pathlib import Path

from swapjax import experiments, plot, report
from swapjax.cli.compare import Run, read, run_all
from swapjax.cli.options import METHODS, Options
from swapjax.cli.screen import console, require_writable

_SPARSITIES = (0.5, 0.7, 0.8, 0.9, 0.95)
_NOISES = (None, (4.0, 0.5))


@dataclasses.dataclass(frozen=True)
class Demo:
    """Prune a small network on real digits in every way, in about a minute.

    Trains MLPNet on the scans that ship with scikit-learn, prunes it to five
    sparsities, from clean gradients and from noisy ones, prints a table and draws a
    picture.
    """

    out: Path = Path("demo")
    """The folder for demo.json and demo.png; made if need be."""


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
    done = read(target, runs)
    setting = common.set_up(_SPARSITIES)
    dense, _ = experiments.evaluate(setting, setting.params)
    rows = run_all(runs, setting, target, done)
    picture = options.out / "demo.png"
    count = len(setting.data.y_train)
    title = f"MLPNet on {count:,} real digits, pruned without retraining"
    plot.save(plot.comparison_figure(rows, dense=dense, title=title), picture)
    console.print(f"Test accuracy in percent; the dense network has {dense:.2f}.")
    console.print(report.comparison_table(rows))
    console.print(f"Every run: {target}. The picture: {picture}.", soft_wrap=True)
