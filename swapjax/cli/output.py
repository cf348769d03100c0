"""The folder that a command writes to, and what its report tells besides results."""

import dataclasses
import importlib.metadata
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from swapjax.cli import config
from swapjax.cli.console import console, require_writable
from swapjax.cli.lock import exclusive
from swapjax.cli.network_options import Network
from swapjax.core import files
from swapjax.core.text import reason
from swapjax.experiments import plot, report, runner
from swapjax.experiments.datasets import Dataset

_NEW = ".swapjax-new"


@dataclasses.dataclass(frozen=True)
class Output:
    """A folder that no other run writes to meanwhile.

    Attributes:
        path: of the folder.
    """

    path: Path

    def replace(self, results: Mapping[str, Callable[[Path], object]]) -> None:
        """Write results, all or none: those of before stay until every one is there.

        Args:
            results: by the name of a file, what writes it to the path it is given.
        """
        new = self.path / _NEW
        new.mkdir(exist_ok=True)
        try:
            for name, write in results.items():
                try:
                    write(new / name)
                except OSError as e:
                    raise files.naming(e, self.path / name) from None
            for name in results:
                _move(new / name, self.path / name)
        finally:
            shutil.rmtree(new, ignore_errors=True)


def _move(new: Path, path: Path) -> None:
    """Put a file in the place of another, which keeps its rights."""
    if path.is_symlink():  # to another disk, maybe
        files.write_atomically(path, lambda copy: shutil.copyfile(new, copy))
        return
    with suppress(FileNotFoundError):
        shutil.copymode(path, new)
    new.replace(path)


def require_file(path: str | None, name: str = "--json") -> None:
    """Raise early if a file could not be written.

    Args:
        path: of the file; "-" is the standard output.
        name: of the option.

    Raises:
        ValueError: naming the option.
    """
    if path in (None, "-"):
        return
    if Path(path).is_dir() or not Path(path).name:
        raise ValueError(f"{name} {path}: is a folder")
    require_writable(Path(path).parent, name)


def tell(path: str | None, summary: Mapping[str, Any]) -> None:
    """Write what a report holds to a file, or to the standard output.

    Args:
        path: of the file; "-" is the standard output, None writes nothing.
        summary: as `report.write_json` takes it.
    """
    if path == "-":
        (console.results or sys.stdout).write(report.to_json(summary))
    elif path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        report.write_json(path, summary)


@contextmanager
def folder(path: Path, names: Sequence[str]) -> Iterator[Output]:
    """Make a folder and keep other runs out of it, whatever is in there.

    A run that fails removes none of the files that it finds or has finished: they are
    results of other runs, and work that a call in the same words goes on from. If it
    finished none, a folder that it made goes again.

    Args:
        path: of the folder.
        names: of our files in it.

    Raises:
        ValueError: where another run writes to it, and where a folder has the name of a
            file of ours.
    """
    with exclusive(path, f"--out {path}"):
        for name in names:
            if (path / name).is_dir():
                raise ValueError(f"--out {path}: {path / name} is a folder")
        # Of a run that was killed while it wrote.
        shutil.rmtree(path / _NEW, ignore_errors=True)
        yield Output(path)


def draw(figure: Callable[[], Figure], path: Path) -> None:
    """Draw a picture once all else is written, so that it can take nothing away.

    Args:
        figure: makes it.
        path: of the file.

    Raises:
        ValueError: where that fails, in whatever way, saying that results are there.
    """
    try:
        # LaTeX of a user's may not be there, and reads names as its own commands.
        with matplotlib.rc_context({"text.usetex": False}):
            plot.save(figure(), path)
    except Exception as e:
        raise ValueError(
            f"{path} could not be drawn ({reason(e)}); all other results are written"
        ) from e


def circumstances(command: str, options: Network, data: Dataset) -> dict[str, Any]:
    """Return data, options and versions, as JSON takes them."""
    return {
        "command": command,
        "data": {
            "name": data.name,
            "digest": runner.digest(data),
            "mean": data.mean,
            "std": data.std,
            "train": len(data.y_train),
            "test": len(data.y_test),
        },
        "options": config.recorded(options),
        "versions": {
            name: importlib.metadata.version(name)
            for name in ("swapjax", "jax", "ott-jax")
        },
    }
