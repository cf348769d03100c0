"""A network without its dead units."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from swapjax.core.types import Params


@dataclasses.dataclass(frozen=True, eq=False)
class Shrunk:
    """A smaller network that computes the same.

    Attributes:
        params: smaller arrays in the tree of the params before.
        apply: ``(params, *inputs)``, what the function is for them: the function
            itself where it takes its sizes from the arrays, else its program with the
            sizes in it changed, for inputs of the same shapes.
        is_rebuilt: whether `apply` is made from the program.
        kept: of each leaf that is smaller, by its path, the places along each axis that
            are left: what brings moments of an optimizer to the same sizes. Where
            layers of a stack keep places of their own, int [layers, places].
        removed: how many units are gone, by the name of their group.
        units: how many there were.
        folded: paths of leaves, such as biases, that took over what removed units
            added to all data alike.
        stayed: why places that are zero were not removed, by leaf and axis.
        error: the largest difference of outputs for the inputs given, relative to the
            largest output.
    """

    params: Params
    apply: Callable[..., Any]
    is_rebuilt: bool
    kept: Mapping[str, tuple[np.ndarray, ...]]
    removed: Mapping[str, int]
    units: Mapping[str, int]
    folded: tuple[str, ...]
    stayed: Mapping[str, str]
    error: float

    def __str__(self) -> str:
        lines = [
            f"{name}: {self.units[name] - count} of {self.units[name]} units left"
            for name, count in self.removed.items()
        ] or ["nothing to remove"]
        if self.stayed:
            first = ", ".join(list(self.stayed)[:3])
            more = f" and {len(self.stayed) - 3} more" if len(self.stayed) > 3 else ""
            lines.append(f"zeros that stay, see stayed: {first}{more}")
        return "\n".join(lines)
