"""Matrices of networks written by hand: ``w1``, ``W_hh``, ``wq``."""

import re

from swapjax.roles.place import (
    CONTRADICTED,
    FITS,
    LIKELY,
    UNTOLD,
    Place,
    Reading,
    window_cost,
)
from swapjax.roles.role import Axis, matrix

_PLAIN = re.compile(
    r"^(w|u|weights?|kernel|linear)"
    r"(_?(qkv|kv|in|out|up|down|gate|proj|head|ff|[a-z]{0,2})(_?\d+)?)$",
    re.IGNORECASE,
)
_UNCERTAIN = 0.4  # One such leaf speaks for no stack, two do.


def read_plain(place: Place) -> Reading | None:
    """Read a leaf with a name that people give to matrices; None for another.

    Inputs come first, as in ``x @ w``, unless a bias of a like name has the size of
    the first axis alone. A leaf with more axes is not known.
    """
    found = _PLAIN.search(place.leaf)
    if found is None:
        return None
    if place.rank != 2:
        if place.rank < 2:
            return Reading(CONTRADICTED, UNTOLD)
        is_kernel = place.rank > 3 and FITS in (
            window_cost(place.shape[2:]),
            window_cost(place.shape[:-2]),
        )
        return Reading(FITS if is_kernel else _UNCERTAIN, UNTOLD)
    end = found.group(2)
    names = (f"b{end}", f"B{end}", f"bias{end}", f"biases{end}")
    bias = next((place.beside[name] for name in names if name in place.beside), None)
    axes: tuple[Axis, ...] = ("input", "output")
    first, last = place.shape[:1], place.shape[1:]
    cost = FITS if bias in (None, last) else CONTRADICTED
    if bias == first != last:
        axes, cost = ("output", "input"), LIKELY
    return Reading(cost, matrix(*axes, reason=f"called {place.leaf}"))
