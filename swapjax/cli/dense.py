"""The network that a run trains before it prunes, kept for runs that go on from it."""

import dataclasses
from pathlib import Path

import safetensors

from swapjax.core.types import Params
from swapjax.experiments.models import Model
from swapjax.io import checkpoint

NAME = "dense.safetensors"
# Until the results of its run replace those of another.
_WAITING = ".swapjax-dense.safetensors"
_ADVICE = "remove it to train anew"


@dataclasses.dataclass(frozen=True)
class Dense:
    """Where a run keeps the network that it trains.

    Attributes:
        folder: of the run.
        origin: what the network depends on, data by content.
    """

    folder: Path
    origin: dict[str, str]

    def find(self) -> Path | None:
        """Return the file of a network that was trained so, if there is one.

        Raises:
            ValueError: for a file that cannot be read.
        """
        for name in (NAME, _WAITING):
            path = self.folder / name
            if path.exists():
                told = _metadata(path)
                if self.origin.items() <= told.items():
                    return path
        return None

    def load(self, path: Path, model: Model) -> Params:
        """Read the network of a file that was found.

        Raises:
            ValueError: for a file that is damaged.
        """
        try:
            return checkpoint.load_params(path, model.params, model.flattened)
        except ValueError as e:
            raise ValueError(f"{e}; {_ADVICE}") from None

    def keep(self, params: Params) -> None:
        """Write the network, beside one of another run."""
        there = self.folder / NAME
        path = self.folder / _WAITING if there.exists() else there
        checkpoint.save_params(path, params, self.origin)

    def settle(self) -> None:
        """Put the network in the place of that of another run."""
        path = self.find()
        if path is not None and path.name == _WAITING:
            path.replace(self.folder / NAME)


def _metadata(path: Path) -> dict[str, str]:
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return file.metadata() or {}
    except (safetensors.SafetensorError, OSError) as e:
        raise ValueError(f"{path}: no readable safetensors: {e}; {_ADVICE}") from None
