"""The options of how gradients are sent back, and what finds bad ones."""

import dataclasses
import math
from typing import Annotated, Literal

from swapjax.cli.options import shown
from swapjax.cli.robust_options import Against
from swapjax.core.text import printable

RATE = "P"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Backward:
    """How gradients are sent back."""

    prune_backward: Annotated[str | None, shown(RATE, "(default: all is sent)")] = None
    """Prune gradients at random where they are sent back, without bias: of normal ones
    the fraction P in [0, 1) is affected, and less become zero; 0 only counts zeros.
    With any algorithm but lottery."""
    prune_backward_threshold: Annotated[
        Literal["fifo", "exact"] | None, shown("fifo|exact", "(default: fifo)")
    ] = None
    """Below which threshold: predicted as the mean of the last four, or found from the
    gradient itself."""

    @property
    def rate(self) -> float | None:
        """The rate that gradients are pruned at; None where none are.

        Raises:
            ValueError: for what is none.
        """
        if self.prune_backward is None:
            return None
        try:
            rate = float(self.prune_backward)
        except ValueError:
            rate = math.nan
        if not 0 <= rate < 1:
            raise ValueError(
                f"--prune-backward: a rate in [0, 1) wanted, got "
                f"{printable(self.prune_backward)!r}"
            )
        return rate

    @property
    def threshold(self) -> Literal["fifo", "exact"]:
        """Where thresholds come from."""
        return self.prune_backward_threshold or "fifo"


def check(options: Backward, algorithm: str, against: Against) -> None:
    """Find bad values before anything is loaded or trained.

    Args:
        options: of the command.
        algorithm: that they go with.
        against: options of the same command.

    Raises:
        ValueError: naming the option.
    """
    if options.rate is None:
        if options.prune_backward_threshold is not None:
            raise ValueError(
                "--prune-backward-threshold: a run without --prune-backward has no use "
                "for it; leave it out"
            )
        return
    given = f"--prune-backward {options.prune_backward}"
    if algorithm == "lottery":
        raise ValueError(
            f"{given}: lottery trains its levels by a loss that draws and remembers "
            "nothing; take another algorithm"
        )
    if against.robust == "freeat":
        raise ValueError(
            f"{given}: --robust freeat makes gradients of its own, of weights and "
            "images at once, that are not pruned; take another framework"
        )
