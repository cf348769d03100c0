"""What each leaf of params does, told by its name, its shape and those around it."""

import dataclasses
import functools
import re
from collections.abc import Sequence

from swapjax.roles.names.kernel import read_kernel
from swapjax.roles.names.place import CONTRADICTED, UNKNOWN, Place, Reading, Shape
from swapjax.roles.names.plain import read_plain
from swapjax.roles.names.stacks import Axes, find_stacks, split, without
from swapjax.roles.names.vector import read_single, read_table, read_vector
from swapjax.roles.names.weight import read_weight
from swapjax.roles.role import Axis, Role

_READERS = (read_vector, read_table, read_single, read_kernel, read_weight, read_plain)
_EXPERT_PRICE = 0.01
_HEAD = re.compile(
    r"^((lm|output|cls|classification|mlm)_?)?head(_?\d+)?$|^(to_)?logits$|^classifier$"
    r"|^score$|^readout$|^unembed(ding|der)?$|^embed_out$|^decoder$"
)


def name_roles(paths: Sequence[str], shapes: Sequence[Shape]) -> tuple[Role, ...]:
    """Tell what leaves do by the conventions of Flax, Haiku, Equinox and PyTorch.

    For want of a loss to follow them through. Names tell products, norms, biases and
    tables apart; the size of a bias, which axes are outputs. Axes that a leaf has
    beyond those of its convention, and shares with all leaves of a module, number
    layers: those of a scan, or of experts where the path says so.

    Feature groups of a convolution leave no trace in a name: they are 1.

    Args:
        paths: of all leaves of params, as `swapjax.core.trees.paths` has them.
        shapes: of the same leaves.

    Returns:
        One role a leaf, of kind ``"unknown"`` where no convention has such a name.

    Example:
        >>> name_roles(["fc/bias", "fc/kernel"], [(3, 5), (3, 4, 5)])[1].axes
        ('stack', 'input', 'output')
    """
    names = [split(path) for path in paths]
    by_module: dict[tuple[str, ...], list[int]] = {}
    by_parent: dict[tuple[str, ...], list[int]] = {}
    for i, name in enumerate(names):
        by_module.setdefault(name[:-1], []).append(i)
        by_parent.setdefault(name[:-2], []).append(i)

    @functools.cache
    def beside(module: tuple[str, ...], axes: Axes) -> dict[str, Shape]:
        cut = {names[i][-1]: without(shapes[i], axes) for i in by_module[module]}
        return {name: shape for name, shape in cut.items() if shape is not None}

    @functools.cache
    def around(parent: tuple[str, ...], axes: Axes) -> dict[tuple[str, str], Shape]:
        inside = [i for i in by_parent[parent] if len(names[i]) > 1]
        cut = {names[i][-2:]: without(shapes[i], axes) for i in inside}
        return {(m, x): shape for (m, x), shape in cut.items() if shape is not None}

    @functools.cache
    def read(i: int, axes: Axes) -> Reading:
        shape = without(shapes[i], axes)
        if shape is None:
            return Reading(CONTRADICTED, UNKNOWN)
        return _read(
            Place(
                modules=names[i][:-1],
                leaf=names[i][-1],
                shape=shape,
                is_dotted="." in paths[i],
                beside=beside(names[i][:-1], axes),
                around=around(names[i][:-2], axes),
            )
        )

    stacks = find_stacks(names, shapes, lambda i, axes: read(i, axes).cost)
    roles = [
        _within(read(i, axes).role, axes, "stack", len(shapes[i]))
        for i, axes in enumerate(stacks)
    ]
    return tuple(map(_with_head, names, roles))


def _with_head(name: tuple[str, ...], role: Role) -> Role:
    """Note a head, which its own name or that of its module tells."""
    if role.kind == "matrix" and any(map(_HEAD.search, name[-2:])):
        return dataclasses.replace(role, is_output_head=True)
    return role


def _read(place: Place) -> Reading:
    """Read a leaf, and where it may hold experts as that of one of them too."""
    found = _read_one(place)
    if not place.is_of_experts or place.rank < 3:
        return found
    cost, role = _read_one(place.of_one_expert())
    if cost + _EXPERT_PRICE >= found.cost:
        return found
    return Reading(cost + _EXPERT_PRICE, _within(role, (0,), "expert", place.rank))


def _read_one(place: Place) -> Reading:
    for reader in _READERS:
        reading = reader(place)
        if reading is not None:
            return reading
    return Reading(0.0, UNKNOWN)


def _within(role: Role, axes: Axes, word: Axis, rank: int) -> Role:
    """Put axes that tell layers apart among those of a role, for a leaf of a rank."""
    if role.kind != "matrix":
        return role
    taken = {axis % rank for axis in axes}
    free = [i for i in range(rank) if i not in taken]
    words = dict(zip(free, role.axes, strict=True))
    return dataclasses.replace(
        role,
        axes=tuple(words.get(i, word) for i in range(rank)),
        pixels=tuple(free[i] for i in role.pixels),
    )
