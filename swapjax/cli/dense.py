"""The network that a run trains before it prunes, kept for runs that go on from it."""

import dataclasses
from pathlib import Path

import safetensors

from swapjax.core.text import printable, reason
from swapjax.core.types import Params
from swapjax.experiments.models import Model
from swapjax.io import checkpoint, resume

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
        notes: what else to keep with the weights.
    """

    folder: Path
    origin: dict[str, str]
    notes: dict[str, str] = dataclasses.field(default_factory=dict)

    def find(self) -> Path | None:
        """Return the file of a network that was trained so, if there is one.

        Raises:
            ValueError: for a file that cannot be read.
        """
        for path in self._there():
            if not self._differences(path):
                return path
        return None

    def require_own(self, state: Path) -> None:
        """Raise for the state of a run on another network, before this one is trained.

        A network is kept before the first stage of its run: where only another is
        there, so is the state of that one's run.

        Raises:
            ValueError: naming the state, and what the other depends on.
        """
        there = self._there()
        if there and state.exists() and self.find() is None:
            resume.refuse(
                state, f"belongs to another run ({self._differences(there[-1])})"
            )

    def _there(self) -> list[Path]:
        """List the files of networks that are there, the latest last."""
        paths = (self.folder / name for name in (NAME, _WAITING))
        return [path for path in paths if path.exists()]

    def _differences(self, path: Path) -> str:
        told = _metadata(path)
        return "; ".join(
            f"{name} was {printable(told.get(name))}, is {value}"
            for name, value in self.origin.items()
            if told.get(name) != value
        )

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
        checkpoint.save_params(path, params, {**self.notes, **self.origin})

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
        raise ValueError(
            f"{printable(path)}: no readable safetensors: {reason(e)}; {_ADVICE}"
        ) from None
