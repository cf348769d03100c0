"""Products of leaves with what they read, and the second moments of that.

Products and convolutions are treated alike, as ``outputs = inputs @ matrix``; the
inputs of a convolution are the patches under its kernel.
"""

import itertools
import math
from collections.abc import Hashable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core

from swapjax.activations.patches import moment, moment_of_patches
from swapjax.activations.view import View
from swapjax.loops.convolutions.setting import setting_of


class Product(NamedTuple):
    """A product with a view.

    Attributes:
        view: the leaf, or several, as the product sees it.
        split: the shape that the view is reshaped to first.
        groups: the axes of that shape that number the groups.
        inputs: the axes that number the inputs, in their order.
        outputs: the axes that number the outputs.
        moment: [groups, inputs, inputs], summed over positions and examples; with a
            leading axis for each level of the view whose loop has ended.
    """

    view: View
    split: tuple[int, ...]
    groups: tuple[int, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    moment: jax.Array

    @property
    def matrix(self) -> Hashable:
        """What tells whether two products are with the same matrix."""
        return self.view.recipe, self.split, self.groups, self.inputs, self.outputs

    def places(self, leaf: int) -> jax.Array:
        """Compute the flat index into a leaf of each entry of the matrix.

        Returns:
            ``int32[groups, inputs, outputs]``, the levels among the groups; -1 for what
            is no entry of the leaf.
        """
        index = self.view.replay(leaf)
        levels = len(self.view.levels)
        index = index.reshape(*index.shape[:levels], *self.split)
        groups = (*range(levels), *(levels + i for i in self.groups))
        axes = (groups, *(
            tuple(levels + i for i in several)
            for several in (self.inputs, self.outputs)
        ))  # fmt: skip
        return _fold(index, axes)

    def flat_moment(self) -> jax.Array:
        """Lay the levels of the moment out among its groups."""
        shape = self.moment.shape
        return self.moment.reshape(math.prod(shape[:-2]), *shape[-2:])


def of_dot(
    eqn: core.JaxprEqn,
    view: View,
    which: int,
    shape: tuple[int, ...],
    others: jax.Array,
) -> Product:
    """Take a ``dot_general`` as a layer.

    Args:
        eqn: the equation.
        view: the leaf.
        which: which of the operands it is, 0 or 1.
        shape: of the operand.
        others: the other operand.
    """
    contracted, batched = eqn.params["dimension_numbers"]
    groups, inputs = tuple(batched[which]), tuple(contracted[which])
    outputs = rest(len(shape), groups + inputs)

    theirs = (tuple(batched[1 - which]), tuple(contracted[1 - which]))
    positions = rest(others.ndim, theirs[0] + theirs[1])
    read = _fold(others, (theirs[0], positions, theirs[1]))
    return Product(view, shape, groups, inputs, outputs, moment(read))


def of_ragged_dot(
    eqn: core.JaxprEqn,
    view: View,
    shape: tuple[int, ...],
    rows: jax.Array,
    sizes: jax.Array,
) -> Product | None:
    """Take a ``ragged_dot_general`` as a layer for each expert.

    Args:
        eqn: the equation.
        view: the leaf, which has the matrices of the experts.
        shape: of the operand.
        rows: the other operand, those of one expert after those of another.
        sizes: how many each expert has.

    Returns:
        None where the rows are not what it makes groups of, or not all that it does.
    """
    numbers = eqn.params["ragged_dot_dimension_numbers"]
    contracted, batched = numbers.dot_dimension_numbers
    theirs, inputs = map(tuple, contracted)
    groups = tuple(numbers.rhs_group_dimensions)
    free = rest(rows.ndim, theirs)
    ragged = tuple(numbers.lhs_ragged_dimensions)
    if len(groups) != 1 or free != ragged or batched[0] or eqn.params["group_offset"]:
        return None
    outputs = rest(len(shape), groups + inputs)
    read = _fold(rows, (free, theirs))
    ends, number = jnp.cumsum(sizes), jnp.arange(len(read))
    owners = jnp.searchsorted(ends, number, side="right")

    def one(expert: jax.Array) -> jax.Array:
        own = jnp.where((owners == expert)[:, None], read, jnp.zeros((), read.dtype))
        return moment(own[None])[0]

    found = jax.lax.map(one, jnp.arange(shape[groups[0]]))
    return Product(view, shape, groups, inputs, outputs, found)


def of_convolution(
    eqn: core.JaxprEqn, view: View, shape: tuple[int, ...], images: jax.Array
) -> Product:
    """Take a ``conv_general_dilated`` as a layer; its batch groups must be one.

    Args:
        eqn: the equation.
        view: the leaf, which is the kernel.
        shape: of the kernel.
        images: what it is convolved with.
    """
    numbers, groups = eqn.params["dimension_numbers"], eqn.params["feature_group_count"]
    output, channels, *pixels = numbers.rhs_spec
    # The outputs of a group are neighbours: their axis is split in two.
    split = (*shape[:output], groups, shape[output] // groups, *shape[output + 1 :])
    inputs = tuple(i + (i > output) for i in (*pixels, channels))
    examples, features, *places = numbers.lhs_spec
    read = images.transpose((examples, *places, features))
    found = moment_of_patches(read, setting_of(eqn))
    return Product(view, split, (output,), inputs, (output + 1,), found)


def rest(ndim: int, axes: tuple[int, ...]) -> tuple[int, ...]:
    """List the axes that are not among some."""
    return tuple(i for i in range(ndim) if i not in axes)


def _fold(x: jax.Array, axes: tuple[tuple[int, ...], ...]) -> jax.Array:
    """Transpose to the given order of axes, and make one of each several."""
    sizes = [math.prod(x.shape[i] for i in several) for several in axes]
    return x.transpose(tuple(itertools.chain(*axes))).reshape(sizes)
