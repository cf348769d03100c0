"""A prunable leaf as the matrix of a linear map, and second moments of its inputs.

Products and convolutions are treated alike, as ``outputs = inputs @ matrix``; the
inputs of a convolution are the patches under its kernel.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core

_PATCH_BYTES = 2**25  # of the patches of a convolution, live at a time
_HIGHEST = jax.lax.Precision.HIGHEST


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["moment", "index"], meta_fields=[]
)
@dataclasses.dataclass(frozen=True)
class Layer:
    """A prunable leaf as a matrix, and the second moment of its inputs.

    A grouped convolution, or a batched product, is several maps side by side.

    Attributes:
        moment: [groups, inputs, inputs], the sum of ``a a^T`` over the positions
            (pixels, tokens) of an example, averaged over examples.
        index: ``int32[groups, inputs, outputs]``, the flat index into the leaf of each
            entry of the matrix.
    """

    moment: jax.Array
    index: jax.Array

    def matrix(self, leaf: jax.Array) -> jax.Array:
        """Rearrange the leaf to [groups, inputs, outputs]."""
        return leaf.ravel()[self.index]

    def leaf(self, matrix: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """Undo `matrix`."""
        flat = jnp.zeros(matrix.size, matrix.dtype)
        flat = flat.at[self.index.ravel()].set(matrix.ravel(), unique_indices=True)
        return flat.reshape(shape)


class View(NamedTuple):
    """A leaf, rearranged.

    Attributes:
        leaf: its number among the prunable leaves.
        shape: of the leaf.
        moves: the equations that rearranged it.
    """

    leaf: int
    shape: tuple[int, ...]
    moves: tuple[core.JaxprEqn, ...] = ()

    def places(self) -> jax.Array:
        """Compute the flat index into the leaf of each entry of the view."""
        size = math.prod(self.shape)
        index = jax.lax.iota(jnp.int32, size).reshape(self.shape)
        for eqn in self.moves:
            index = eqn.primitive.bind(index, **eqn.params)
        return index


class Product(NamedTuple):
    """A product with a leaf.

    Attributes:
        view: the leaf as the product sees it.
        split: the shape that the view is reshaped to first.
        groups: the axes of that shape that number the groups.
        inputs: the axes that number the inputs, in their order.
        outputs: the axes that number the outputs.
        moment: [groups, inputs, inputs], summed over positions and examples.
    """

    view: View
    split: tuple[int, ...]
    groups: tuple[int, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    moment: jax.Array

    def places(self) -> jax.Array:
        """Compute the flat index into the leaf of each entry of the matrix."""
        axes = (self.groups, self.inputs, self.outputs)
        places = self.view.places().reshape(self.split)
        return places.transpose(tuple(itertools.chain(*axes))).reshape(
            [math.prod(self.split[i] for i in several) for several in axes]
        )


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
    outputs = _rest(len(shape), groups + inputs)

    theirs = (batched[1 - which], contracted[1 - which])
    positions = _rest(others.ndim, (*theirs[0], *theirs[1]))
    axes = (theirs[0], positions, theirs[1])
    read = others.transpose(tuple(itertools.chain(*axes))).reshape(
        [math.prod(others.shape[i] for i in several) for several in axes]
    )
    return Product(view, shape, groups, inputs, outputs, _moment(read))


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
    kernel = tuple(shape[i] for i in pixels)
    patches = functools.partial(_patches, kernel=kernel, params=eqn.params)
    # The outputs of a group are neighbours: their axis is split in two.
    split = (*shape[:output], groups, shape[output] // groups, *shape[output + 1 :])
    inputs = tuple(i + (i > output) for i in (*pixels, channels))
    examples, features, *places = numbers.lhs_spec
    moment = _moment_in_parts(images.transpose((examples, *places, features)), patches)
    return Product(view, split, (output,), inputs, (output + 1,), moment)


def _moment_in_parts(
    images: jax.Array, patches: Callable[[jax.Array], jax.Array]
) -> jax.Array:
    """Compute the second moment of all patches, a few images at a time."""
    count = images.shape[0]
    one = jax.eval_shape(patches, images[:1])
    size = max(1, _PATCH_BYTES // max(1, one.size * one.dtype.itemsize))
    if count <= size:
        return _moment(patches(images))
    parts = -(-count // size)
    size = -(-count // parts)
    # The last part is padded with images of zeros, which add nothing.
    fill = [(0, parts * size - count)] + [(0, 0)] * (images.ndim - 1)
    stacked = jnp.pad(images, fill).reshape(parts, size, *images.shape[1:])

    def step(total: jax.Array, part: jax.Array) -> tuple[jax.Array, None]:
        return total + _moment(patches(part)), None

    groups, _, inputs = one.shape
    zeros = jnp.zeros((groups, inputs, inputs), _wide(one.dtype))
    return jax.lax.scan(step, zeros, stacked)[0]


def _patches(
    images: jax.Array, *, kernel: tuple[int, ...], params: dict[str, Any]
) -> jax.Array:
    """Extract the patch under a kernel at each of its positions.

    Args:
        images: [examples, *pixels, channels].
        kernel: its size in pixels.
        params: of the convolution's equation.

    Returns:
        [groups, examples * positions, pixels of the kernel * channels of a group].
    """
    last = images.ndim - 1
    order = (0, last, *range(1, last))
    read = jax.lax.conv_general_dilated_patches(
        images,
        kernel,
        params["window_strides"],
        params["padding"],
        lhs_dilation=params["lhs_dilation"],
        rhs_dilation=params["rhs_dilation"],
        dimension_numbers=jax.lax.ConvDimensionNumbers(
            order, tuple(range(images.ndim)), order
        ),
        precision=_HIGHEST,
    )
    # Their features are ordered by channel, then pixel; entries of a pattern that are
    # consecutive channels shall be neighbours.
    groups = params["feature_group_count"]
    size = math.prod(kernel)
    read = read.reshape(-1, groups, images.shape[-1] // groups, size)
    return read.transpose(1, 0, 3, 2).reshape(groups, -1, read.shape[2] * size)


def _moment(read: jax.Array) -> jax.Array:
    """Compute ``sum_p a_p a_p^T`` for each group of [groups, positions, inputs]."""
    return jnp.einsum(
        "gpi,gpj->gij",
        read,
        read,
        precision=_HIGHEST,
        preferred_element_type=_wide(read.dtype),
    )


def _wide(dtype: jnp.dtype) -> jnp.dtype:
    """Return the dtype to accumulate sums in: float32 or wider."""
    return jnp.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)


def _rest(ndim: int, axes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(i for i in range(ndim) if i not in axes)
