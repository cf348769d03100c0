"""Which form of a convolution is fast on a CPU."""

import functools
from collections.abc import Callable
from typing import Any, cast

import jax
from jax import lax
from jax.extend import core

from swapjax.loops.convolutions import matrix_products, shifted_products
from swapjax.loops.convolutions.setting import Setting, inverse, move, setting_of

Form = Callable[[jax.Array, jax.Array], jax.Array]


def form_of(eqn: core.JaxprEqn) -> Form | None:
    """Tell how to compute a convolution; None if there is nothing better.

    Args:
        eqn: of a ``conv_general_dilated``.
    """
    setting = setting_of(eqn)
    if _is_odd(eqn, setting):
        return None
    if setting.groups == 1 and matrix_products.pays(setting):
        return functools.partial(matrix_products.compute, setting)
    if setting.groups > 1 and shifted_products.pays(setting):
        return functools.partial(shifted_products.compute, setting)
    # The kernels of XLA take grouped ones, but not those with zeros between pixels: 33
    # ms in place of 3.4.
    if is_canonical(eqn) or (setting.groups > 1 and setting.is_spread):
        return None
    return functools.partial(_convolve, eqn, setting)


def is_canonical(eqn: core.JaxprEqn) -> bool:
    """Whether XLA's fast kernels take a convolution as it is."""
    setting = setting_of(eqn)
    axes = _axes(len(setting.image))
    return eqn.params["dimension_numbers"] == axes and not setting.by_examples


def _is_odd(eqn: core.JaxprEqn, setting: Setting) -> bool:
    """Whether a convolution is one that nobody meant to be fast."""
    image, kernel = avals = [cast(Any, atom.aval) for atom in eqn.invars]
    sizes = (*setting.image, *setting.kernel, *setting.result)
    sharded = any(axis is not None for aval in avals for axis in aval.sharding.spec)
    return (
        sharded
        or eqn.params.get("out_sharding") is not None
        or image.dtype != kernel.dtype
        or not setting.pixels
        # Sizes that are symbols, of a program for export, cannot be compared.
        or not all(isinstance(size, int) and size for size in sizes)
    )


def _axes(rank: int) -> lax.ConvDimensionNumbers:
    """Tell the layout of the fast kernels: channels last, of kernels in and out."""
    pixels = range(1, rank - 1)
    image = (0, rank - 1, *pixels)
    return lax.ConvDimensionNumbers(
        image, (rank - 1, rank - 2, *(i - 1 for i in pixels)), image
    )


def _convolve(
    eqn: core.JaxprEqn, setting: Setting, image: jax.Array, kernel: jax.Array
) -> jax.Array:
    """Convolve in the layout of the fast kernels."""
    examples, channels, *pixels = setting.image_axes
    image = move(image, (examples, *pixels, channels))
    if setting.by_examples:
        image = _to_channels(image, setting.groups)
    outputs, inputs, *taps = setting.kernel_axes
    kernel = move(kernel, (*taps, inputs, outputs))
    params: dict[str, Any] = dict(
        eqn.params,
        dimension_numbers=_axes(image.ndim),
        feature_group_count=setting.groups,
        batch_group_count=1,
    )
    result = eqn.primitive.bind(image, kernel, **params)
    examples, channels, *places = setting.result_axes
    return move(result, inverse((examples, *places, channels)))


def _to_channels(image: jax.Array, groups: int) -> jax.Array:
    """Lay groups of examples side by side among the channels, [n, ..., c]."""
    n, *pixels, c = image.shape
    parts = lax.reshape(image, (groups, n // groups, *pixels, c))
    last = parts.ndim - 1
    parts = lax.transpose(parts, (*range(1, last), 0, last))
    return lax.reshape(parts, (n // groups, *pixels, groups * c))
