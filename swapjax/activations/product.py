"""Products of leaves with what they read, and the second moments of that.

Products and convolutions are treated alike, as ``outputs = inputs @ matrix``; the
inputs of a convolution are the patches under its kernel.
"""

import functools
import itertools
import math
from collections.abc import Callable, Hashable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core

from swapjax.activations.view import View
from swapjax.loops.convolutions.setting import Setting, setting_of

_PATCH_BYTES = 2**25  # of the patches of a convolution, live at a time
_HIGHEST = jax.lax.Precision.HIGHEST


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
        return self.moment.reshape(-1, *self.moment.shape[-2:])


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
    patches = functools.partial(_patches, setting=setting_of(eqn))
    # The outputs of a group are neighbours: their axis is split in two.
    split = (*shape[:output], groups, shape[output] // groups, *shape[output + 1 :])
    inputs = tuple(i + (i > output) for i in (*pixels, channels))
    examples, features, *places = numbers.lhs_spec
    found = _moment_in_parts(images.transpose((examples, *places, features)), patches)
    return Product(view, split, (output,), inputs, (output + 1,), found)


def moment(read: jax.Array) -> jax.Array:
    """Compute ``sum_p a_p a_p^T`` for each group of [groups, positions, inputs]."""
    return jnp.einsum(
        "gpi,gpj->gij",
        read,
        read,
        precision=_HIGHEST,
        preferred_element_type=_wide(read.dtype),
    )


def rest(ndim: int, axes: tuple[int, ...]) -> tuple[int, ...]:
    """List the axes that are not among some."""
    return tuple(i for i in range(ndim) if i not in axes)


def _fold(x: jax.Array, axes: tuple[tuple[int, ...], ...]) -> jax.Array:
    """Transpose to the given order of axes, and make one of each several."""
    sizes = [math.prod(x.shape[i] for i in several) for several in axes]
    return x.transpose(tuple(itertools.chain(*axes))).reshape(sizes)


def _moment_in_parts(
    images: jax.Array, patches: Callable[[jax.Array], jax.Array]
) -> jax.Array:
    """Compute the second moment of all patches, a few images at a time."""
    count = images.shape[0]
    one = jax.eval_shape(patches, images[:1])
    size = max(1, _PATCH_BYTES // max(1, one.size * one.dtype.itemsize))
    if count <= size:
        return moment(patches(images))
    parts = -(-count // size)
    size = -(-count // parts)
    # The last part is padded with images of zeros, which add nothing.
    fill = [(0, parts * size - count)] + [(0, 0)] * (images.ndim - 1)
    stacked = jnp.pad(images, fill).reshape(parts, size, *images.shape[1:])

    def step(total: jax.Array, part: jax.Array) -> tuple[jax.Array, None]:
        return total + moment(patches(part)), None

    groups, _, inputs = one.shape
    zeros = jnp.zeros((groups, inputs, inputs), _wide(one.dtype))
    return jax.lax.scan(step, zeros, stacked)[0]


def _patches(images: jax.Array, setting: Setting) -> jax.Array:
    """Extract the patch under a kernel at each of its positions.

    Args:
        images: [examples, *pixels, channels].
        setting: of the convolution.

    Returns:
        [groups, examples * positions, pixels of the kernel * channels of a group].
    """
    axes = range(1, images.ndim - 1)
    read = setting.padded(images, axes)
    # Axis by axis: the pixels of the kernel one by one would be many slices.
    for axis in axes:
        rows = [setting.cut_along(read, axis, i) for i in range(setting.taps[axis - 1])]
        read = jnp.stack(rows, axis=-2)
    groups = setting.groups
    size = math.prod(setting.taps)
    read = read.reshape(-1, size, groups, images.shape[-1] // groups)
    return read.transpose(2, 0, 1, 3).reshape(groups, -1, size * read.shape[-1])


def _wide(dtype: jnp.dtype) -> jnp.dtype:
    """Return the dtype to accumulate sums in: float32 or wider."""
    return jnp.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)
