"""What a rule of sparse training is: data, and one pure function that chooses masks."""

import dataclasses
from collections.abc import Callable
from fractions import Fraction
from typing import Any, Literal, NamedTuple

import jax

from swapjax.core.types import Leaves, Masks
from swapjax.sparsity.allocation import Allocation
from swapjax.sparsity.budget import Budget
from swapjax.sparsity.patterns import Block
from swapjax.sparsity.schedules import Schedule

Begin = Literal["magnitude", "random"]
Grow = Literal["gradient", "random"]


class MaskStep(NamedTuple):
    """What a rule sees when masks are to change. All leaves are prunable ones.

    Attributes:
        weights: params, zero outside of the masks; for `ste` the dense weights behind
            them, after their update.
        gradients: at params, dense.
        masks: as they are.
        within: where entries may ever be active; None for anywhere.
        budget: how many to keep now.
        fraction: of the active entries of each leaf to exchange, ``float32[]``.
        key: a PRNG key of this mask step.
    """

    weights: Leaves
    gradients: Leaves
    masks: Leaves
    within: Leaves | None
    budget: Budget
    fraction: jax.Array
    key: jax.Array


def follow(schedule: Schedule, final: Fraction) -> tuple[Fraction, ...]:
    """Take the sparsities of the schedule."""
    return schedule.table(final, schedule.mask_steps)


def stay(schedule: Schedule, final: Fraction) -> tuple[Fraction, ...]:
    """Take the final sparsity from the start: a schedule says when, not how far."""
    del schedule
    return (final,)


@dataclasses.dataclass(frozen=True)
class Rule:
    """How masks change while a network trains.

    Attributes:
        name: as on the command line.
        choose: new masks, bool leaves, of a `MaskStep`; None where they never change.
        settings: pairs of hyper-parameter and value.
        begin: ``"magnitude"`` keeps what `levels` says of the initial weights if the
            schedule starts at 0, and all otherwise; ``"random"`` keeps as many at
            random, by the Erdos-Renyi kernel where the plan lets leaves compete.
        allocation: of a sparsity that comes without a plan.
        levels: the sparsities of the mask steps; the last is kept after them.
        fraction: of the active entries to exchange, by the number of updates and the
            last update with a mask step.
        goes_on: whether mask steps go on after the schedule, to the end of training.
        grows: by which score entries grow, if they do.
        skips: whether a mask step takes the place of an update.
        straight_through: whether gradients go to dense weights beside the params.
        decay: of those that are not active, if so.
        masks: to begin with, instead of what `begin` says.
    """

    name: str
    choose: Callable[[MaskStep], Leaves] | None
    settings: tuple[tuple[str, Any], ...] = ()
    begin: Begin = "magnitude"
    allocation: Allocation = "global"
    levels: Callable[[Schedule, Fraction], tuple[Fraction, ...]] = follow
    fraction: Callable[[int, int], float] = lambda t, last: 0.0
    goes_on: bool = False
    grows: Grow | None = None
    skips: bool = False
    straight_through: bool = False
    decay: float = 0.0
    masks: Masks | None = None

    @property
    def draws(self) -> bool:
        """Whether anything is drawn at random, so that training needs a key."""
        drawn = self.begin == "random" and self.masks is None
        return drawn or self.grows == "random"

    def masks_at(self, step: MaskStep, block: Block | None = None) -> Leaves:
        """Choose the masks of a mask step.

        Args:
            step: what is there.
            block: what lives or dies as one, by its mean magnitudes; the budget then
                counts blocks.
        """
        assert self.choose is not None
        if block is None:
            return self.choose(step)
        inside = step.within
        chosen = self.choose(
            step._replace(
                weights=tuple(map(block.strength, step.weights)),
                gradients=tuple(map(block.strength, step.gradients)),
                masks=tuple(map(block.whole, step.masks)),
                within=None if inside is None else tuple(map(block.whole, inside)),
            )
        )
        return tuple(map(block.expand, chosen))

    def __str__(self) -> str:
        inner = ", ".join(f"{k}={v!r}" for k, v in self.settings)
        return f"{self.name}({inner})"
