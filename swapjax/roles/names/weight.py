"""Matrices whose outputs come first: ``weight`` of PyTorch and Equinox."""

import re

from swapjax.roles.names.place import (
    CONTRADICTED,
    FITS,
    LIKELY,
    RATHER_NOT,
    UNTOLD,
    Place,
    Reading,
    Shape,
    repeat,
    window_cost,
)
from swapjax.roles.role import Axis, Role, matrix

_RECURRENT = re.compile(r"^weight_(ih|hh|hr)(_l\d+(_reverse)?)?$")
_IN_ATTENTION = re.compile(r"^(in|q|k|v)_proj_weight$")
_WEIGHT = re.compile(r"^(weight|weight_v|weight_orig|original1)$")
_TRANSPOSED = re.compile(r"transpose|deconv|convt|conv_t|upconv", re.IGNORECASE)
_WIDENING = ("c_attn", "c_fc", "q_attn")  # of GPT-2, which calls c_proj the way back
_OF_EXPERTS = ("gate_up_proj", "down_proj")


def read_weight(place: Place) -> Reading | None:
    """Read a leaf called as PyTorch and Equinox call theirs; None for another."""
    if place.leaf in _OF_EXPERTS and place.is_of_experts:
        return _experts(place)
    if _RECURRENT.search(place.leaf):
        return _two_axes(place, "recurrent")
    if _IN_ATTENTION.search(place.leaf):
        return _two_axes(place, "attention")
    if not _WEIGHT.search(place.leaf) or place.rank < 2:
        return None
    bias = place.beside.get("bias")
    if place.rank == 2:
        return _linear(place, bias)
    return _convolution(place, bias)


def _two_axes(place: Place, what: str) -> Reading:
    if place.rank != 2:
        return Reading(CONTRADICTED, UNTOLD)
    return Reading(FITS, _matrix(place, ("output", "input"), what))


def _linear(place: Place, bias: Shape | None) -> Reading:
    first, last = place.shape[:1], place.shape[1:]
    if place.module in (*_WIDENING, "c_proj"):
        axes = _gpt2(place, bias)
        told = "Conv1D" if axes == ("input", "output") else "Linear"
        return Reading(FITS, _matrix(place, axes, told))
    if bias == last != first:
        return Reading(LIKELY, _matrix(place, ("input", "output"), "Linear"))
    cost = FITS if bias is None or bias == first else CONTRADICTED
    return Reading(cost, _matrix(place, ("output", "input"), "Linear"))


def _gpt2(place: Place, bias: Shape | None) -> tuple[Axis, ...]:
    """Tell a Conv1D, inputs first, from a Linear of the same name.

    The bias tells. Where the matrix is square, or there is no bias, so does a matrix
    that is known to widen: there are more outputs than inputs.
    """
    inputs_first: tuple[Axis, ...] = ("input", "output")
    outputs_first: tuple[Axis, ...] = ("output", "input")
    rows, columns = place.shape
    if bias is not None and rows != columns and len(bias) == 1:
        return inputs_first if bias[0] == columns else outputs_first
    wide = [place.shape] if place.module in _WIDENING else []
    wide += [place.around.get((name, place.leaf), ()) for name in _WIDENING]
    for shape in wide:
        if len(shape) == 2 and shape[0] != shape[1]:
            return inputs_first if shape[1] > shape[0] else outputs_first
    return inputs_first


def _convolution(place: Place, bias: Shape | None) -> Reading:
    """Read a kernel of output channels, input channels and pixels."""
    window = place.shape[2:]
    if place.rank > 5:
        return Reading(RATHER_NOT, UNTOLD)
    pixels = repeat("input", len(window))
    plain: tuple[Axis, ...] = ("output", "input", *pixels)
    back: tuple[Axis, ...] = ("input", "output", *pixels)
    if bias == (place.shape[0], *(1,) * len(window)):  # as Equinox has it
        is_named = bool(_TRANSPOSED.search(place.module))
        what = "ConvTranspose" if is_named else "Conv"
        return Reading(FITS, _matrix(place, plain, what))
    # Paths with dots are PyTorch's, which does not stack.
    is_named = place.is_of_convolution or place.is_dotted
    cost = window_cost(window, is_named) + (0.0 if place.is_of_convolution else LIKELY)
    is_back = bool(_TRANSPOSED.search(place.module)) and (
        place.is_dotted or bias is not None
    )
    if bias is not None:
        fits = bias == place.shape[:1]
        fits_back = len(bias) == 1 and bias[0] % place.shape[1] == 0
        if not fits and not fits_back:
            cost += CONTRADICTED
        is_back = fits_back if not fits else is_back and fits_back
    elif not is_named and (place.rank == 3 or cost > LIKELY):
        cost += RATHER_NOT
    if is_back:
        return Reading(cost, _matrix(place, back, "ConvTranspose"))
    return Reading(cost, _matrix(place, plain, "Conv"))


def _experts(place: Place) -> Reading:
    """Read the matrices of one expert, in the order that both of them tell.

    The first makes gates and values of twice the width that the second takes.
    """
    if place.rank != 2:
        return Reading(CONTRADICTED, UNTOLD)
    bias = place.beside.get(f"{place.leaf}_bias")
    up, down = (place.beside.get(name, ()) for name in _OF_EXPERTS)
    first, last = place.shape[:1], place.shape[1:]
    is_first = is_last = False
    if bias is not None and first != last:
        is_first, is_last = bias == last, bias == first
    elif len(up) == len(down) == 2:
        is_first = up[1] == 2 * down[0] and up[0] == down[1]
        is_last = up[0] == 2 * down[1] and up[1] == down[0]
    if is_first == is_last:
        return Reading(FITS, UNTOLD)
    axes: tuple[Axis, ...] = ("input", "output") if is_first else ("output", "input")
    return Reading(FITS, _matrix(place, axes, "experts"))


def _matrix(place: Place, axes: tuple[Axis, ...], what: str) -> Role:
    library = "PyTorch " if place.is_dotted else ""
    pixels = tuple(range(2, place.rank))
    return matrix(*axes, pixels=pixels, reason=f"{library}{what} {place.leaf}")
