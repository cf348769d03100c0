"""Matrices whose inputs come first: kernels of Flax and Keras, ``w`` of Haiku."""

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

_HEADS = ("query", "key", "value")
_INTO = re.compile(r"^([qkv](_proj)?|w[qkv])$")  # Heads if those of the way back are.
_BACK = re.compile(r"^(o|wo|(o|out)_proj)$")
_HAIKU = re.compile(
    r"^(linear|query|key|value|(depthwise_)?conv\d_d|conv\d_d_transpose"
    r"|(input|hidden)_to_hidden)(_\d+)?$"
)
_WINDOW = 11  # pixels on a side, of kernels whose module has another name
_EINSUMS: dict[str, tuple[Axis, ...]] = {  # of Gemma
    "q_einsum": ("output", "input", "output"),
    "kv_einsum": ("output", "output", "input", "output"),
    "qkv_einsum": ("output", "output", "input", "output"),
    "attn_vec_einsum": ("input", "input", "output"),
    "gating_einsum": ("stack", "input", "output"),
}
_FIXED = re.compile(r"^(lora_[ab]|recurrent_kernel)$")  # Of two axes, always.


def read_kernel(place: Place) -> Reading | None:
    """Read a leaf called as Flax and Haiku call their matrices; None for another."""
    if place.leaf == "kernel":
        return _read(place, "Flax", place.beside.get("bias"))
    if place.leaf == "w" and _HAIKU.search(place.module):
        return _read(place, "Haiku", place.beside.get("b"))
    if place.leaf in _EINSUMS or (place.leaf == "w" and place.module in _EINSUMS):
        return _gemma(place)
    if _FIXED.search(place.leaf) or _is_gate(place):
        if place.rank != 2:
            return Reading(CONTRADICTED, UNTOLD)
        if place.leaf.startswith("lora"):
            told = "Flax LoRA"
        else:
            told = "Keras" if place.leaf == "recurrent_kernel" else "Haiku GRU"
        return Reading(FITS, matrix("input", "output", reason=f"{told} {place.leaf}"))
    return None


def _gemma(place: Place) -> Reading:
    axes = _EINSUMS.get(place.leaf) or _EINSUMS[place.module]
    if len(axes) != place.rank:
        return Reading(CONTRADICTED, UNTOLD)
    return Reading(FITS, matrix(*axes, reason=f"Gemma {place.leaf}"))


def _is_gate(place: Place) -> bool:
    return place.leaf in ("w_i", "w_h") and {"w_i", "w_h"} <= set(place.beside)


def _read(place: Place, library: str, bias: Shape | None) -> Reading:
    if place.rank < 2:
        return Reading(CONTRADICTED, UNTOLD)
    for read in (_einsum, _heads, _local, _dense, _convolution, _general):
        found = read(place, bias)
        if found is not None:
            cost, axes, what = found
            what = "Linear" if (library, what) == ("Haiku", "Dense") else what
            reason = f"{library} {what} {place.leaf}"
            has_pixels = what in ("Conv", "ConvTranspose")
            pixels = tuple(range(place.rank - 2)) if has_pixels else ()
            return Reading(cost, matrix(*axes, pixels=pixels, reason=reason))
    axes = (*repeat("stack", place.rank - 2), "input", "output")
    return Reading(RATHER_NOT, matrix(*axes, reason=f"{library} {place.leaf}"))


Found = tuple[float, tuple[Axis, ...], str]


def _einsum(place: Place, bias: Shape | None) -> Found | None:
    """Read the kernel of an Einsum, whose bias has the axes that are kept."""
    if "einsum" not in place.module.lower():
        return None
    if bias is None or place.rank <= len(bias):
        return None
    kept = list(bias)
    words: list[Axis] = []
    for size in reversed(place.shape):
        if kept and kept[-1] == size:
            kept.pop()
            words.append("output")
        else:
            words.append("input")
    return (FITS, tuple(reversed(words)), "Einsum") if not kept else None


def _heads(place: Place, bias: Shape | None) -> Found | None:
    """Read the projections of attention, which keep heads and their entries apart."""
    if place.rank != 3:
        return None
    siblings = {module for module, _ in place.around}
    is_into = place.module in _HEADS or _answers(place, _INTO, _BACK)
    if is_into and bias in (None, place.shape[1:]):
        return FITS, ("input", "output", "output"), "attention"
    is_out = place.module == "out" and siblings & set(_HEADS)
    if (is_out or _answers(place, _BACK, _INTO)) and bias in (None, place.shape[2:]):
        return FITS, ("input", "input", "output"), "attention"
    return None


def _answers(place: Place, own: re.Pattern[str], other: re.Pattern[str]) -> bool:
    """Whether one beside it goes the way back: [width, heads, size], [.., size, width].

    Heads of keys may be fewer than those of outputs.
    """
    first, middle, last = place.shape
    ends = (last, first) if own is _INTO else (middle, last)
    return own.search(place.module) is not None and any(
        len(shape) == 3
        and other.search(module)
        and ends == (shape[1:] if own is _INTO else (shape[2], shape[0]))
        for (module, leaf), shape in place.around.items()
        if leaf == place.leaf
    )


def _local(place: Place, bias: Shape | None) -> Found | None:
    """Read a convolution that has a kernel for each of its outputs' pixels."""
    is_named = "convlocal" in place.module.lower()
    if not is_named or bias not in (None, place.shape[:-2] + place.shape[-1:]):
        return None
    pixels = repeat("expert", (place.rank - 2))
    return FITS, (*pixels, "input", "output"), "ConvLocal"


def _dense(place: Place, bias: Shape | None) -> Found | None:
    if place.rank != 2:
        return None
    if bias == place.shape[:1] != place.shape[1:]:
        return LIKELY, ("output", "input"), "Dense"
    is_told = bias is None or bias == place.shape[1:]
    return FITS if is_told else CONTRADICTED, ("input", "output"), "Dense"


def _convolution(place: Place, bias: Shape | None) -> Found | None:
    """Read a kernel of pixels, input channels and output channels."""
    window = place.shape[:-2]
    is_named = place.is_of_convolution
    looks_so = is_named or (place.rank == 4 and window_cost(window, is_named) == FITS)
    if not looks_so or place.rank > 5 or (bias is not None and len(bias) != 1):
        return None
    pixels = repeat("input", len(window))
    cost = window_cost(window, is_named) + (0.0 if is_named else LIKELY)
    is_transposed = "transpose" in place.module.lower() and place.leaf == "w"
    if bias is not None and bias != place.shape[-1:]:
        is_transposed = True
        cost += FITS if bias == place.shape[-2:-1] else CONTRADICTED
    elif bias is not None and place.shape[-1] != place.shape[-2]:
        is_transposed = False
    if is_transposed:
        return cost, (*pixels, "output", "input"), "ConvTranspose"
    return cost, (*pixels, "input", "output"), "Conv"


def _general(place: Place, bias: Shape | None) -> Found | None:
    """Read a product over several axes, of which its bias has those that are kept."""
    if bias is None or not 0 < len(bias) < place.rank:
        return None
    kept = len(bias)
    summed = place.rank - kept
    inputs = repeat("input", summed)
    outputs = repeat("output", kept)
    cost = 0.3 * summed if place.shape[summed:] == bias else CONTRADICTED
    if (summed, kept) == (3, 1) and max(place.shape[:2]) <= _WINDOW:
        return cost, (*inputs, *outputs), "Conv"
    return cost, (*inputs, *outputs), "DenseGeneral"
