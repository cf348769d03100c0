"""What the stages of a run leave behind."""

import dataclasses
from typing import Any, NamedTuple

from swapjax.core.types import Masks, Params, Status


@dataclasses.dataclass(frozen=True)
class Stage:
    """What one stage did.

    Attributes:
        stage: its number, from 1.
        sparsity: the fraction of prunable entries that are zero after it.
        kept: the entries that are left.
        objective: what the method minimised, before its first and after its last
            iteration; NaN for a method that minimises nothing.
        loss_before: the mean loss of the stage's examples at its start.
        loss: the same at its end, after fine-tuning.
        seconds: wall time, compilation included.
        status: how the method ended.
        iterations: how many it took.
        details: what else the method reported, by name.
    """

    stage: int
    sparsity: float
    kept: int
    objective: tuple[float, float]
    loss_before: float
    loss: float
    seconds: float
    status: Status
    iterations: int
    details: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """As JSON takes it, the status by name."""
        return {**dataclasses.asdict(self), "status": self.status.name}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "Stage":
        """Undo `to_dict`."""
        objective = tuple(fields["objective"])
        status = Status[fields["status"]]
        return cls(**{**fields, "objective": objective, "status": status})


class Saved(NamedTuple):
    """Where a run stood after its last finished stage."""

    params: Params
    masks: Masks
    history: tuple[Stage, ...]
    batches: int
