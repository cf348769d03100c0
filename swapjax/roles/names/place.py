"""Where a leaf stands among the others of params, and how well a reading suits it."""

import dataclasses
import re
from collections.abc import Mapping
from typing import NamedTuple

from swapjax.roles.role import Axis, Role

Shape = tuple[int, ...]

# How badly a reading suits a leaf, in units of a stack that nothing else speaks for.
FITS, LIKELY, RATHER_NOT, CONTRADICTED = 0.0, 0.1, 2.0, 6.0

UNKNOWN = Role("unknown", reason="has no name that tells what it does")
UNTOLD = Role("unknown", reason="has axes that its name does not tell")
_NORM = re.compile(r"norm(?!al)|(^|_)(ln|bn|gn|rms)(_?\d+|_[a-z]+)*$", re.IGNORECASE)
_CONVOLUTION = re.compile(r"conv|patch|depthwise|(^|_)stem(_|\d|$)", re.IGNORECASE)
_EXPERT = re.compile(r"expert|moe(?!b)", re.IGNORECASE)


class Reading(NamedTuple):
    """A role that a leaf may have, its stack apart, and how badly that suits it."""

    cost: float
    role: Role


@dataclasses.dataclass(frozen=True)
class Place:
    """A leaf of params, the axes of its stack taken away.

    Attributes:
        modules: the names on its path, the outermost first.
        leaf: its own name.
        shape: without the axes of stacks.
        is_dotted: whether its path is written with dots, as PyTorch does.
        beside: the shapes of the leaves of its module, its own among them.
        around: those of the modules beside its own, by names of module and leaf.
    """

    modules: tuple[str, ...]
    leaf: str
    shape: Shape
    is_dotted: bool
    beside: Mapping[str, Shape]
    around: Mapping[tuple[str, str], Shape]

    @property
    def module(self) -> str:
        """The name of the module that has the leaf, or of its list; empty for none."""
        return next((name for name in self.modules[::-1] if not name.isdigit()), "")

    @property
    def rank(self) -> int:
        """How many axes the leaf has without those of stacks."""
        return len(self.shape)

    @property
    def is_of_norm(self) -> bool:
        """Whether the name of the leaf or of its module is a norm's."""
        return any(_NORM.search(name) for name in (self.leaf, self.module))

    @property
    def is_of_convolution(self) -> bool:
        """Whether the module's name is a convolution's."""
        return bool(_CONVOLUTION.search(self.module))

    @property
    def is_of_experts(self) -> bool:
        """Whether a name on the path is that of a mixture of experts."""
        if "router" in (self.leaf, self.module):
            return False  # It chooses among them.
        is_routed = any("router" in name for name in self.beside)
        return is_routed or any(_EXPERT.search(name) for name in self.modules)

    def of_one_expert(self) -> "Place":
        """Take the leading axis away from the leaf and from those beside it."""
        return dataclasses.replace(
            self,
            shape=self.shape[1:],
            beside={name: shape[1:] for name, shape in self.beside.items()},
        )


def window_cost(window: Shape, is_named: bool) -> float:
    """Tell how badly sizes suit the window of a kernel: it is square and small.

    Or one of a row of pixels, or of a column.

    Args:
        window: the sizes.
        is_named: whether the leaf's module has the name of a convolution.
    """
    largest, otherwise = (32, 0.3) if is_named else (7, 1.0)
    is_square = len(set(window) - {1}) <= 1
    return FITS if is_square and max(window, default=1) <= largest else otherwise


def repeat(axis: Axis, times: int) -> tuple[Axis, ...]:
    """Write the word of an axis as often as a leaf has such axes."""
    return (axis,) * times
