"""Matrices of networks written by hand: ``w1``, ``W_hh``, ``wq``."""

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
from swapjax.roles.role import Axis, matrix

_PLAIN = re.compile(
    r"^(w|u|weights?|kernel)"
    r"(_?(qkv|kv|in|out|up|down|gate|proj|head|ff|[a-z]{0,2})(_?\d+)?)$",
    re.IGNORECASE,
)
_LAYERS = re.compile(  # Leaves that are called as a layer is.
    r"^((qkv|[a-z]{1,4}_proj|(in|out|up|down|gate)(_proj)?|proj|head|lm_head|router"
    r"|linear|dense|fc)(_?\d+)?)$"
)
_UNCERTAIN = 0.4  # One such leaf speaks for no stack, two do.


def read_plain(place: Place) -> Reading | None:
    """Read a leaf with a name that people give to matrices; None for another.

    Inputs come first, as in ``x @ w``, unless a bias of a like name has the size of
    the first axis alone. Of leaves with more axes only convolutions are known, whose
    bias tells which axis is outputs.
    """
    found = _PLAIN.search(place.leaf)
    if found is None and not _LAYERS.search(place.leaf):
        return None
    end = found.group(2) if found else f"_{place.leaf}"
    names = (f"b{end}", f"B{end}", f"bias{end}", f"biases{end}", f"{place.leaf}_bias")
    bias = next((place.beside[name] for name in names if name in place.beside), None)
    if place.rank != 2:
        return _several_axes(place, bias)
    axes: tuple[Axis, ...] = ("input", "output")
    first, last = place.shape[:1], place.shape[1:]
    cost = FITS if bias in (None, last) else CONTRADICTED
    if bias == first != last:
        axes, cost = ("output", "input"), LIKELY
    return Reading(cost, matrix(*axes, reason=f"the name {place.leaf}"))


def _several_axes(place: Place, bias: Shape | None) -> Reading:
    """Read a convolution, if its window and its bias leave no doubt about it."""
    if place.rank < 2:
        return Reading(CONTRADICTED, UNTOLD)
    if bias is not None and len(bias) > 1:
        return Reading(RATHER_NOT, UNTOLD)  # The stack of the bias is its own.
    first, last = place.shape[:1], place.shape[-1:]
    window, ahead = place.shape[2:], place.shape[:-2]
    is_named = place.is_of_convolution
    looks_last, looks_first = (
        (place.rank > 3 or is_named) and window_cost(w, is_named) == FITS
        for w in (window, ahead)
    )
    if "depthwise" in place.module and place.rank > 3:
        looks_last, looks_first = place.shape[1] == 1, place.shape[-2] == 1
    reason = f"Conv, called {place.leaf}"
    # A window told by the name needs no bias, if the sizes fit one order alone.
    is_told = is_named and bias is None and looks_first != looks_last
    is_told = is_told and "transpose" not in place.module
    if looks_first and place.rank < 6 and (is_told or bias == last != first):
        axes = (*repeat("input", place.rank - 1), *repeat("output", 1))
        pixels = tuple(range(place.rank - 2))
        return Reading(LIKELY, matrix(*axes, pixels=pixels, reason=reason))
    if looks_last and place.rank < 6 and (is_told or bias == first != last):
        axes = (*repeat("output", 1), *repeat("input", place.rank - 1))
        pixels = tuple(range(2, place.rank))
        return Reading(LIKELY, matrix(*axes, pixels=pixels, reason=reason))
    return Reading(FITS if looks_last or looks_first else _UNCERTAIN, UNTOLD)
