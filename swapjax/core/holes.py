"""Trees with holes: what `optax.masked`, `optax.partition` and Equinox leave out.

An optimizer of a part of a network sees an `optax.MaskedNode` in place of what belongs
to the others, a leaf or all that is below a node; a filtered Equinox module has None
there. Trees are matched by the paths of their leaves, since the nodes of two libraries
differ where the network is the same.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from swapjax.core import trees


class _Hole:
    """Stands in a tree where a leaf, or a node with leaves, is left out."""


HOLE = _Hole()


class Matched(NamedTuple):
    """Leaves by the paths of another tree.

    Attributes:
        leaves: one for each leaf of the other tree, `HOLE` for one that is left out.
        missing: paths of the other tree for which there is nothing.
        beyond: leaves by path, where the other tree has a hole.
        extra: paths that the other tree does not have.
    """

    leaves: list[Any]
    missing: list[str]
    beyond: dict[str, Any]
    extra: list[str]


def is_masked(x: Any) -> bool:
    """Tell whether something is what `optax.masked` puts for what it leaves out."""
    return isinstance(x, optax.MaskedNode)


def is_hole(x: Any) -> bool:
    """Tell whether something stands for what is left out of a tree."""
    return x is None or x is HOLE or is_masked(x)


def fill(tree: Any, value: Any) -> Any:
    """Put a value in the place of what `optax.masked` and its like left out.

    What is None stays so: params have None there, too.
    """
    there = lambda x: x is HOLE or is_masked(x)  # noqa: E731
    return jax.tree.map(lambda x: value if there(x) else x, tree, is_leaf=there)


def merge(first: Any, second: Any) -> Any:
    """Lay two trees over each other, each with holes or scalars where the other is not.

    Raises:
        ValueError: for trees of different nodes.
    """
    if is_hole(first):
        return second
    if is_hole(second):
        return first
    here, below = _children(first)
    other, the_same = _children(second)
    if below != the_same:
        raise ValueError(
            "state: has states of swapjax.sparse for different params; hand over one "
            f"of them: {jax.tree.structure(first)}, {jax.tree.structure(second)}"
        )
    if jax.tree_util.treedef_is_leaf(below):
        return first if np.ndim(first) else second
    return below.unflatten(list(map(merge, here, other)))


def _children(tree: Any) -> tuple[list[Any], Any]:
    """Take the topmost node of a tree apart."""
    return jax.tree.flatten(tree, is_leaf=lambda x: x is not tree)


def by_path(tree: Any) -> dict[str, Any]:
    """List leaves and holes by path.

    Raises:
        ValueError: for two leaves of one path.
    """
    marked = jax.tree.map(lambda x: HOLE if is_hole(x) else x, tree, is_leaf=is_hole)
    return trees.by_path(marked)


def match(found: Mapping[str, Any], like: Any) -> Matched:
    """Find the leaf that belongs to each leaf of a tree.

    Args:
        found: leaves and holes by path. A hole stands for all that is below its path,
            and so does a scalar.
        like: the tree to fill, which may have holes itself.
    """
    wanted = by_path(like)
    leaves, missing, used = [], [], set()
    for name, leaf in wanted.items():
        at = name if name in found else _above(name, found)
        if at is None:
            if leaf is not HOLE:
                missing.append(name)
            continue
        used.add(at)
        if leaf is not HOLE:
            leaves.append(found[at])
    rest = {name: leaf for name, leaf in found.items() if name not in used}
    holes = {name: leaf for name, leaf in wanted.items() if leaf is HOLE}
    beyond = {
        name: leaf
        for name, leaf in found.items()
        if leaf is not HOLE and (name in holes or _above(name, holes) is not None)
    }
    extra = [name for name, x in rest.items() if name not in beyond and x is not HOLE]
    return Matched(leaves, missing, beyond, extra)


def describe(missing: Sequence[str], extra: Sequence[str]) -> str:
    """Tell which leaves are missing, and which are too many."""
    parts = (("missing", missing), ("not of these params", extra))
    return "; ".join(f"{what} {_some(names)}" for what, names in parts if names)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return ", ".join(name or "an array" for name in names[:6]) + more


def _above(name: str, found: Mapping[str, Any]) -> str | None:
    """Find the hole or scalar that stands for all below it, if a leaf lies there."""
    parts = name.split("/")
    # The root has the empty path.
    for end in range(len(parts) - 1, -1, -1):
        above = "/".join(parts[:end])
        if above in found and (found[above] is HOLE or np.ndim(found[above]) == 0):
            return above
    return None
