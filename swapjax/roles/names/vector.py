"""Leaves that are no matrices by their names: norms, biases, positions, tables."""

import re

from swapjax.roles.names.place import (
    CONTRADICTED,
    FITS,
    LIKELY,
    RATHER_NOT,
    UNTOLD,
    Place,
    Reading,
)
from swapjax.roles.role import Role

_BIAS = re.compile(
    r"(^|_)bias(es)?(_[a-z]{1,2}(_l\d+)?(_reverse)?|_?\d+)?$"
    r"|^b(_?\d+|_?[a-z]{1,2}|_in|_out)?$"
)
_SCALE = re.compile(
    r"(^|_)(scale|gamma|beta|offset|shift)(_?\d+)?$|^weight_g$|^original0$|^g$"
    r"|^lambda_?\d$"
)
_STATISTIC = re.compile(
    r"^(running_|moving_)?(mean|var|variance|average)$|^(count|num_batches_tracked)$"
)
_ADDED = re.compile(
    r"^(pos|position(al)?|cls|class|mask|register|dist(illation)?)"
    r"_?(emb\w*|encodings?|tokens?)$"
)
_TABLE = re.compile(
    r"(^|_)(emb|embed|embedding|embedder)s?(_?\d+)?$|^embed_(in|tokens|positions)$"
    r"|_table$|^w_?e$|^wte$|^wpe$|^shared$|^relative_attention_bias$"
)
_LINEAR = re.compile(
    r"linear|dense|proj|head|logits|classifier|output|readout"
    r"|(^|_)(fc|mlp|out|lin)(_?\d|$)",
    re.IGNORECASE,
)
_ODD = 3.0  # Of norms over several axes, and of biases without one.


def read_vector(place: Place) -> Reading | None:
    """Read a leaf that acts entry by entry; None for what has no such name."""
    name = place.leaf.lower()
    if _ADDED.search(name):
        return Reading(FITS, _vector("is added to every example"))
    if _STATISTIC.search(name):
        return Reading(_norm_cost(place), _vector("is a running statistic"))
    if _BIAS.search(name):
        if place.rank > 1 and f"a{name[1:]}" in place.beside:
            return None  # Two factors are called a and b.
        # Of several axes it is one of several outputs, as heads and their entries.
        cost = FITS if place.rank == 1 else LIKELY if place.rank else _ODD
        return Reading(cost, _vector("is a bias"))
    if _SCALE.search(name):
        return Reading(_norm_cost(place), _vector("scales or shifts entry by entry"))
    if place.is_of_norm and not _is_kernel(place):
        return Reading(_norm_cost(place), _vector("belongs to a norm"))
    if place.leaf == "weight" and place.beside.get("bias") == place.shape:
        return Reading(_norm_cost(place), _vector("has the shape of its bias"))
    return None


def read_table(place: Place) -> Reading | None:
    """Read a leaf that is looked up by number; None for what has no such name."""
    name = place.module if place.leaf == "weight" else place.leaf
    is_named = _TABLE.search(name.lower())
    if not is_named or "bias" in place.beside:
        return None
    if place.leaf == "weight" and place.rank > 3:
        return None  # Of patches, by a convolution.
    role = Role("table", reason="is a table of embeddings")
    if place.rank < 2:
        return Reading(CONTRADICTED, UNTOLD)
    return Reading(FITS if place.rank == 2 else RATHER_NOT, role)


def read_single(place: Place) -> Reading | None:
    """Read a weight of one axis: of a norm, unless its module's name forbids it."""
    if place.leaf != "weight" or place.rank > 1:
        return None
    bias = place.beside.get("bias", place.shape)
    if place.rank == 0 or bias != place.shape or _LINEAR.search(place.module):
        return Reading(CONTRADICTED, UNTOLD)
    return Reading(FITS, _vector("has one axis"))


def _is_kernel(place: Place) -> bool:
    """Whether a leaf in a module called as norms are is a matrix all the same."""
    if place.leaf == "kernel" or (place.is_of_convolution and place.rank > 2):
        return place.rank > 1
    bias = place.beside.get("bias", place.beside.get("b"))
    return (
        bias is not None
        and place.rank > 1
        and bias in (place.shape[:1], place.shape[-1:])
    )


def _norm_cost(place: Place) -> float:
    """Tell how badly a shape suits a norm, which has one axis, and seldom more."""
    if place.rank == 0:
        return LIKELY
    return FITS if set(place.shape[1:]) <= {1} else _ODD


def _vector(reason: str) -> Role:
    return Role("vector", reason=reason)
