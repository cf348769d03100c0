"""What the stages of a run leave behind, in memory and in a file."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

from swapjax.core.types import Masks, Params, Status
from swapjax.io import records, resume
from swapjax.sparsity.plan import Plan

_KIND = "stages"


class Pruned(NamedTuple):
    """A pruned network.

    Attributes:
        params: zero where masks are False.
        masks: with the tree of params; the scalar True for a leaf never pruned.
        history: what each stage did.
    """

    params: Params
    masks: Masks
    history: "tuple[Stage, ...]"


@dataclasses.dataclass(frozen=True)
class Stage:
    """What one stage did, or what was done to one block of a sequential run.

    Attributes:
        stage: its number, from 1.
        sparsity: the fraction of prunable entries that are zero after it.
        kept: the entries that are left.
        layers: those of each layer, by name: ``blocks/kernel[3]`` for a slice of a
            stack, the path of a leaf that is a layer by itself.
        objective: what the method minimised, before its first and after its last
            iteration; NaN for a method that minimises nothing.
        loss_before: the mean loss of the stage's examples at its start, of those of
            validation where there are any; NaN without data, and after the first block.
        loss: the same at its end, after fine-tuning; NaN before the last block.
        seconds: wall time, compilation included.
        status: how the method ended.
        iterations: how many it took.
        details: what else the method reported, by name.
    """

    stage: int
    sparsity: float
    kept: int
    layers: dict[str, int]
    objective: tuple[float, float]
    loss_before: float
    loss: float
    seconds: float
    status: Status
    iterations: int
    details: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Turn into what JSON takes, the status by name."""
        return {**dataclasses.asdict(self), "status": self.status.name}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "Stage":
        """Undo `to_dict`."""
        objective = tuple(fields["objective"])
        status = Status[fields["status"]]
        return cls(**{**fields, "objective": objective, "status": status})


class Saved(NamedTuple):
    """Where a run stood after its last finished stage.

    Attributes:
        params: pruned so far.
        masks: their support; None before the first stage.
        history: the stages that are done.
        batches: what they took of an iterator of batches.
    """

    params: Params
    masks: Masks
    history: tuple[Stage, ...]
    batches: int


def save(path: str | Path, state: Saved, run: dict[str, str]) -> None:
    """Write the state of a run, whole or not at all."""
    history = [stage.to_dict() for stage in state.history]
    trees = {"params": state.params, "masks": state.masks}
    notes = {"history": history, "batches": state.batches}
    resume.save(path, resume.State(trees, notes), run, _KIND)


def load(
    path: str | Path,
    params: Params,
    target: Plan,
    run: dict[str, str],
    *,
    stages: int,
    counts: bool,
) -> Saved | None:
    """Read the state of a run, None where there is no file yet.

    Args:
        path: of the file.
        params: that the run began with.
        target: what it prunes.
        run: from `resume.fingerprint`.
        stages: of the whole run.
        counts: whether it takes batches of an iterator.

    Raises:
        ValueError: for the state of a run with other arguments, naming them, and one
            that no run of these arguments leaves behind.
    """
    masks = target.layout.masks(target.layout.everything())
    found = resume.load(path, {"params": params, "masks": masks}, run, _KIND)
    if found is None:
        return None
    trees, notes = found
    past = records.read(path, notes, Stage, Stage.from_dict, range(1, stages + 1))
    records.require_masked(path, trees["params"], trees["masks"], past[-1].kept)
    batches = notes.get("batches")
    if type(batches) is not int or batches < 0 or (batches > 0 and not counts):
        resume.refuse(path, "has counted batches that it cannot have taken")
    return Saved(trees["params"], trees["masks"], past, batches)
