"""What a leaf of params does: a word for the leaf, and one for each of its axes."""

import dataclasses
import math
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
        pixels: which of the inputs are those under the kernel of a convolution, if that
            is known; the others are its channels. No part of what makes roles equal.
        is_output_head: whether the loss reads its outputs, as those of a classifier or
            the head of a language model. No part of what makes roles equal.
        reason: how a leaf is used that is no matrix, to follow its path in a sentence,
            as in ``"is looked up by gather"``; what told the role, of one that is.
        is_ambiguous: whether it is used in two ways that do not agree, which the reason
            names.
    """

    kind: Kind
    axes: tuple[Axis, ...] = ()
    groups: int = 1
    pixels: tuple[int, ...] = dataclasses.field(default=(), compare=False)
    is_output_head: bool = dataclasses.field(default=False, compare=False, repr=False)
    reason: str = dataclasses.field(default="", compare=False, repr=False)
    is_ambiguous: bool = dataclasses.field(default=False, compare=False, repr=False)

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

    @property
    def channels(self) -> tuple[int, ...]:
        """The inputs but for the pixels of a kernel."""
        return tuple(i for i in self.inputs if i not in self.pixels)

    def sides(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Tell the dimensions of one layer as the field counts them.

        Args:
            shape: of the leaf.

        Returns:
            Those of the kernel in pixels, the number of its input channels, and that of
            its outputs, however many axes they are spread over. Of what is no matrix,
            the shape.
        """
        if self.kind != "matrix":
            return shape
        parts = (self.channels, self.outputs)
        sizes = (math.prod(shape[i] for i in part) for part in parts if part)
        return (*(shape[i] for i in self.pixels), *sizes)

    def _axes(self, *words: Axis) -> tuple[int, ...]:
        return tuple(i for i, word in enumerate(self.axes) if word in words)


def matrix(
    *axes: Axis, groups: int = 1, pixels: tuple[int, ...] = (), reason: str = ""
) -> Role:
    """Make the role of a matrix.

    Args:
        axes: what each axis of the leaf counts.
        groups: of the outputs of a convolution.
        pixels: the axes that number the pixels of its kernel.
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
    return Role("matrix", axes, groups, pixels, reason=reason)
