"""What a program ties, and what products cost without some of it."""

import dataclasses
import functools
import math
from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np

from swapjax.roles.ties.groups import Group, find_groups
from swapjax.roles.ties.layers import free_units
from swapjax.roles.ties.state import Axes, Site, State
from swapjax.roles.ties.steps import Steps
from swapjax.roles.ties.union import Labels


class Product(NamedTuple):
    """A matrix product or a convolution.

    Attributes:
        name: of the primitive.
        axes: the unit of each place along each axis that multiplications run over, 0
            where it stays: those of the result, and those that are summed over.
        times: how often it is done, in loops.
    """

    name: str
    axes: tuple[Labels, ...]
    times: int


@dataclasses.dataclass(frozen=True, eq=False)
class Ties:
    """What lives or dies together in a network.

    A unit is a number; 0 stands for all that stays.

    Attributes:
        paths: of the leaves of params.
        shapes: of the leaves; of what is no array, ().
        program: of the function, written out.
        leaves: the number of the value of each leaf in the program, None for what is
            no array.
        labels: the unit of each place along each axis of each value.
        sites: where sums run over units.
        result: the tree of what the function returns.
        tree: that of params.
    """

    paths: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    program: Steps
    leaves: tuple[int | None, ...]
    labels: dict[int, Axes]
    sites: tuple[Site, ...]
    result: Any
    tree: Any
    _state: State

    def axes(self, leaf: int) -> Axes:
        """Tell the unit of each place along each axis of a leaf; 0 where it stays."""
        number = self.leaves[leaf]
        return () if number is None else self.labels[number]

    def reasons(self, leaf: int, axis: int) -> tuple[str, ...]:
        """Tell why places along an axis of a leaf stay: after "it"."""
        number = self.leaves[leaf]
        if number is None:
            return ("is no array",)
        return self._state.union.reasons(self._state.labels[number][axis])

    @functools.cached_property
    def highest(self) -> int:
        """The largest number of a unit."""
        arrays = [x for axes in self.labels.values() for x in axes]
        return max((int(x.max(initial=0)) for x in arrays), default=0)

    @functools.cached_property
    def groups(self) -> tuple[Group, ...]:
        """List the units of params, those that are tied alike together."""
        axes = [self.axes(leaf) for leaf in range(len(self.leaves))]
        # Axes that sums run over are read; those that products leave are made.
        left: dict[int, int] = {}
        for order, site in enumerate(self.sites):
            number = site.step.reads[site.which]
            for axis, labels in enumerate(self.labels[number]):
                if axis not in site.axes:
                    left.setdefault(id(labels), order)
        made = {
            (leaf, axis): left[id(labels)]
            for leaf, labels_of in enumerate(axes)
            for axis, labels in enumerate(labels_of)
            if id(labels) in left
        }
        free = free_units(self.program, self.labels)
        return find_groups(self.paths, axes, made, free)

    @functools.cached_property
    def products(self) -> tuple[Product, ...]:
        """List the matrix products and convolutions, in order."""
        return tuple(self._products(self.program, 1))

    def multiplications(self, removed: Collection[int] = ()) -> int:
        """Count the multiplications of all products.

        Args:
            removed: units that are gone.
        """
        gone = np.asarray(list(removed), np.int64)
        return sum(
            product.times * math.prod(_left(axis, gone) for axis in product.axes)
            for product in self.products
        )

    def entries(self, removed: Collection[int] = ()) -> tuple[int, ...]:
        """Count the entries of each leaf.

        Args:
            removed: units that are gone.
        """
        gone = np.asarray(list(removed), np.int64)
        return tuple(
            math.prod(_left(axis, gone) for axis in self.axes(leaf))
            for leaf in range(len(self.leaves))
        )

    def _products(self, program: Steps, times: int) -> list[Product]:
        found = []
        for step in program.steps:
            params = step.equation.params
            if step.inner:
                more = times * params.get("length", 1)
                for inner in step.inner:
                    found += self._products(inner, more)
            if step.name not in ("dot_general", "conv_general_dilated"):
                continue
            left, right = (self.labels[number] for number in step.reads)
            numbers = params["dimension_numbers"]
            if step.name == "dot_general":
                summed = tuple(left[i] for i in numbers[0][0])
            else:
                summed = tuple(right[i] for i in numbers.rhs_spec[1:])
            axes = (*self.labels[step.makes[0]], *summed)
            found.append(Product(step.name, axes, times))
        return found


def _left(labels: Labels, gone: np.ndarray) -> int:
    """Count the places of an axis that are left."""
    if not len(gone):
        return len(labels)
    return int(np.sum(~np.isin(labels, gone)))
