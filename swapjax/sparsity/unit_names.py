"""What names tell of heads and experts: their axes, and what shares them."""

import re
from typing import NamedTuple

from swapjax.roles.names.stacks import split
from swapjax.roles.role import Role
from swapjax.sparsity.layout import Layout

_WEIGHTS = ("kernel", "weight", "w", "value")
_END = r"(_?(proj|lin|einsum))?(_?(weight|kernel))?$"
_QUERY = re.compile(r"^(w_?)?(q|query)" + _END, re.IGNORECASE)
_OTHER = re.compile(r"^(w_?)?(k|v|key|value)" + _END, re.IGNORECASE)
_OUT = re.compile(r"^(w_?)?(o|out|output|attn_vec)" + _END, re.IGNORECASE)
# As Haiku, BERT, GPT-2 and timm call the way out of an attention, and other things.
_OUT_OR_ELSE = re.compile(r"^(linear|dense|(c_)?proj)(_?weight)?$", re.IGNORECASE)
# Parts one after the other, and those of a head next to each other.
_THREE = re.compile(r"^(w_?)?(qkv|c_attn|in)" + _END, re.IGNORECASE)
_TWO = re.compile(r"^(w_?)?kv" + _END, re.IGNORECASE)
_BY_HEAD = re.compile(r"^query_key_value$", re.IGNORECASE)
_ATTENTION = re.compile(r"att(n|ention)|mha", re.IGNORECASE)
_WHOLE = re.compile(r"moe|mixture|expert|\d$", re.IGNORECASE)

_EXPERT = re.compile(r"^experts?_?(\d*)$", re.IGNORECASE)


class Place(NamedTuple):
    """The axis of a leaf that numbers heads.

    Attributes:
        axis: its number.
        fused: whether it numbers the entries of heads, too.
        runs: how many stretches of it, one after the other, number all heads.
        parts: how many of its entries, next to each other, are one entry of a head.
    """

    axis: int
    fused: bool = False
    runs: int = 1
    parts: int = 1


def head_axes(layout: Layout, *, fused: bool) -> tuple[Place | None, ...]:
    """Find the axis of each leaf that numbers heads; None for a leaf without.

    Args:
        layout: the leaves.
        fused: whether to find those that number entries of heads, too.
    """
    names = [_names(path)[-1] for path in layout.paths]
    attentions = [attention_of(path) for path in layout.paths]
    asked = {
        attention
        for path, attention, name in zip(layout.paths, attentions, names, strict=True)
        if _QUERY.search(name) or _joined(path) > 1
    }
    found: list[Place | None] = []
    for path, shape, role, name, attention in zip(
        layout.paths, layout.shapes, layout.roles, names, attentions, strict=True
    ):
        place = None
        if not role.pixels and role.groups == 1:
            place = _own_axis(role, shape, _joined(path))
            if place is None and fused and attention in asked:
                place = _fused_axis(role, name, _joined(path))
        found.append(place)
    return tuple(found)


def is_called_attention(path: str) -> bool:
    """Tell whether a matrix is called as a part of an attention, or is in one."""
    names = _names(path)
    return _is_part(path) or any(map(_ATTENTION.search, names))


def module_of(path: str) -> str:
    """Find the module that a matrix is a part of, beside others.

    The parent of the part, unless the part is called as a whole: ``moe_0/w``.
    """
    names, lone = _names(path), len(_names(path)) < len(split(path))
    return "/".join(names if lone and _WHOLE.search(names[-1]) else names[:-1])


def expert_of(path: str) -> tuple[str, int] | None:
    """Find the mixture and the number of an expert that is a module of its own.

    As in ``experts/3/up`` and ``expert_3/up``; None for what lies in none.
    """
    names = split(path)
    for i, name in enumerate(names[:-1]):
        found = _EXPERT.search(name)
        if found and found[1]:
            return "/".join((*names[:i], name[: found.start(1)])), int(found[1])
        if found and names[i + 1].isdecimal():
            return "/".join(names[: i + 1]), int(names[i + 1])
    return None


def attention_of(path: str) -> str:
    """Find the module that holds the parts of an attention, of which path is one.

    The parent of the part. In ``attention.self.query`` and ``attention.output.dense``,
    as BERT calls them, it is the attention; so it is in ``attention.attention.query``,
    as ViT does.
    """
    names, lone = _names(path), len(_names(path)) < len(split(path))
    if lone and not (_is_part(path) or _OUT_OR_ELSE.search(names[-1])):
        return "/".join(names)
    names = names[:-1]
    inside = names[-1:] in (("self",), ("output",), names[-2:-1])
    if inside and any(map(_ATTENTION.search, names[-2:-1])):
        names = names[:-1]
    return "/".join(names)


def _names(path: str) -> tuple[str, ...]:
    """Split a path into names, but for that of the matrix if it says nothing."""
    names = split(path)
    if len(names) > 1 and names[-1] in _WEIGHTS:
        names = names[:-1]
    return names


def _is_part(path: str) -> bool:
    name = _names(path)[-1]
    alone = any(known.search(name) for known in (_QUERY, _OTHER, _OUT))
    return alone or _joined(path) > 1


def _joined(path: str) -> int:
    """Count the parts that a matrix joins by its name: queries, keys, values."""
    names = _names(path)
    if _THREE.search(names[-1]):
        # In other modules what is called in_proj is no part of an attention.
        doubtful = names[-1].startswith("in")
        return 1 if doubtful and not any(map(_ATTENTION.search, names)) else 3
    if _BY_HEAD.search(names[-1]):
        return 3
    return 2 if _TWO.search(names[-1]) else 1


def _own_axis(role: Role, shape: tuple[int, ...], joined: int) -> Place | None:
    """Find an axis that numbers heads alone: the first of two outputs, or inputs."""
    outputs, inputs = role.outputs, role.inputs
    if len(outputs) == 3 and len(inputs) == 1 and joined > 1:
        # [inputs, 3, heads, dim], or [inputs, heads, 3, dim].
        sides = [shape[a] for a in outputs[:2]]
        return Place(outputs[1 - sides.index(joined)]) if joined in sides else None
    if len(outputs) == 2 and len(inputs) == 1:
        return Place(outputs[0])
    if len(inputs) == 2 and len(outputs) == 1:
        return Place(inputs[0])
    return None


def _fused_axis(role: Role, name: str, joined: int) -> Place | None:
    """Find an axis that numbers heads and their entries, by the name of the matrix."""
    if len(role.inputs) != 1 or len(role.outputs) != 1:
        return None
    if _BY_HEAD.search(name):
        return Place(role.outputs[0], fused=True, parts=joined)
    if joined > 1:
        return Place(role.outputs[0], fused=True, runs=joined)
    if _QUERY.search(name) or _OTHER.search(name):
        return Place(role.outputs[0], fused=True)
    if _OUT.search(name) or _OUT_OR_ELSE.search(name):
        return Place(role.inputs[0], fused=True)
    return None
