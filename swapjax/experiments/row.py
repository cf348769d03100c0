"""What a run of pruning gave, as a line of a table and of a JSON file."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from swapjax.experiments.noise import parse


@dataclasses.dataclass(frozen=True)
class Row:
    """One run of pruning, as a line of a table.

    Attributes:
        method: its name.
        sparsity: as asked for.
        seed: of the run.
        noise: its word, as ``gaussian:4,0.5``.
        accuracy: percent of the whole test set that is classified correctly.
        loss: mean cross-entropy over the test set.
        seconds: wall time of its stages, compilation included.
        nonzeros: prunable entries that are left.
        total: prunable entries.
        status: the worst that a stage reported, by name.
        settings: the method in full.
        setup: what else the run was done with.
    """

    method: str
    sparsity: float
    seed: int
    noise: str
    accuracy: float
    loss: float
    seconds: float
    nonzeros: int
    total: int
    status: str
    settings: str = ""
    setup: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Turn into what JSON takes; a number that is not finite becomes null."""
        fields = dataclasses.asdict(self)
        for name in ("accuracy", "loss"):
            if not math.isfinite(fields[name]):
                fields[name] = None
        return fields

    @classmethod
    def from_dict(cls, fields: Any) -> "Row":
        """Undo `to_dict`.

        Raises:
            ValueError: for what it never gives, naming the column.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        if not isinstance(fields, dict) or set(fields) != set(names):
            found = sorted(fields) if isinstance(fields, dict) else repr(fields)[:60]
            raise ValueError(f"columns {', '.join(names)} wanted, got {found}")
        if fields["noise"] is None or isinstance(fields["noise"], list):
            raise ValueError(
                f"noise is {str(fields['noise'])[:60]}, as in rows of before; "
                f"kinds of noise have names now, as {parse('gaussian')}"
            )
        for name, fits in _COLUMNS.items():
            if not fits(fields[name]):
                raise ValueError(f"{name} is {repr(fields[name])[:60]}")
        if fields["nonzeros"] > fields["total"]:
            raise ValueError(
                f"nonzeros is {fields['nonzeros']}, of {fields['total']} in all"
            )
        lost = {k: math.nan for k in ("accuracy", "loss") if fields[k] is None}
        return cls(**{**fields, **lost})


def _is_number(value: Any, low: float = -math.inf, high: float = math.inf) -> bool:
    kind = isinstance(value, int | float) and not isinstance(value, bool)
    return kind and math.isfinite(value) and low <= value <= high


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_noise(value: Any) -> bool:
    try:
        return isinstance(value, str) and str(parse(value)) == value
    except ValueError:
        return False


# What `Row.from_dict` takes in each column.
_COLUMNS: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(
        ("method", "status", "settings", "setup"), lambda v: isinstance(v, str)
    ),
    **dict.fromkeys(("seed", "nonzeros", "total"), _is_count),
    "sparsity": lambda v: _is_number(v, 0, 1),
    "noise": _is_noise,
    "accuracy": lambda v: v is None or _is_number(v, 0, 100),
    "loss": lambda v: v is None or _is_number(v),
    "seconds": lambda v: _is_number(v, 0),
}
