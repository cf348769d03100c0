"""Which axis of a leaf numbers attention heads, and which attention it belongs to."""

import re
from typing import NamedTuple

from swapjax.roles.role import Role
from swapjax.roles.stacks import split
from swapjax.sparsity.layout import Layout

_WEIGHTS = ("kernel", "weight", "w", "value")
_QUERY = re.compile(r"^(w_?)?(q|query|qkv|q_attn|c_attn|in)(_?proj)?(_weight)?$", re.I)
_INTO = re.compile(
    r"^(w_?)?(q|k|v|kv|query|key|value|qkv|q_attn|c_attn|in)(_?proj)?(_weight)?$", re.I
)
_OUT = re.compile(r"^(w_?)?(o|out|output|dense|c)(_?proj)?(_weight)?$", re.I)
_ATTENTION = re.compile(r"att(n|ention)|mha", re.I)


class Place(NamedTuple):
    """The axis of a leaf that numbers heads.

    Attributes:
        axis: its number.
        fused: whether it numbers the entries of heads, too.
    """

    axis: int
    fused: bool


def head_axes(layout: Layout, *, fused: bool) -> tuple[Place | None, ...]:
    """Find the axis of each leaf that numbers heads; None for a leaf without.

    Args:
        layout: the leaves.
        fused: whether to find those that number entries of heads, too.
    """
    names = [_module_names(path) for path in layout.paths]
    attentions = [attention_of(path) for path in layout.paths]
    asked = {
        attention
        for attention, name in zip(attentions, names, strict=True)
        if any(map(_QUERY.search, name[-1:]))
    }
    found: list[Place | None] = []
    leaves = zip(layout.roles, names, attentions, strict=True)
    for role, name, attention in leaves:
        axis = _own_axis(role)
        if axis is not None:
            found.append(Place(axis, fused=False))
        elif fused and attention in asked:
            found.append(_fused_axis(role, name[-1]))
        else:
            found.append(None)
    return tuple(found)


def is_called_attention(path: str) -> bool:
    """Tell whether a matrix is called as a part of an attention, or is in one."""
    names = _module_names(path)
    parts = _INTO.search(names[-1]) or _OUT.search(names[-1])
    return bool(parts) or any(map(_ATTENTION.search, names))


def module_of(path: str) -> str:
    """Find the module that a matrix is a part of, beside others."""
    return "/".join(_module_names(path)[:-1])


def attention_of(path: str) -> str:
    """Find the module that holds the parts of an attention, of which path is one.

    The parent of the part. In ``attention.self.query`` and ``attention.output.dense``,
    as BERT calls them, it is the attention.
    """
    names = _module_names(path)[:-1]
    inside = names[-1:] in (("self",), ("output",))
    if inside and any(map(_ATTENTION.search, names[-2:-1])):
        names = names[:-1]
    return "/".join(names)


def _module_names(path: str) -> tuple[str, ...]:
    """Split a path into names, but for that of the matrix if it says nothing."""
    names = split(path)
    if len(names) > 1 and names[-1] in _WEIGHTS:
        names = names[:-1]
    return names


def _own_axis(role: Role) -> int | None:
    """Find an axis that numbers heads alone: the first of two outputs, or inputs."""
    if role.pixels or role.groups > 1:
        return None
    outputs, inputs = role.outputs, role.inputs
    if len(outputs) == 2 and len(inputs) == 1:
        return outputs[0]
    if len(inputs) == 2 and len(outputs) == 1:
        return inputs[0]
    return None


def _fused_axis(role: Role, name: str) -> Place | None:
    """Find an axis that numbers heads and their entries, by the name of the matrix."""
    if role.pixels or role.groups > 1:
        return None
    if len(role.inputs) != 1 or len(role.outputs) != 1:
        return None
    if _INTO.search(name):
        return Place(role.outputs[0], fused=True)
    if _OUT.search(name):
        return Place(role.inputs[0], fused=True)
    return None
