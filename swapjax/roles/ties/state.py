"""What is known while a program is walked through: labels, and where sums run."""

from collections.abc import Sequence
from typing import NamedTuple

from swapjax.roles.ties.reshape import Reshape
from swapjax.roles.ties.steps import Shape, Step, Steps
from swapjax.roles.ties.union import Labels, Union

Axes = tuple[Labels, ...]


class Site(NamedTuple):
    """Where a sum runs over places.

    Attributes:
        step: a product or a ``reduce_sum``.
        which: the position of an operand among those of the step.
        axes: those of the operand that are summed over.
    """

    step: Step
    which: int
    axes: tuple[int, ...]


class Meeting(NamedTuple):
    """Axes of two factors that are summed over together, or go side by side.

    Attributes:
        left: of the one.
        right: of the other.
        made: of the product, where they go side by side.
    """

    left: Labels
    right: Labels
    made: Labels | None


class State:
    """Labels of the axes of each value, and where sums run over them."""

    def __init__(self, program: Steps) -> None:
        self.union = Union()
        self.shapes = program.shapes
        self.labels: dict[int, Axes] = {}
        self.sites: list[Site] = []
        self.reshapes: list[Reshape] = []
        self.meetings: list[Meeting] = []

    def fresh(self, shape: Shape, why: str = "") -> Axes:
        """Make labels for a value; pinned where there is a reason."""
        made = tuple(map(self.union.fresh, shape))
        for labels in made:
            if len(labels) == 1:
                self.union.pin(labels, "has one place")
            elif why:
                self.union.pin(labels, why)
        return made

    def filled(
        self, made: Sequence[Labels | None], shape: Shape, why: str = ""
    ) -> Axes:
        """Make labels for those axes of a value that have none."""
        return tuple(
            self.fresh((n,), why)[0] if labels is None else labels
            for labels, n in zip(made, shape, strict=True)
        )

    def tie(self, first: Axes, second: Axes) -> None:
        """Tie two values of one shape, axis by axis."""
        for a, b in zip(first, second, strict=True):
            self.union.tie(a, b)

    def unknown(self, step: Step, operands: Sequence[Axes]) -> list[Axes]:
        """Pin all that a step takes and gives."""
        why = (
            f"goes through {step.name}, which cannot be followed; take a function "
            "without it, as what makes logits in place of a loss"
        )
        for axes in operands:
            for labels in axes:
                self.union.pin(labels, why)
        return [self.fresh(self.shapes[number], why) for number in step.makes]
