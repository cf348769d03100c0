"""What is known of products when some of what they multiply is."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from swapjax.deploy.known import Known, masked, nothing
from swapjax.roles.ties.steps import Shape


def dot(left: Known, right: Known, numbers: Any, shape: Shape) -> Known:
    """Multiply matrices.

    An entry is known where each term of its sum is: of two known factors, or of a zero.
    """
    summed, batch = numbers
    a, a_known, a_free = _matrix(left, summed[0], batch[0])
    b, b_known, b_free = _matrix(right, summed[1], batch[1])
    value = _product(a, b)
    doubt = _doubts(a, a_known, b, b_known)
    value, known = value.reshape((*value.shape[:-2], *a_free, *b_free)), ~doubt
    return masked(value, known.reshape((*known.shape[:-2], *a_free, *b_free)), shape)


def _matrix(
    x: Known, summed: Sequence[int], batch: Sequence[int]
) -> tuple[np.ndarray, np.ndarray, Shape]:
    """Lay a factor out as [batch..., free, summed]; tell the sides that are free."""
    free = [i for i in range(len(x.shape)) if i not in summed and i not in batch]
    order = (*batch, *free, *summed)
    x = x.along(summed)
    value, known = (np.transpose(y, order) for y in (x.value, x.known))
    sides = np.broadcast_shapes(value.shape, known.shape)
    first, second = len(batch), len(batch) + len(free)
    sizes = math.prod(sides[first:second]), math.prod(sides[second:])
    shape = (*sides[:first], *sizes)
    told = np.ones((1,) * len(shape), bool)
    if not known.all():
        told = np.broadcast_to(known, sides).reshape(shape)
    value = np.broadcast_to(value, sides).reshape(shape)
    return value, told, sides[first:second]


def _product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Multiply [..., m, k] and [..., n, k] to [..., m, n]."""
    return np.matmul(a, np.swapaxes(b, -1, -2))


def _doubts(
    a: np.ndarray, a_known: np.ndarray, b: np.ndarray, b_known: np.ndarray
) -> np.ndarray:
    """Mark sums with a term that is not known."""
    doubt: np.ndarray = np.zeros((1,) * a.ndim, bool)
    for x, x_known, y, y_known in ((a, a_known, b, b_known), (b, b_known, a, a_known)):
        if x_known.all():
            continue
        unknown = np.broadcast_to(~x_known, x.shape).astype(np.float32)
        other = (y != 0) | ~y_known
        count = _product(unknown, other.astype(np.float32)) > 0
        doubt = doubt | (count if x is a else np.swapaxes(count, -1, -2))
    shape = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    return np.broadcast_to(doubt, (*shape, a.shape[-2], b.shape[-2]))


def convolution(image: Known, kernel: Known, params: Any, shape: Shape) -> Known:
    """Convolve.

    A channel of the image is a known constant, zero, or not known. One that is not
    zero is none at the rim where there is padding.
    """
    numbers, groups = params["dimension_numbers"], params["feature_group_count"]
    if not kernel.is_whole or params["batch_group_count"] != 1:
        return nothing(shape)
    batch, channels, *pixels = numbers.lhs_spec
    image = image.along([channels])
    value, known = (
        np.transpose(x, (batch, channels, *pixels)) for x in (image.value, image.known)
    )
    inner = tuple(range(2, value.ndim))
    zero = (known & (value == 0)).all(axis=inner)
    same = max(value.shape[2:], default=1) == 1 == max(known.shape[2:], default=1)
    padded = any(low or high for low, high in params["padding"])
    spread = any(n != 1 for n in params["lhs_dilation"])
    level, told = np.zeros(zero.shape, np.float32), zero
    if same and not (padded or spread):
        told = known.all(axis=inner)
        level = np.where(told, value.reshape(value.shape[:2]), 0)
    outputs, inputs, *window = numbers.rhs_spec
    weights = np.transpose(kernel.full(), (outputs, inputs, *window))
    weights = weights.reshape(
        groups, -1, weights.shape[1], math.prod(weights.shape[2:])
    )
    any_weight = (weights != 0).any(axis=-1).astype(np.float32)
    unknown = (~told).reshape(len(told), groups, -1).astype(np.float32)
    doubt = np.einsum("bgi,goi->bgo", unknown, any_weight) > 0
    level = np.broadcast_to(level, told.shape).reshape(len(level), groups, -1)
    made = np.einsum("bgi,goi->bgo", level, weights.sum(axis=-1))

    def place(x: np.ndarray) -> np.ndarray:
        x = x.reshape(len(x), -1, *(1 for _ in window))
        return np.transpose(x, np.argsort(numbers.out_spec))

    return masked(place(made), place(~doubt), shape)
