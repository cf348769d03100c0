"""Names of tensors in files of others, and the leaves of params that they become.

A map says it as data: the name in the file, with ``{i}`` where layers are counted, and
the path of the leaf. A ``{i}`` that the path has too makes a list of layers; one that
it has not stacks them in one leaf, as `jax.lax.scan` takes them.
"""

import dataclasses
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from swapjax.core.text import printable

_PLACE = re.compile(r"\{(\w*)\}")
_NUMBER = "(0|[1-9][0-9]{0,8})"
_SHOWN = 4


@dataclasses.dataclass(frozen=True)
class Leaf:
    """The leaf that a tensor of a file becomes.

    The tensor is transposed, then reshaped; on the way back the other way around.

    Attributes:
        path: of the leaf, as ``"layers/{i}/query/kernel"``, or
            ``"layers/query/kernel"`` for a leaf that stacks all layers along a first
            axis. What is a number all through becomes a list if it counts from 0.
        axes: of the tensor, in the order of the leaf; ``(1, 0)`` turns PyTorch's
            [outputs, inputs] into [inputs, outputs]. None leaves them as they are.
        shape: that the transposed tensor is reshaped to, with at most one -1;
            ``(-1, 12, 32)`` makes 12 heads of 32 out of 384 outputs.
    """

    path: str
    axes: tuple[int, ...] | None = None
    shape: tuple[int, ...] | None = None

    def ours(self, array: Any) -> Any:
        """Lay out a tensor of the file as the leaf has it, the stack apart.

        Raises:
            ValueError: for another rank or size than that of the map.
        """
        turned = array if self.axes is None else array.transpose(self.axes)
        return turned if self.shape is None else turned.reshape(self.shape)

    def theirs(self, array: Any, shape: tuple[int, ...]) -> Any:
        """Lay out a layer of the leaf as the file has it, in a shape."""
        axes = tuple(range(len(shape))) if self.axes is None else self.axes
        turned = array.reshape(tuple(shape[i] for i in axes))
        return turned.transpose(tuple(np.argsort(axes)))


Names = Mapping[str, Leaf | str | None]


@dataclasses.dataclass(frozen=True)
class Slot:
    """A leaf of params, and the tensors that it is made of.

    Attributes:
        leaf: how each is laid out.
        stack: the sizes of the axes that number them; none for one tensor.
        names: of the tensors, in the order of the stack.
    """

    leaf: Leaf
    stack: tuple[int, ...]
    names: tuple[str, ...]


def plain_names(names: Iterable[str]) -> dict[str, Leaf]:
    """Map every name to a path of its own, dots for slashes, as it is laid out."""
    return {name: Leaf(name.replace(".", "/")) for name in names}


def slots(
    source: str, names: Sequence[str], mapped: Names | None
) -> tuple[dict[str, Slot], tuple[str, ...]]:
    """Sort the tensors of a file into the leaves of params.

    Args:
        source: of the names, the start of a sentence.
        names: of the tensors.
        mapped: the map; None for `plain_names`.

    Returns:
        The leaves by path; the names that stay in the file.

    Raises:
        ValueError: for a map that is none, a line of it that matches nothing, names
            that no line or two lines match, two tensors of one leaf, layers that are
            not counted from 0 without a gap, and a leaf below another.
    """
    kept: tuple[str, ...] = ()
    if mapped is None:
        found: dict[str, dict[tuple[int, ...], str]] = {
            path.path: {(): name} for name, path in plain_names(names).items()
        }
        leaves = {path: Leaf(path) for path in found}
        if len(found) < len(names):
            raise ValueError(f"{source}: names differ in dots and slashes alone")
    else:
        found, leaves, kept = _sorted(source, names, mapped)
    result = {
        path: _slot(source, path, leaves[path], places)
        for path, places in found.items()
    }
    for path in result:
        parts = path.split("/")
        if "" in parts and len(result) > 1:
            raise ValueError(
                f"names: {printable(path) or 'the empty path'} has a part without a "
                "name; map it to another path"
            )
        for end in range(1, len(parts)):
            if "/".join(parts[:end]) in result:
                raise ValueError(
                    f"names: {printable('/'.join(parts[:end]))} is a leaf, and "
                    f"{printable(path)} would lie below it"
                )
    return result, kept


def _sorted(
    source: str, names: Sequence[str], mapped: Names
) -> tuple[dict[str, dict[tuple[int, ...], str]], dict[str, Leaf], tuple[str, ...]]:
    """Match each name with its line of the map."""
    lines = [(theirs, *_line(theirs, ours)) for theirs, ours in _items(mapped)]
    found: dict[str, dict[tuple[int, ...], str]] = {}
    leaves: dict[str, Leaf] = {}
    kept, lost, used = [], [], set()
    for name in names:
        hits = [(line, m) for line in lines if (m := line[1].fullmatch(name))]
        if not hits:
            lost.append(name)
            continue
        if len(hits) > 1:
            both = " and ".join(repr(line[0]) for line, _ in hits[:2])
            raise ValueError(f"names: {both} both match {printable(name)}")
        (theirs, _, leaf, counted), match = hits[0]
        used.add(theirs)
        if leaf is None:
            kept.append(name)
            continue
        numbers = dict(zip(counted, map(int, match.groups()), strict=True))
        path = _PLACE.sub(lambda m: str(numbers[m[1]]), leaf.path)  # noqa: B023
        inside = _PLACE.findall(leaf.path)
        place = tuple(n for key, n in numbers.items() if key not in inside)
        other = found.setdefault(path, {}).setdefault(place, name)
        if other != name or leaves.setdefault(path, leaf) is not leaf:
            other = other if other != name else next(iter(found[path].values()))
            raise ValueError(
                f"{source}: {printable(other)} and {printable(name)} are both "
                f"{printable(path)}"
            )
    if lost:
        raise ValueError(
            f"{source}: names has no line for {some(lost)}; map them, or to None to "
            "leave them in the file as they are"
        )
    idle = [repr(line[0]) for line in lines if line[0] not in used]
    if idle:
        raise ValueError(f"{source}: nothing in it is called {some(idle)}, as in names")
    return found, leaves, tuple(kept)


def _items(mapped: Names) -> Iterable[tuple[str, Leaf | None]]:
    if not isinstance(mapped, Mapping):
        raise ValueError(
            "names: must map names of the file to leaves, as {'fc.weight': "
            f"Leaf('fc/kernel', axes=(1, 0))}}, got {mapped!r}"
        )
    for theirs, ours in mapped.items():
        leaf = Leaf(ours) if isinstance(ours, str) else ours
        if not isinstance(theirs, str) or not isinstance(leaf, Leaf | None):
            raise ValueError(
                f"names: {theirs!r} must be a name and map to a Leaf, a path or None, "
                f"got {ours!r}"
            )
        yield theirs, leaf


def _line(
    theirs: str, leaf: Leaf | None
) -> tuple[re.Pattern[str], Leaf | None, tuple[str, ...]]:
    """Make a pattern of a name, and list what it counts."""
    *parts, last = _PLACE.split(theirs)
    counted = tuple(parts[1::2])
    text = "".join(f"{re.escape(plain)}{_NUMBER}" for plain in parts[::2]) + re.escape(
        last
    )
    if leaf is None:
        text = text.replace(r"\*", ".*")
    inside = _PLACE.findall("" if leaf is None else leaf.path)
    if len({*counted}) < len(counted) or not {*inside} <= {*counted}:
        raise ValueError(
            f"names: {theirs!r} must count each of {inside or list(counted)} once"
        )
    return re.compile(text), leaf, counted


def _slot(
    source: str, path: str, leaf: Leaf, places: Mapping[tuple[int, ...], str]
) -> Slot:
    stack = tuple(max(along) + 1 for along in zip(*places, strict=True))
    # What names count may be any number: one that is missing is among the first.
    within = [range(min(size, len(places) + 1)) for size in stack]
    lacking = (place for place in itertools.product(*within) if place not in places)
    missing = list(itertools.islice(lacking, _SHOWN))
    if missing:
        numbers = ", ".join(str(n[0] if len(n) == 1 else n) for n in missing)
        raise ValueError(
            f"{source}: {printable(path)} stacks {len(places)} tensors, but none of "
            f"number {numbers}"
        )
    return Slot(leaf, stack, tuple(places[place] for place in sorted(places)))


def nested(leaves: Mapping[str, Any]) -> Any:
    """Make a tree of leaves by path: dicts, and lists where 0, 1, ... are the keys.

    Args:
        leaves: by path; the empty path is the one leaf of a bare array.
    """
    if "" in leaves:
        return leaves[""]
    heads: dict[str, dict[str, Any]] = {}
    for path, leaf in leaves.items():
        head, _, rest = path.partition("/")
        heads.setdefault(head, {})[rest] = leaf
    tree = {head: nested(inside) for head, inside in heads.items()}
    if set(tree) == set(map(str, range(len(tree)))):
        return [tree[str(i)] for i in range(len(tree))]
    return tree


def some(names: Sequence[str]) -> str:
    """List names for a sentence, a few of many."""
    shown = ", ".join(map(printable, names[:_SHOWN]))
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"
