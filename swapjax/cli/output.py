"""The folder that a command writes to, and what its report tells besides results."""

import dataclasses
import importlib.metadata
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from swapjax.cli.options import Network
from swapjax.core import files
from swapjax.experiments.datasets import Dataset


def circumstances(options: Network, data: Dataset) -> dict[str, Any]:
    """Return data, options and versions, as JSON takes them."""
    return {
        "data": {
            "name": data.name,
            "mean": data.mean,
            "std": data.std,
            "train": len(data.y_train),
            "test": len(data.y_test),
        },
        "options": json.loads(json.dumps(dataclasses.asdict(options), default=str)),
        "versions": {
            name: importlib.metadata.version(name)
            for name in ("swapjax", "jax", "ott-jax")
        },
    }


@contextmanager
def folder(path: Path, names: Sequence[str]) -> Iterator[None]:
    """Make a folder; on bad input leave it, and our files in it, as they were.

    Args:
        path: of the folder.
        names: of our files in it.
    """
    missing = [p for p in (path, *path.parents) if not p.exists()]
    ours = [path / name for name in names]
    before = {file: file.read_bytes() for file in ours if file.exists()}
    path.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except ValueError:
        for file in ours:
            _restore(file, before.get(file))
        for made in missing:
            with suppress(OSError):  # somebody else may use it by now
                made.rmdir()
        raise


def _restore(file: Path, content: bytes | None) -> None:
    if content is None:
        file.unlink(missing_ok=True)
    elif file.read_bytes() != content:
        files.write_atomically(file, lambda p: p.write_bytes(content))
