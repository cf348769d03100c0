"""What is known of the variables of a program while it is evaluated."""

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core

from swapjax.activations.product import Product
from swapjax.activations.view import Level, View


class Early(NamedTuple):
    """A product of a leaf with a constant, which data may meet later.

    Attributes:
        view: the leaf.
        scale: of the leaf, as in `Value`.
        contracted: its axes that the product sums over.
        constant: what it is multiplied with, [*free, *contracted].
        free: how many axes of the constant are free.
        axes: for each axis of the result, whether it is the leaf's, and its number
            there, or among the free ones of the constant.
        made: tells it from others, however it is rearranged.
    """

    view: View
    scale: jax.Array | None
    contracted: tuple[int, ...]
    constant: jax.Array
    free: int
    axes: tuple[tuple[bool, int], ...]
    made: object


@dataclasses.dataclass(frozen=True)
class Value:
    """A variable of the program.

    Attributes:
        array: its value.
        data: whether the value depends on the data.
        view: what leaves it is a rearrangement of, or None.
        scale: what the entries of the view are multiplied with, of size 1 along axes
            where that is the same; None for 1.
        early: the product of a leaf with a constant that it is, or None.
        narrow: the value with size 1 along axes that it was broadcast along, or None.
    """

    array: Any
    data: bool = False
    view: View | None = None
    scale: jax.Array | None = None
    early: Early | None = None
    narrow: jax.Array | None = None

    def plain(self) -> "Value":
        """Forget all but the value."""
        return Value(self.array, self.data)


@dataclasses.dataclass
class Frame:
    """The program of a loop, a branch, or the whole, while it is evaluated.

    Attributes:
        paths: of the prunable leaves.
        examples: how many examples there are, for what reads the same of each.
        depth: how many loops and branches are around it.
        products: those found so far, by `add`.
        found: the places of those, by their matrix.
        picks: the number that tells which slice is taken, for each level that the
            program takes one of by a number.
        opened: how many levels there are at this depth.
        alone: what marks each early product that is counted.
    """

    paths: tuple[str, ...]
    examples: int
    depth: int = 0
    products: list[Product] = dataclasses.field(default_factory=list)
    found: dict[Hashable, int] = dataclasses.field(default_factory=dict)
    picks: dict[Level, jax.Array] = dataclasses.field(default_factory=dict)
    opened: int = 0
    alone: set[object] = dataclasses.field(default_factory=set)

    def inner(self) -> "Frame":
        """Make the frame of a loop or a branch in this one."""
        return Frame(self.paths, self.examples, self.depth + 1)

    def open(self, size: int, index: jax.Array | None = None) -> Level:
        """Open a level; with an index if that tells the slice."""
        level = Level(self.depth, self.opened, size)
        self.opened += 1
        if index is not None:
            self.picks[level] = index
        return level

    def add(self, product: Product) -> None:
        """Count a product, together with those of the same matrix."""
        key = product.matrix
        if key in self.found:
            i = self.found[key]
            moment = self.products[i].moment + product.moment
            self.products[i] = product._replace(moment=moment)
            return
        self.found[key] = len(self.products)
        self.products.append(product)

    def picked(self, product: Product) -> tuple[tuple[int, ...], tuple]:
        """List sizes and indices of the levels of this frame that an index tells."""
        levels = [level for level in product.view.levels if level in self.picks]
        sizes = tuple(level.size for level in levels)
        return sizes, tuple(self.picks[level] for level in levels)

    def spread(self, product: Product) -> jax.Array:
        """Give the moment an axis for each level that an index tells."""
        sizes, index = self.picked(product)
        if not sizes:
            return product.moment
        zeros = jnp.zeros((*sizes, *product.moment.shape), product.moment.dtype)
        return zeros.at[index].set(product.moment)

    def error(self, view: View, what: str) -> ValueError:
        """Make the error for leaves that are no layers."""
        named = " and ".join(self.paths[i] for i in sorted(view.leaves))
        return ValueError(
            f"params: {named} {what}, so it is not the matrix of a layer; leave it out "
            "with swapjax.plan(..., exclude=...), or use a method that is not "
            "layer-wise"
        )


Walk = Callable[[core.Jaxpr, Sequence[Any], Sequence[Value], Frame], list[Value]]
