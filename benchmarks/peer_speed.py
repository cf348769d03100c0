"""A stage of ours beside the authors' own code, in one run.

MLPNet on MNIST, 1,000 rows of one example, to sparsity 0.9 in one stage; WoodFisher
with 128 rows, on a transformer of 98,304 weights too. Each code is kept warm in a
process of its own, and all are called in turn, round after round, so that what else the
machine does meets all of them. BLAS has one thread everywhere.

Of the others' code nothing is here: name your own clones of
github.com/mazumder-lab/CHITA, youlei202/Entropic-Wasserstein-Pruning and
IST-DASLab/WoodFisher, and a python with torch, numba, POT, scikit-learn, matplotlib,
pandas, pyyaml, pillow and tqdm. What is absent is left out, and told.

Each is held against two bounds: what NumPy needs for the least that a stage has to do,
measured in the same run; and the bytes and flops of that, at the speed that one thread
copies and multiplies with in the same run.

On busy cores look at the ratios of CPU seconds, which others inflate least.

Prints a table, writes results.json, and exits with 1 where an aim is missed: swap in
a quarter of SWAP's time, a back-solve in two fifths of CHITA's, WoodFisher on the
transformer in a second.
"""

import dataclasses
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tyro
from least_work import Work, blocks, refit
from rich.table import Table
from service import MissingError, Seconds, Service
from shared import DATA, RESULTS, console, start

from swapjax.core import files
from swapjax.experiments import datasets

HERE = Path(__file__).parent
TRANSFORMER = 98_304  # weights, to 0.8
Times = dict[str, list[Seconds]]


@dataclasses.dataclass(frozen=True)
class Options:
    """Time stages beside the authors' own code."""

    chita: Path | None = None
    """A clone of CHITA."""
    swap: Path | None = None
    """A clone of SWAP."""
    woodfisher: Path | None = None
    """A clone of WoodFisher."""
    python: Path | None = None
    """A python with torch and what the clones import."""
    rounds: int = 5
    """Of a call of each; one more, not counted, comes first."""
    patience: float = 5.0
    """Calls of more seconds are made once, and once more that does not count."""
    only: str = ""
    """Lines with this in their name alone, and what they are held against."""
    examples: int = 60_000
    """Of the training set, from which a stage draws; each reads or shuffles all."""
    samples: int = 1000
    """Rows, of one example each."""
    few: int = 128
    """Rows of WoodFisher."""
    sparsity: float = 0.9
    """Of MLPNet; the transformer goes to 0.8."""
    threads: int = 1
    """Threads of torch, and of XLA, which knows one and all; BLAS has one."""
    data: Path = DATA / "data" / "mnist.npz"
    """MNIST, an .npz with x_train, y_train, x_test, y_test."""
    checkpoint: Path = DATA / "checkpoints" / "mlpnet_mnist.npz"
    """The published weights."""
    out: Path = RESULTS / "peer_speed"
    """The folder for results.json."""


class Row(NamedTuple):
    """A line of the table.

    Attributes:
        label: what is timed.
        call: its service and its name there.
        peer: the call that it is held against.
        bound: NumPy's version.
        work: the bytes and flops of that.
        limit: of the ratio to the peer, or of seconds without one.
    """

    label: str
    call: str
    peer: str | None = None
    bound: str | None = None
    work: Work | None = None
    limit: float | None = None


def main(options: Options) -> None:
    """Measure, and show it."""
    if options.rounds < 1:
        raise SystemExit(f"--rounds must be 1 or more, got {options.rounds}")
    rows = chosen(lines(options), options.only)
    with tempfile.TemporaryDirectory() as folder:
        problem = Path(folder) / "problem.npz"
        write_problem(options, problem)
        times = measure(options, problem, wanted(rows))
    shown = [row for row in rows if row.call in times]
    found = {row.label: figures(row, times) for row in shown}
    rates = speeds(options, times)
    console.print(table(shown, found, rates))
    console.print(
        f"One thread multiplies at {rates.flops / 1e9:.0f} GFLOP/s and copies at "
        f"{rates.bytes / 1e9:.1f} GB/s (read and written)."
    )
    text = json.dumps({"rows": found, "seconds": times}, indent=1) + "\n"
    options.out.mkdir(parents=True, exist_ok=True)
    files.write_text(options.out / "results.json", text)
    over = [row.label for row in shown if missed(row, found[row.label])]
    console.print(f"over its aim: {', '.join(over)}" if over else "every aim is met")
    sys.exit(bool(over))


def lines(options: Options) -> list[Row]:
    """List what is timed, in the order of a round."""
    n, p = options.samples, 32_360
    kept = int(p * (1 - options.sparsity))
    one = refit(n, p, kept, supports=1, dampings=1, inverse=False)
    transformer = blocks(options.few, TRANSFORMER, TRANSFORMER // 5, 1000, dampings=2)
    mlpnet = blocks(options.few, p, kept, 1000, dampings=1)
    return [
        Row("chita(search='magnitude', damping=1e-3)", "ours/chita, one back-solve",
            "CHITA/one back-solve", "NumPy/one back-solve", one, 0.40),
        Row("CHITA, Heuristic_LS", "CHITA/one back-solve"),
        Row("NumPy, one back-solve", "NumPy/one back-solve"),
        Row("chita(block=500, sweeps=1, damping=1e-3)", "ours/chita, blocks",
            "CHITA/blocks"),
        Row("CHITA, Heuristic_LSBlock 500", "CHITA/blocks"),
        Row("chita()", "ours/chita"),
        Row("swap()", "ours/swap", "SWAP/swap", "NumPy/swap",
            refit(n, p, kept, supports=2, dampings=3, inverse=True), 0.25),
        Row("SWAP, --ot", "SWAP/swap"),
        Row("NumPy, swap", "NumPy/swap"),
        Row("linear_regression(first_order=False)", "ours/regression",
            "SWAP/regression", "NumPy/regression",
            refit(n, p, kept, supports=2, dampings=3, inverse=False)),
        Row("SWAP, without --ot", "SWAP/regression"),
        Row("NumPy, regression", "NumPy/regression"),
        Row("woodfisher(update='independent', damping=1e-5)",
            "ours/woodfisher, independent", "WoodFisher/woodfisher", work=mlpnet),
        Row("WoodFisher, blocks of 1000", "WoodFisher/woodfisher"),
        Row("woodfisher(), transformer", "ours/woodfisher, transformer",
            work=transformer, limit=1.0),
    ]  # fmt: skip


def chosen(rows: list[Row], only: str) -> list[Row]:
    """Take the lines of a name, and what they are held against."""
    found = [row for row in rows if only in row.label]
    others = {call for row in found for call in (row.peer, row.bound)}
    return [row for row in rows if row in found or row.call in others]


def wanted(rows: list[Row]) -> list[str]:
    """List the calls that lines need, in the order of a round."""
    calls = [call for row in rows for call in (row.call, row.peer, row.bound)]
    named = [*filter(None, calls), "NumPy/multiply", "NumPy/copy"]
    return list(dict.fromkeys(named))


def write_problem(options: Options, path: Path) -> None:
    """Write the examples and kernels that all services read."""
    data = datasets.load(options.data)
    x, y = (part[: options.examples] for part in data.train)
    with np.load(options.checkpoint) as file:
        kernels = {
            name: file[f"{name}.weight"].T.copy() for name in ("fc1", "fc2", "fc3")
        }
    np.savez(path, x=x, y=y, **kernels)


def measure(options: Options, problem: Path, calls: list[str]) -> Times:
    """Make the calls in turn, round after round, and keep the seconds of each."""
    found: Times = {}
    services = dict(begin(options, problem, {call.split("/")[0] for call in calls}))
    try:
        for number in range(options.rounds + 1):
            console.print(f"round {number} of {options.rounds}", highlight=False)
            for call in calls:
                known = found.get(call, [])
                slow = known and known[-1]["total"] > options.patience
                name, _, piece = call.partition("/")
                if slow or name not in services:
                    continue
                try:
                    used = services[name].call(piece)
                except MissingError as e:
                    console.print(f"without {name}: {e}", soft_wrap=True)
                    del services[name]
                    continue
                if number:
                    found.setdefault(call, []).append(used)
    finally:
        for service in services.values():
            service.close()
    return found


def begin(
    options: Options, problem: Path, needed: set[str]
) -> Iterator[tuple[str, Service]]:
    """Start the services that can be had, and tell of those that cannot."""
    n, few, sparsity = map(str, (options.samples, options.few, options.sparsity))
    own = [str(problem), n, sparsity]
    commands = {
        "ours": [sys.executable, str(HERE / "serve_library.py"), *own, few],
        "NumPy": [sys.executable, str(HERE / "serve_bounds.py"), *own],
    }
    clones = {
        "CHITA": (options.chita, n),
        "SWAP": (options.swap, n),
        "WoodFisher": (options.woodfisher, few),
    }
    for name, (clone, rows) in clones.items():
        if name not in needed:
            continue
        if clone is None or options.python is None:
            what = "--python" if clone else f"--{name.lower()}"
            console.print(f"without {name}: {what} was not given")
            continue
        if not clone.is_dir():
            console.print(f"without {name}: there is no {clone}", soft_wrap=True)
            continue
        commands[name] = [
            str(options.python), str(HERE / "serve_torch.py"), name,
            str(clone.resolve()), str(problem), rows, sparsity,
            str(options.threads),
        ]  # fmt: skip
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    # What another number of threads has compiled must not be taken for this.
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    if options.threads == 1:
        environment["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
    for name in [name for name in commands if name in needed]:
        try:
            yield name, Service(commands[name], environment)
        except MissingError as e:
            console.print(f"without {name}: {e}", soft_wrap=True)


def figures(row: Row, times: Times) -> dict[str, list[float]]:
    """Give median, least and most of seconds, and of ratios round by round."""
    used = times[row.call]
    found = {name: [one[name] for one in used] for name in used[0]}
    if "gradients" in found:
        found["rest"] = [one["total"] - one["gradients"] for one in used]
    for suffix, kind in (("", "total"), (", CPU", "cpu")):
        for name, other in (("to peer", row.peer), ("to NumPy", row.bound)):
            if other in times:
                # Slow calls are made in fewer rounds.
                pairs = zip(used, times[other], strict=False)
                found[name + suffix] = [a[kind] / b[kind] for a, b in pairs]
    return {
        name: [float(f(values)) for f in (np.median, np.min, np.max)]
        for name, values in found.items()
    }


def speeds(options: Options, times: Times) -> Work:
    """Tell how many flops and bytes a second one thread does."""
    if "NumPy/multiply" not in times:
        raise SystemExit("NumPy's service failed, so there is nothing to hold against")
    multiply, copy = (
        min(one["total"] for one in times[f"NumPy/{name}"])
        for name in ("multiply", "copy")
    )
    return Work(2e9 / multiply, 8 * options.samples * 32_360 / copy)


def missed(row: Row, found: dict[str, list[float]]) -> bool:
    """Tell whether a line is over its limit."""
    name = "to peer" if row.peer else "total"
    return row.limit is not None and name in found and found[name][0] > row.limit


def table(
    rows: list[Row], found: dict[str, dict[str, list[float]]], rates: Work
) -> Table:
    """Seconds, ratios and bounds, a line each: medians, and [least, most]."""
    result = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
    result.add_column("seconds")
    parts = ("gradients", "rest", "total", "", "cpu")
    ratios = ("to peer", " ", "by CPU", "to NumPy", "  ", "by CPU ")
    for name in (*parts, *ratios, "GFLOP", "MB", "least", "peak, MB"):
        result.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        one = found[row.label]
        cells = [middle(one.get("gradients")), middle(one.get("rest"))]
        cells += [middle(one["total"]), spread(one["total"]), middle(one["cpu"])]
        for name in ("to peer", "to NumPy"):
            cells += [middle(one.get(name)), spread(one.get(name))]
            cells += [middle(one.get(f"{name}, CPU"))]
        if row.work is None:
            cells += ["", "", ""]
        else:
            flops, size = row.work
            least = flops / rates.flops + size / rates.bytes
            cells += [f"{flops / 1e9:.1f}", f"{size / 1e6:.0f}", f"{least:.3f}"]
        result.add_row(row.label, *cells, f"{one['peak'][0] / 1e6:,.0f}")
    return result


def middle(values: list[float] | None) -> str:
    """Write a median."""
    return "" if values is None else f"{values[0]:.3f}"


def spread(values: list[float] | None) -> str:
    """Write least and most."""
    return "" if values is None else f"[{values[1]:.3f}, {values[2]:.3f}]"


if __name__ == "__main__":
    start(main, tyro.cli(Options))
