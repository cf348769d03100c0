"""Kill the commands at random moments, and go on until they are done.

Each trial is a run of ``swapjax prune`` or ``swapjax train`` that a signal ends once or
several times, at a moment drawn from the time that a whole run takes. Half of them
begin in a terminal and end in a pipe. What the last call leaves must be, bit for bit,
what a run leaves that nobody killed, and no other file.

Writes results.csv.
"""

import contextlib
import dataclasses
import json
import os
import pty
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from rich.table import Table
from shared import RESULTS, complete_csv, console, start

from swapjax.io import checkpoint

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
COMMANDS = {
    "prune": "--method obd --stages 8 --samples 50 --epochs 1 --finetune-steps 10",
    "train": "--epochs 8 --batch 32",
}
EXPECTED = {
    "prune": {"dense.safetensors", "report.png"},
    "train": {"train.png"},
}
COMMON = {"params.safetensors", "masks.safetensors", "report.json"}
TIMES = ("seconds", "options", "versions")  # what may differ in a report


@dataclasses.dataclass(frozen=True)
class Options:
    """Kill runs of the commands."""

    kills: int = 50
    """In all; a trial has up to four of them."""
    seed: int = 0
    """Of the moments, the signals and the data."""
    out: Path = RESULTS / "kills"
    """The folder to write to."""


@dataclasses.dataclass(frozen=True)
class Trial:
    """A run that was killed, and what came of it.

    Attributes:
        number: of the trial.
        command: which.
        begun: in a terminal or in a pipe; it ends in a pipe.
        signals: that ended its calls, one after another.
        fractions: when they came, as fractions of the time of a whole run.
        codes: how these calls ended; 0 where one was done before.
        lines: the most that one of them wrote to the standard error stream.
        differs: what is not as in a run that nobody killed.
        left: files that should not be there in the end.
    """

    number: int
    command: str
    begun: str
    signals: str
    fractions: str
    codes: str = ""
    lines: int = 0
    differs: str = ""
    left: str = ""

    @property
    def key(self) -> tuple[int, str]:
        """What tells a trial from others."""
        return self.number, self.signals

    @property
    def hit(self) -> int:
        """How many calls a signal has ended."""
        return sum(code != "0" for code in self.codes.split())

    def __str__(self) -> str:
        return f"{self.command} begun in a {self.begun}, {self.signals}"


def main(options: Options) -> None:
    """Kill, compare, and show what came of it."""
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        work = Work(Path(name), options.seed)
        done = complete_csv(
            options.out / "results.csv", plan(options.kills, options.seed), work.run
        )
    console.print(table(list(done.values())))
    console.print(f"Written to {options.out}.", soft_wrap=True)


def plan(kills: int, seed: int) -> list[Trial]:
    """Draw trials until there are enough kills."""
    trials: list[Trial] = []
    draw, left = random.Random(seed), kills
    while left > 0:
        count = min(draw.randint(1, 4), left)
        trials.append(
            Trial(
                number=len(trials),
                command=list(COMMANDS)[len(trials) % 2],
                begun=("terminal", "pipe")[len(trials) // 2 % 2],
                signals=" ".join(draw.choice(SIGNALS).name for _ in range(count)),
                fractions=" ".join(f"{draw.random():.3f}" for _ in range(count)),
            )
        )
        left -= count
    return trials


class Work:
    """Carries out trials in a folder of its own.

    Args:
        folder: for data and runs.
        seed: of the data.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        draw = np.random.default_rng(seed)
        labels = np.arange(400) % 10
        images = draw.integers(0, 128, (400, 8, 8), np.uint8)
        images[np.arange(400), labels % 8] += 127
        self._folder, self._data = folder, folder / "data.npz"
        np.savez(
            self._data, x_train=images[:320], y_train=labels[:320],
            x_test=images[320:], y_test=labels[320:],
        )  # fmt: skip
        # A shell lets what it runs in the background ignore Ctrl-C, and all it calls.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        # What a call compiles the next one reads, however small.
        self._environment = {
            "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            **os.environ,
        }
        self._whole: dict[str, tuple[dict[str, Any], float]] = {}

    def run(self, trial: Trial) -> Trial:
        """Kill a run as planned, go on with it, and look at what it leaves."""
        whole, seconds = self._uninterrupted(trial.command)
        out, codes, lines = self._folder / "killed", [], 0
        shutil.rmtree(out, ignore_errors=True)
        plans = zip(trial.signals.split(), trial.fractions.split(), strict=True)
        for number, (name, fraction) in enumerate(plans):
            terminal = trial.begun == "terminal" and number == 0
            code, said = self._call(
                trial.command, out, terminal, signal.Signals[name],
                float(fraction) * seconds,
            )  # fmt: skip
            codes.append(str(code))
            lines = max(lines, said if code and not terminal else 0)
        code, _ = self._call(trial.command, out, terminal=False)
        found = contents(out) if code == 0 else {}
        differs = [name for name in whole if not equal(whole[name], found.get(name))]
        wanted = COMMON | EXPECTED[trial.command]
        left = sorted(set(os.listdir(out)) - wanted) if out.exists() else []
        return dataclasses.replace(
            trial, codes=" ".join(codes), lines=lines,
            differs=" ".join(differs), left=" ".join(left),
        )  # fmt: skip

    def _uninterrupted(self, command: str) -> tuple[dict[str, Any], float]:
        """Run a command twice, so that all is compiled, and take its time."""
        if command not in self._whole:
            out = self._folder / f"{command}-whole"
            for _ in range(2):
                shutil.rmtree(out, ignore_errors=True)
                started = time.perf_counter()
                code, _ = self._call(command, out, terminal=False)
                if code:
                    raise SystemExit(f"swapjax {command} ended with {code}")
            self._whole[command] = contents(out), time.perf_counter() - started
        return self._whole[command]

    def _call(
        self,
        command: str,
        out: Path,
        terminal: bool,
        end: signal.Signals | None = None,
        after: float = 0.0,
    ) -> tuple[int, int]:
        """Call a command, and end it if asked to.

        Returns:
            The exit code, and the lines it wrote to the standard error stream.
        """
        words = [sys.executable, "-m", "swapjax.cli", command, "--data", self._data]
        words += ["--out", out, *COMMANDS[command].split()]
        said = self._folder / "stderr"
        with open(said, "wb") as file, contextlib.ExitStack() as undo:
            streams: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": file}
            if terminal:
                leader, follower = pty.openpty()
                undo.callback(os.close, leader)
                undo.callback(os.close, follower)
                streams = {"stdin": follower, "stdout": follower, "stderr": follower}
            process = subprocess.Popen(
                list(map(str, words)), env=self._environment, **streams
            )
            due = time.monotonic() + after
            while process.poll() is None:
                if terminal:
                    drain(leader)
                if end is not None and time.monotonic() >= due:
                    process.send_signal(end)
                    end = None
                time.sleep(0.01)
        return process.returncode, len(said.read_bytes().splitlines())


def drain(leader: int) -> None:
    """Read what a terminal shows, lest its program wait for a reader."""
    os.set_blocking(leader, False)
    with contextlib.suppress(BlockingIOError, OSError):
        while os.read(leader, 1 << 16):
            pass


def contents(out: Path) -> dict[str, Any]:
    """Read the results of a run, times left out."""
    report = json.loads((out / "report.json").read_text())
    found: dict[str, Any] = {"report.json": timeless(report)}
    for name in ("params", "masks", "dense"):
        path = out / f"{name}.safetensors"
        if path.exists():
            found[path.name] = checkpoint.read(path)[0]
    return found


def timeless(value: Any) -> Any:
    """Leave out of a report what a clock has measured, and where it lies."""
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k not in TIMES}
    return [timeless(v) for v in value] if isinstance(value, list) else value


def equal(first: Any, second: Any) -> bool:
    """Compare results bit for bit."""
    if not isinstance(first, dict) or not isinstance(second, dict):
        return bool(first == second)
    if set(first) != set(second):
        return False
    pairs = [(first[name], second[name]) for name in first]
    return all(
        (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
        if isinstance(a, np.ndarray)
        else equal(a, b)
        for a, b in pairs
    )


def table(trials: list[Trial]) -> Table:
    """Count kills, and what came of them, by command and where a run began."""
    result = Table("command", "begun in a", "runs", "killed", "differ", "leave files")
    for command in COMMANDS:
        for begun in ("terminal", "pipe"):
            some = [t for t in trials if (t.command, t.begun) == (command, begun)]
            counts = (
                len(some),
                sum(trial.hit for trial in some),
                sum(bool(trial.differs) for trial in some),
                sum(bool(trial.left) for trial in some),
            )
            result.add_row(command, begun, *map(str, counts))
    return result


if __name__ == "__main__":
    start(main, tyro.cli(Options))
