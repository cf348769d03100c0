"""What may be on an edge: operations with weights of their own, and sums of them."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from swapjax.search import layers
from swapjax.search.draw import Draw
from swapjax.search.layers import Run


class Operation(NamedTuple):
    """An operation on an edge of a cell.

    Attributes:
        init: ``(draw, inputs, outputs, stride) -> params``, a dict of initial weights
            for channels in and out, drawn by a `Draw`; empty where there are none.
        apply: ``(run, params, x, stride) -> y``, pure. Batch norm goes by the `Run`.
        is_zero: whether the result is zero whatever x is. It is then not computed.
    """

    init: Callable[[Draw, int, int, int], dict]
    apply: Callable[[Run, Any, jax.Array, int], jax.Array]
    is_zero: bool = False


def none() -> Operation:
    """Return the operation whose result is zero."""
    return Operation(_nothing, lambda run, params, x, stride: 0 * x, is_zero=True)


def identity() -> Operation:
    """Return the operation that hands on what it gets, at stride 1."""
    return Operation(_nothing, lambda run, params, x, stride: x)


def relu_conv_bn(size: int) -> Operation:
    """Return ReLU, a convolution of size x size pixels and batch norm."""

    def init(draw: Draw, inputs: int, outputs: int, stride: int) -> dict:
        del stride
        kernel = draw.kernel(size, inputs, outputs)
        return {"kernel": kernel, "bn": draw.batch_norm(outputs, affine=draw.affine)}

    def apply(run: Run, params: Any, x: jax.Array, stride: int) -> jax.Array:
        x = layers.convolve(jax.nn.relu(x), params["kernel"], stride=stride)
        return run.batch_norm(params["bn"], x)

    return Operation(init, apply)


def avg_pool(*, bn: bool = False) -> Operation:
    """Return the average of 3 x 3 pixels, of those in the image at its border.

    Args:
        bn: whether batch norm without scale and bias follows it in a supernet.
    """
    return _pool(layers.average_pool, bn)


def max_pool(*, bn: bool = False) -> Operation:
    """Return the maximum of 3 x 3 pixels.

    Args:
        bn: whether batch norm without scale and bias follows it in a supernet.
    """
    return _pool(layers.max_pool, bn)


def _pool(pool: Callable[..., jax.Array], bn: bool) -> Operation:
    def init(draw: Draw, inputs: int, outputs: int, stride: int) -> dict:
        del inputs, stride
        there = bn and not draw.affine
        return {"bn": draw.batch_norm(outputs, affine=False)} if there else {}

    def apply(run: Run, params: Any, x: jax.Array, stride: int) -> jax.Array:
        x = pool(x, size=3, stride=stride, around=1)
        return run.batch_norm(params["bn"], x) if "bn" in params else x

    return Operation(init, apply)


def draw_sum(
    draw: Draw,
    table: Mapping[str, Operation],
    names: Sequence[str],
    inputs: int,
    outputs: int,
    stride: int,
) -> dict[str, Any]:
    """Draw the weights of several operations on one edge, by name."""
    found = {n: table[n].init(draw, inputs, outputs, stride) for n in names}
    return {name: params for name, params in found.items() if params}


def weighted_sum(
    run: Run,
    table: Mapping[str, Operation],
    names: Sequence[str],
    params: Mapping[str, Any],
    alpha: jax.Array | None,
    x: jax.Array,
    stride: int,
) -> jax.Array:
    """Add what the operations on an edge make of x, each times its number in alpha.

    Args:
        run: how.
        table: operations by name.
        names: of those on this edge; for each there is one number in alpha.
        params: their weights, by name.
        alpha: float[names]; None for ones.
        x: images.
        stride: of the edge.

    Returns:
        The sum, zeros of the size of x / stride where all operations are zero.
    """
    total = None
    for i, name in enumerate(names):
        if table[name].is_zero:
            continue
        apply = functools.partial(table[name].apply, run, params.get(name, {}))
        if alpha is None:
            y = apply(x, stride)
        elif run.lazy:
            y = _unless_zero(alpha[i], apply, x, stride)
        else:
            y = alpha[i] * apply(x, stride)
        total = y if total is None else total + y
    return jnp.zeros_like(x[:, ::stride, ::stride]) if total is None else total


def _unless_zero(
    alpha: jax.Array, apply: Callable[..., jax.Array], x: jax.Array, stride: int
) -> jax.Array:
    """Return alpha times what an operation makes of x, which zero does not need."""
    told = jax.eval_shape(lambda x: apply(x, stride), x)
    zeros = lambda x: jnp.zeros(told.shape, told.dtype)  # noqa: E731
    return jax.lax.cond(alpha != 0, lambda x: alpha * apply(x, stride), zeros, x)


def _nothing(draw: Draw, inputs: int, outputs: int, stride: int) -> dict:
    del draw, inputs, outputs, stride
    return {}
