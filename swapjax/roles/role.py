"""What a leaf of params does: a word for the leaf, and one for each of its axes."""

import dataclasses
from typing import Literal, get_args

Kind = Literal["matrix", "table", "vector", "unknown"]
Axis = Literal["stack", "expert", "input", "output"]


@dataclasses.dataclass(frozen=True)
class Role:
    """What a leaf does. Static: it has a hash.

    Attributes:
        kind: ``"matrix"`` for what data is multiplied with, products and convolutions
            alike; ``"table"`` for what is looked up by number; ``"vector"`` for what
            acts entry by entry, as norms and biases do; ``"unknown"`` for the rest.
        axes: of a matrix, what each axis of the leaf counts, else empty. ``"input"``
            and ``"output"`` are those of a layer: what is summed over, the pixels of a
            kernel among it, and what is left. The others tell layers apart that share
            the leaf: ``"stack"`` those of a loop or a list, ``"expert"`` those that one
            product runs side by side.
        groups: of a convolution, how many groups its outputs fall into, in order, each
            with inputs of its own.
        reason: how a leaf is used that is no matrix, to follow its path in a sentence,
            as in ``"is looked up by gather"``; what told the role, of one that is.
    """

    kind: Kind
    axes: tuple[Axis, ...] = ()
    groups: int = 1
    reason: str = dataclasses.field(default="", compare=False)

    @property
    def stack(self) -> tuple[int, ...]:
        """The axes that tell layers apart: those of stacks and of experts."""
        return self._axes("stack", "expert")

    @property
    def experts(self) -> tuple[int, ...]:
        """The axes that number experts."""
        return self._axes("expert")

    @property
    def inputs(self) -> tuple[int, ...]:
        """The axes that number what an output is summed over."""
        return self._axes("input")

    @property
    def outputs(self) -> tuple[int, ...]:
        """The axes that number outputs."""
        return self._axes("output")

    def _axes(self, *words: Axis) -> tuple[int, ...]:
        return tuple(i for i, word in enumerate(self.axes) if word in words)


def matrix(*axes: Axis, groups: int = 1, reason: str = "") -> Role:
    """Make the role of a matrix.

    Args:
        axes: what each axis of the leaf counts.
        groups: of the outputs of a convolution.
        reason: what told it.

    Raises:
        ValueError: for another word than those of `Role`.

    Example:
        >>> matrix("stack", "input", "output").stack
        (0,)
    """
    for axis in axes:
        if axis not in get_args(Axis):
            listed = ", ".join(map(repr, get_args(Axis)))
            raise ValueError(f"axes: each must be one of {listed}, got {axis!r}")
    return Role("matrix", axes, groups, reason)
