"""Which axes of params number layers: the fewest stacks that explain all shapes."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

from swapjax.roles.names.place import Shape

Axes = tuple[int, ...]  # the positions of stacks, of nested ones the outermost first

_PRICE = 0.55
_ELSEWHERE = 0.05  # As much dearer is another axis than the first.
_LEADING = ((), (0,), (0, 1), (0, 1, 2))
# A scan may stack along another axis than the first; no two nested ones do.
_FURTHER: dict[Axes, tuple[Axes, ...]] = {
    (): ((0,), (1,), (-1,), (0, 1), (0, 1, 2)),
    (0,): ((0, 1), (0, 1, 2)),
    (0, 1): ((0, 1, 2),),
}


@dataclasses.dataclass
class _Module:
    """A module: its own leaves by number, and the modules inside of it."""

    leaves: list[int] = dataclasses.field(default_factory=list)
    inside: "dict[str, _Module]" = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def below(self) -> list[int]:
        """The leaves of the module and of all inside."""
        return self.leaves + [i for m in self.inside.values() for i in m.below]


def split(path: str) -> tuple[str, ...]:
    """Cut a path into the names on it; those of Haiku's own making are left out."""
    names = path.replace(".", "/").split("/")
    return tuple(name for name in names if name != "~") or ("",)


def without(shape: Shape, axes: Axes) -> Shape | None:
    """Take axes away from a shape; None where it has too few."""
    gone = {axis % len(shape) for axis in axes if -len(shape) <= axis < len(shape)}
    if len(gone) < len(axes):
        return None
    return tuple(size for i, size in enumerate(shape) if i not in gone)


def find_stacks(
    names: Sequence[tuple[str, ...]],
    shapes: Sequence[Shape],
    cost: Callable[[int, Axes], float],
) -> list[Axes]:
    """Find the axes of each leaf that number layers.

    A module is stacked as a whole: along one axis, with one size for all leaves inside.
    Every stack has a price, every leaf a cost by how badly what is left suits its name;
    the cheapest explanation is taken, of equal ones that with stacks further outside.

    Args:
        names: on the path of each leaf.
        shapes: of each leaf.
        cost: of a leaf, by its number, with such axes of stacks.

    Returns:
        For each leaf the positions of its axes of stacks.
    """
    root = _Module()
    for i, path in enumerate(names):
        module = root
        for name in path[:-1]:
            module = module.inside.setdefault(name, _Module())
        module.leaves.append(i)
    best: dict[tuple[int, Axes], tuple[float, Axes]] = {}

    def price(module: _Module, outer: Axes, axes: Axes) -> float:
        own = _PRICE * (len(axes) - len(outer))
        if axes not in (*_LEADING, outer):
            own += _ELSEWHERE
        own += sum(cost(i, axes) for i in module.leaves)
        return own + sum(explain(m, axes) for m in module.inside.values())

    def explain(module: _Module, outer: Axes) -> float:
        key = (id(module), outer)
        if key not in best:
            choices = [(price(module, outer, outer), outer)]
            if choices[0][0] > 0:  # Else no stack is cheaper.
                further = _FURTHER.get(outer, ())
                may = [axes for axes in further if _may_have(module, axes, shapes)]
                choices = [(price(module, outer, axes), axes) for axes in may] + choices
            lowest = min(choices)[0]
            best[key] = next(c for c in choices if c[0] <= lowest + 1e-9)
        return best[key][0]

    result: list[Axes] = [()] * len(names)

    def settle(module: _Module, outer: Axes) -> None:
        axes = best[id(module), outer][1]
        for i in module.leaves:
            result[i] = axes
        for inner in module.inside.values():
            settle(inner, axes)

    explain(root, ())
    settle(root, ())
    return result


def _may_have(module: _Module, axes: Axes, shapes: Sequence[Shape]) -> bool:
    """Whether all leaves of a module have these axes, of one size each.

    Along another axis than the first only beside a leaf with one axis more, as norms
    and biases are: matrices of like sizes alone share axes by chance.
    """
    if any(without(shapes[i], axes) is None for i in module.below):
        return False
    sizes = {tuple(shapes[i][axis] for axis in axes) for i in module.below}
    has_vector = any(len(shapes[i]) == 2 for i in module.below)
    return len(sizes) == 1 and (has_vector or axes in _LEADING)
