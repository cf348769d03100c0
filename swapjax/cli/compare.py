"""swapjax compare: several methods, sparsities and seeds, one table."""

import dataclasses
import functools
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from swapjax.cli import methods, setup
from swapjax.cli.console import console, progress, require_writable
from swapjax.cli.fields import check_seed
from swapjax.cli.lock import exclusive
from swapjax.cli.options import Compare, Options, check, noises
from swapjax.cli.output import draw
from swapjax.core.text import printable
from swapjax.experiments import gains, plot, report, runner
from swapjax.experiments.noise import CLEAN, Noise
from swapjax.experiments.row import Row
from swapjax.experiments.runner import Setting

# Stands between the options of a row and the data and network that it is of.
_MARK = "; on "


@dataclasses.dataclass(frozen=True)
class Run:
    """A run of a comparison, and so a row of its table."""

    options: Options
    method: str
    sparsity: float
    seed: int
    noise: Noise

    @functools.cached_property
    def key(self) -> tuple:
        """The values that identify the row of this run in a file of runs."""
        settings = str(methods.make(self.method, self.options))
        return settings, self.sparsity, self.seed, str(self.noise), self.setup

    @functools.cached_property
    def setup(self) -> str:
        """All that runs of one table must share besides the settings of methods.

        Data and weights are not told by name: see `setup.Inputs.origin`.
        """
        own = {"methods", "sparsities", "seeds", "noise", "json", "out"}
        own |= {"data", "data_dir", "mean", "std", "checkpoint", "quiet"}
        own |= {"method", "sparsity", "storage"} | methods.OPTIONS
        fields = dataclasses.asdict(self.options).items()
        # Rows of before have no word of it.
        own |= {"recalibrate"} if self.options.recalibrate else set()
        return ", ".join(f"{k}={v}" for k, v in fields if k not in own)


def compare(options: Compare) -> None:
    """Run the command.

    Raises:
        ValueError: for bad arguments and data, before anything is written.
    """
    names = _methods(options)
    asked = _numbers(options.sparsities, "--sparsities", float, options.sparsity)
    sparsities = setup.levels(options, asked)
    seeds = _numbers(options.seeds, "--seeds", int, options.seed)
    check(options, names)
    for seed in seeds:
        check_seed(seed, "--seeds")
    target = options.json
    if target is not None:
        require_rows_file(target)
    if options.out is not None:
        require_writable(options.out, "--out")
        target = target or options.out / "compare.json"
    # What is spoilt alike comes together, and need not be spoilt again.
    runs = [
        Run(options, method, sparsity, seed, noise)
        for noise in noises(options)
        for seed in seeds
        for method in names
        for sparsity in sparsities
    ]
    pictures = []
    if options.out is not None:
        pictures = [options.out / name for name in ("compare.png", "gains.png")]
    for picture in pictures:
        if picture.is_dir():
            raise ValueError(f"--out {options.out}: {picture} is a folder")
    carry_out(runs, sparsities, target, *pictures)


def carry_out(
    runs: Sequence[Run],
    sparsities: Sequence[float],
    target: Path | None,
    picture: Path | None = None,
    heat: Path | None = None,
) -> None:
    """Train or load, do the runs that are not done, show all.

    Args:
        runs: what to do; all on one network.
        sparsities: of the runs.
        target: the file of runs, or None.
        picture: the file of the picture, or None.
        heat: the file of a picture of gains, where noise was asked for, or None.

    Raises:
        ValueError: for bad data and a file of other runs, before any training, and
            where somebody else writes to that file.
    """
    lock: AbstractContextManager[None] = nullcontext()
    if target is not None:
        file = Path(os.path.realpath(target))  # one file, whatever links lead to it
        lock = exclusive(file.parent, str(target), f".{file.name}.lock")
    with lock:
        options = runs[0].options
        done = read(target, runs)
        inputs = setup.set_up(options, sparsities)
        origin = ", ".join(f"{k}={v}" for k, v in inputs.origin.items())
        for row in done:
            require_origin(target, row, origin)
        console.print(inputs.pixels.sentence(inputs.data), soft_wrap=True)
        setting = setup.network(options, inputs)
        dense, _ = runner.evaluate(setting, setting.params)
        rows = run_all(runs, setting, target, done, origin)
        console.print(f"Test accuracy in percent; the dense network has {dense:.2f}.")
        console.print(report.comparison_table(rows))
        found = gains.gains(rows) if any(r.noise != str(CLEAN) for r in rows) else []
        if found:
            told = "bold where a paired t-test at 5 % tells them from 0"
            console.print(f"Points gained over {gains.CONTROL}, {told}:")
            console.print(gains.gains_table(found))
        if target is not None:
            console.print(f"Written to {printable(target)}.", soft_wrap=True)
        if picture is not None:
            picture.parent.mkdir(parents=True, exist_ok=True)
            title = f"{options.model} on {setting.data.name}, "
            title += f"{len(setting.data.y_train):,} examples to train"
            draw(
                lambda: plot.comparison_figure(rows, dense=dense, title=title), picture
            )
            console.print(f"Drawn in {printable(picture)}.", soft_wrap=True)
            if found and heat is not None:
                draw(lambda: gains.gains_figure(found, title=title), heat)
                console.print(f"Gains drawn in {printable(heat)}.", soft_wrap=True)


def require_rows_file(path: Path) -> None:
    """Raise early for what cannot be a file of runs.

    Raises:
        ValueError: naming the option.
    """
    if str(path) == "-":
        raise ValueError(
            "--json -: runs are read again by the call that goes on; name a file"
        )
    require_writable(path.parent, "--json")


def run_all(
    runs: Sequence[Run],
    setting: Setting,
    target: Path | None,
    done: Sequence[Row],
    origin: str,
) -> list[Row]:
    """Do the runs that are not done yet, and write each as soon as it is.

    Args:
        runs: what to do.
        setting: on what.
        target: the file for all that is done, whether in runs or not.
        done: what it holds already.
        origin: what tells data and dense network apart.

    Returns:
        One row a run.
    """
    done = list(done)
    todo = [run for run in runs if _find(run, done) is None]
    if done:
        console.print(f"{len(runs) - len(todo)} of {len(runs)} runs are done already.")
    at, spoilt = None, None
    with progress("pruning", sum(run.options.stages for run in todo)) as (bar, task):
        for run in todo:
            told = f"{run.method} to {run.sparsity:g}, {run.noise}, seed {run.seed}"
            bar.update(task, description=told)
            if spoilt is None or at != (run.noise, run.seed):
                at = run.noise, run.seed
                spoilt = runner.spoil(setting, *at)
            method = methods.make(run.method, run.options)
            row, _ = runner.run(
                setting,
                method,
                plan=setup.make_plan(
                    run.options, setting.model, setting.data, run.sparsity
                ),
                seed=run.seed,
                noise=run.noise,
                spoilt=spoilt,
                callback=lambda _: bar.advance(task),
                **setup.run_options(run.options, setting, method),
            )
            told = f"{run.setup}{_MARK}{origin}"
            done.append(dataclasses.replace(row, sparsity=run.sparsity, setup=told))
            if target is not None:
                report.write_rows(target, done)
    found = (_find(run, done) for run in runs)
    return [row for row in found if row is not None]


def read(target: Path | None, runs: Sequence[Run]) -> list[Row]:
    """Read what earlier calls have left.

    Raises:
        ValueError: for a file of something else, or of runs with other options.
    """
    if target is None or not target.exists():
        return []
    rows = report.read_rows(target)
    ours = {run.setup for run in runs}
    seen: dict[tuple, int] = {}
    for number, row in enumerate(rows, 1):
        options, mark, _ = row.setup.rpartition(_MARK)
        if not mark:
            raise ValueError(
                f"{target}: row {number} does not tell of which data it is; remove the "
                "file or name another"
            )
        if options not in ours:
            raise ValueError(
                f"{target}: holds runs with other options ({options}); remove it or "
                "name another file"
            )
        first = seen.setdefault(_key(row), number)
        if first != number:
            raise ValueError(
                f"{target}: rows {first} and {number} are of the same run; remove one"
            )
    return rows


def require_origin(target: Path | None, row: Row, origin: str) -> None:
    """Raise for a row of other data, or of another dense network.

    Raises:
        ValueError: naming the file.
    """
    _, _, other = row.setup.rpartition(_MARK)
    if other != origin:
        raise ValueError(
            f"{target}: holds runs on other data or another network ({other}; now "
            f"{origin}); remove it or name another file"
        )


def _key(row: Row) -> tuple:
    options, _, _ = row.setup.rpartition(_MARK)
    return row.settings, row.sparsity, row.seed, row.noise, options


def _find(run: Run, rows: Sequence[Row]) -> Row | None:
    return next((row for row in rows if _key(row) == run.key), None)


def _methods(options: Compare) -> list[str]:
    if options.methods is None:
        methods.require_patterns([options.method], options.pattern, "--method")
        return [options.method]
    if options.methods == "all":
        every = options.pattern is None
        return [name for name in methods.NAMES if every or methods.takes_patterns(name)]
    names = [name.strip() for name in options.methods.split(",")]
    for name in names:
        if name not in methods.NAMES:
            known = ", ".join(methods.NAMES)
            raise ValueError(f"--methods: {name!r} is not one of {known}, or all")
    methods.require_patterns(names, options.pattern, "--methods")
    return list(dict.fromkeys(names))


def _numbers(text: str | None, name: str, kind: type, default: float) -> list:
    if text is None:
        return [default]
    try:
        return list(dict.fromkeys(kind(part) for part in text.split(",")))
    except ValueError:
        wanted = "whole numbers" if kind is int else "numbers"
        raise ValueError(
            f"{name}: {wanted} separated by commas wanted, got {text!r}"
        ) from None
