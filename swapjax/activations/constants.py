"""Leaves that meet constants before data meet them.

``x @ (c * W + d)`` reads c x, ``x @ (C @ W)`` reads x C, and ``x @ (W @ R)`` reads x.
What no data meet in a product, ``C @ W`` itself, reads C for every example.
"""

import math

import jax
import jax.numpy as jnp
from jax.extend import core

from swapjax.activations.patches import moment
from swapjax.activations.product import Product, of_dot, rest
from swapjax.activations.values import Early, Frame, Value


def scaled(product: Product, value: Value, frame: Frame) -> Product:
    """Count the scale of a leaf in what is read.

    Raises:
        ValueError: for a scale that is not the same for all outputs.
    """
    scale = value.scale
    if scale is None:
        return product
    if len(product.split) > scale.ndim:  # a convolution's outputs, split in groups
        (axis,) = product.groups
        scale = jnp.expand_dims(scale, axis)
    if any(scale.shape[i] > 1 for i in product.outputs):
        assert value.view is not None
        raise frame.error(value.view, "is scaled by output before the product")
    axes = (*product.groups, *product.inputs, *product.outputs)
    sides = [product.split[i] for i in (*product.groups, *product.inputs)]
    ones = [1] * len(product.outputs)
    scale = jnp.broadcast_to(scale.transpose(axes), [*sides, *ones])
    scale = scale.reshape(product.moment.shape[:2])
    found = product.moment * scale[:, :, None] * scale[:, None, :]
    return product._replace(moment=found)


def scale(eqn: core.JaxprEqn, operands: list[Value]) -> Value | None:
    """Take a view that is scaled, or moved by a constant; None for other uses."""
    name = eqn.primitive.name
    which = 0 if operands[0].view is not None else 1
    leaf = operands[which]
    assert leaf.view is not None
    if name == "neg":
        return leaf
    other = operands[1 - which]
    if other.view is not None or other.data or (name == "div" and which == 1):
        return None
    if name in ("add", "sub"):
        return leaf
    factor = jnp.asarray(other.array if other.narrow is None else other.narrow)
    if factor.ndim == 0:
        factor = factor.reshape([1] * len(leaf.view.shape))
    if factor.ndim != len(leaf.view.shape) or leaf.array.ndim == 0:
        return None
    factor = 1 / factor if name == "div" else factor
    both = factor if leaf.scale is None else leaf.scale * factor
    return Value(leaf.array, leaf.data, leaf.view, both)


def moved_scale(eqn: core.JaxprEqn, value: Value, ndim: int, frame: Frame) -> jax.Array:
    """Rearrange a scale as the view it belongs to, which becomes one of ndim axes.

    Raises:
        ValueError: for one that is not the same for all entries, unless transposed.
    """
    assert value.scale is not None
    assert value.view is not None
    if value.scale.size == 1:
        return value.scale.reshape([1] * ndim)
    if eqn.primitive.name == "transpose":
        return value.scale.transpose(eqn.params["permutation"])
    name = eqn.primitive.name
    raise frame.error(value.view, f"is scaled entry by entry and enters {name}")


def narrow(eqn: core.JaxprEqn, value: Value) -> jax.Array | None:
    """Keep what is broadcast as it is, with axes of size 1."""
    if eqn.primitive.name != "broadcast_in_dim":
        return None
    source = jnp.asarray(value.array if value.narrow is None else value.narrow)
    shape = [1] * len(eqn.params["shape"])
    for axis, side in zip(
        eqn.params["broadcast_dimensions"], source.shape, strict=True
    ):
        shape[axis] = side
    return source.reshape(shape)


def early(eqn: core.JaxprEqn, which: int, leaf: Value, other: Value) -> Early | None:
    """Take a product of a leaf with a constant; None for a batched one."""
    contracted, batched = eqn.params["dimension_numbers"]
    if batched[0]:
        return None
    assert leaf.view is not None
    mine, theirs = tuple(contracted[which]), tuple(contracted[1 - which])
    free = rest(other.array.ndim, theirs)
    left = [(True, axis) for axis in rest(leaf.array.ndim, mine)]
    right = [(False, i) for i in range(len(free))]
    return Early(
        leaf.view,
        leaf.scale,
        mine,
        jnp.transpose(other.array, (*free, *theirs)),
        len(free),
        tuple(left + right if which == 0 else right + left),
        object(),
    )


def transposed(eqn: core.JaxprEqn, product: Early) -> Early:
    """Rearrange the axes of the result."""
    axes = tuple(product.axes[i] for i in eqn.params["permutation"])
    return product._replace(axes=axes)


def met(
    eqn: core.JaxprEqn, which: int, product: Early, other: Value, frame: Frame
) -> Product | None:
    """Let data meet an early product; None where they sum over part of it only."""
    contracted, batched = eqn.params["dimension_numbers"]
    axes = [product.axes[i] for i in contracted[which]]
    theirs = tuple(contracted[1 - which])
    if batched[0] or not axes or len({leaf for leaf, _ in axes}) > 1:
        return None
    numbers = tuple(number for _, number in axes)
    shape = product.view.shape
    inputs = product.contracted
    if axes[0][0]:
        # The data meet what the leaf has left, and the constant comes after it.
        inputs, read = numbers, other.array
        order = (*rest(read.ndim, theirs), *theirs)
        read = read.transpose(order)
    elif len(axes) == product.free:
        read = jnp.tensordot(
            other.array, product.constant, (theirs, numbers), precision="highest"
        )
    else:
        return None
    read = read.reshape(1, -1, math.prod(shape[i] for i in inputs))
    found = Product(
        product.view, shape, (), inputs, rest(len(shape), inputs), moment(read)
    )
    leaf = Value(None, view=product.view, scale=product.scale)
    return scaled(found, leaf, frame)


def settle(value: Value, frame: Frame) -> Value:
    """Let an early product that no data meet read its constant."""
    product = value.early
    if product is None:
        return value
    if product.made not in frame.alone:
        frame.alone.add(product.made)
        shape, inputs = product.view.shape, product.contracted
        read = product.constant.reshape(1, -1, math.prod(shape[i] for i in inputs))
        found = Product(
            product.view, shape, (), inputs, rest(len(shape), inputs),
            moment(read) * frame.examples,
        )  # fmt: skip
        leaf = Value(None, view=product.view, scale=product.scale)
        frame.add(scaled(found, leaf, frame))
    return value.plain()


def at_once(
    eqn: core.JaxprEqn, which: int, leaf: Value, other: Value, frame: Frame
) -> Product:
    """Let a leaf read a constant in a batched product."""
    assert leaf.view is not None
    product = of_dot(eqn, leaf.view, which, leaf.array.shape, jnp.asarray(other.array))
    product = product._replace(moment=product.moment * frame.examples)
    return scaled(product, leaf, frame)
