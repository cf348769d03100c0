"""The options of how gradients are sent back, and what finds bad ones."""

import dataclasses
import math
from typing import Annotated, Literal

from swapjax.cli.fields import require_counts, shown
from swapjax.cli.robust_options import Against
from swapjax.core.checks import take_amount
from swapjax.core.text import printable

VCAS = "vcas"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Backward:
    """How gradients are sent back."""

    prune_backward: Annotated[
        str | None, shown(f"P|{VCAS}", "(default: all is sent)")
    ] = None
    """Prune gradients at random where they are sent back, without bias: of normal ones
    the fraction P in [0, 1) is affected, and less become zero; 0 only counts zeros. Or
    drop examples and rows of them, as many as a budget of variance allows. With any
    algorithm but lottery."""
    prune_backward_threshold: Annotated[
        Literal["fifo", "exact"] | None, shown("fifo|exact", "(default: fifo)")
    ] = None
    """Of P: the threshold is predicted as the mean of the last four, or found from the
    gradient itself."""
    prune_backward_variance: Annotated[float | None, shown("V", "(default: 0.025)")] = (
        None
    )
    """Of vcas: what dropping examples may add to the variance of SGD, and dropping rows
    to that of each layer, as a share of it."""
    prune_backward_every: Annotated[
        int | None, shown("N", "(default: a 50th of the run)")
    ] = None
    """Of vcas: steps from one adaptation, which costs as much as three, to the next."""

    @property
    def method(self) -> Literal["prune", "vcas"] | None:
        """What is done to gradients; None for nothing."""
        if self.prune_backward is None:
            return None
        return "vcas" if self.prune_backward == VCAS else "prune"

    @property
    def rate(self) -> float:
        """The rate that gradients are pruned at, if that is the method.

        Raises:
            ValueError: for what is none.
        """
        given = self.prune_backward or ""
        try:
            rate = float(given)
        except ValueError:
            rate = math.nan
        if not 0 <= rate < 1:
            raise ValueError(
                f"--prune-backward: a rate in [0, 1) or {VCAS} wanted, got "
                f"{printable(given)!r}"
            )
        return rate

    @property
    def threshold(self) -> Literal["fifo", "exact"]:
        """Where thresholds come from."""
        return self.prune_backward_threshold or "fifo"

    @property
    def variance(self) -> float:
        """The budget of vcas."""
        given = self.prune_backward_variance
        return 0.025 if given is None else given

    def every(self, steps: int) -> int:
        """Return the steps from one adaptation of vcas to the next.

        Args:
            steps: in all.
        """
        return self.prune_backward_every or max(1, steps // 50)


def check(options: Backward, algorithm: str, against: Against) -> None:
    """Find bad values before anything is loaded or trained.

    Args:
        options: of the command.
        algorithm: that they go with.
        against: options of the same command.

    Raises:
        ValueError: naming the option.
    """
    if options.method == "prune":
        _ = options.rate
    if options.prune_backward_variance is not None:
        take_amount("--prune-backward-variance", options.prune_backward_variance)
    if options.prune_backward_every is not None:
        require_counts(options, "prune_backward_every")
    for name, user, use in (
        ("threshold", "prune", "P"), ("variance", VCAS, VCAS), ("every", VCAS, VCAS),
    ):  # fmt: skip
        given = getattr(options, f"prune_backward_{name}") is not None
        if given and options.method != user:
            raise ValueError(
                f"--prune-backward-{name}: it is for --prune-backward {use}; leave it "
                "out"
            )
    if options.method is None:
        return
    asked = f"--prune-backward {options.prune_backward}"
    if algorithm == "lottery":
        raise ValueError(
            f"{asked}: lottery trains its levels by a loss that draws and remembers "
            "nothing; take another algorithm"
        )
    if against.robust == "freeat":
        raise ValueError(
            f"{asked}: --robust freeat makes gradients of its own, of weights and "
            "images at once, that are not pruned; take another framework"
        )
