"""The state of a run of stages, kept in one file so that it can go on later."""

from pathlib import Path

from swapjax.core.types import Params
from swapjax.io import resume
from swapjax.io.resume import digest, fingerprint
from swapjax.pruning.history import Saved, Stage

__all__ = ["digest", "fingerprint", "load", "save"]

_KIND = "stages"


def save(path: str | Path, state: Saved, run: dict[str, str]) -> None:
    """Write the state, whole or not at all."""
    history = [stage.to_dict() for stage in state.history]
    trees = {"params": state.params, "masks": state.masks}
    notes = {"history": history, "batches": state.batches}
    resume.save(path, resume.State(trees, notes), run, _KIND)


def load(path: str | Path, params: Params, run: dict[str, str]) -> Saved | None:
    """Read the state of a run, None where there is no file yet.

    Raises:
        ValueError: for the state of a run with other arguments, naming them.
    """
    found = resume.load(path, {"params": params, "masks": params}, run, _KIND)
    if found is None:
        return None
    trees, notes = found
    history = tuple(Stage.from_dict(stage) for stage in notes["history"])
    return Saved(trees["params"], trees["masks"], history, notes["batches"])
