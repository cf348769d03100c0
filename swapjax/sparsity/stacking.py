"""Which parts of a leaf are layers of their own: slices of a stack, experts.

A stack of layers stays one array, as the program of the network has it. Whatever goes
by layer, as counts do, is worked out for all slices of a leaf at once.
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType

from swapjax.core.sharding import on_all_devices
from swapjax.core.types import Leaves
from swapjax.roles.role import Role
from swapjax.sparsity.cutting import cut

Shape = tuple[int, ...]

# Leaves that are laid end to end: fewer compile as fast by themselves.
_MANY = 8
# Entries of them: larger vectors are mapped anew at every call, by the page.
_MOST = 2**22


@dataclasses.dataclass(frozen=True)
class Stacking:
    """The layers of some leaves. Static: it has a hash, and holds no arrays.

    Layers are numbered as a network would have them whose layers are leaves of their
    own: of leaves that follow each other and are stacked alike, first all layers number
    0, then all number 1. Modules ``block2`` and ``block10`` are taken in this order.

    Attributes:
        axes: of each leaf, those that tell its layers apart, in order.
        numbers: of each leaf, the numbers of its layers, in the order of those axes.
        runs: the entries of each layer of a single leaf [p] in which layers of any
            sizes follow each other, in the order of its numbers; empty otherwise.
    """

    axes: tuple[tuple[int, ...], ...]
    numbers: tuple[tuple[int, ...], ...]
    runs: tuple[int, ...] = ()

    @classmethod
    def none(cls, leaves: int) -> "Stacking":
        """Take each of some leaves for a layer."""
        return cls(((),) * leaves, tuple((i,) for i in range(leaves)))

    @classmethod
    def of(
        cls, paths: Sequence[str], shapes: Sequence[Shape], roles: Sequence[Role]
    ) -> "Stacking":
        """Find the layers of leaves, and give them numbers.

        Args:
            paths: the leaves.
            shapes: theirs.
            roles: theirs.
        """
        # An empty stack has no layers to count: it is an empty leaf.
        axes = tuple(
            role.stack if all(shape[a] for a in role.stack) else ()
            for role, shape in zip(roles, shapes, strict=True)
        )
        sides = [
            tuple(shape[a] for a in of) for shape, of in zip(shapes, axes, strict=True)
        ]
        leaves = [
            (leaf, tuple(re.split("[/.]", path)), side)
            for leaf, (path, side) in enumerate(zip(paths, sides, strict=True))
        ]
        number = {place: n for n, place in enumerate(_in_order(leaves, ()))}
        numbers = tuple(
            tuple(number[leaf, place] for place in itertools.product(*map(range, side)))
            for leaf, side in enumerate(sides)
        )
        return cls(axes, numbers)

    def end_to_end(self, shapes: Sequence[Shape]) -> "Stacking | None":
        """Find the layers of the same leaves laid end to end as one vector.

        Args:
            shapes: of the leaves.

        Returns:
            None where the entries of a layer would not lie together.
        """
        if any(axes != tuple(range(len(axes))) for axes in self.axes):
            return None
        numbers = tuple(itertools.chain(*self.numbers))
        sizes = tuple(map(self.layer_size, range(len(shapes)), shapes))
        of = self.leaf_of
        return Stacking(((),), (numbers,), tuple(sizes[of[n]] for n in numbers))

    def laid(self, leaves: Leaves) -> "Stacking | None":
        """Find the layers of leaves laid end to end, None where that does not pay.

        Few leaves compile as fast by themselves, and large vectors take long to copy.
        Under jit nobody knows how devices share a leaf, so there must be one device
        only.

        Args:
            leaves: arrays, which must be of one dtype.
        """
        if (
            len(leaves) < _MANY
            or jax.device_count() > 1
            or sum(leaf.size for leaf in leaves) > _MOST
            or len({leaf.dtype for leaf in leaves}) > 1
            or any(_is_explicit(leaf) for leaf in leaves)
        ):
            return None
        return self.end_to_end([leaf.shape for leaf in leaves])

    @property
    def count(self) -> int:
        """The number of layers."""
        return sum(map(len, self.numbers))

    @property
    def leaf_of(self) -> tuple[int, ...]:
        """The leaf that each layer lies in."""
        found = [0] * self.count
        for leaf, numbers in enumerate(self.numbers):
            for n in numbers:
                found[n] = leaf
        return tuple(found)

    def names(self, paths: Sequence[str], shapes: Sequence[Shape]) -> tuple[str, ...]:
        """Name the layers: ``blocks/kernel[3]``, and by its path a leaf that is one."""
        found = [""] * self.count
        for leaf, (path, shape) in enumerate(zip(paths, shapes, strict=True)):
            sides = [range(shape[a]) for a in self.axes[leaf]]
            places = itertools.product(*sides)
            for n, place in zip(self.numbers[leaf], places, strict=True):
                found[n] = f"{path}[{','.join(map(str, place))}]" if place else path
        return tuple(found)

    def by_layer(self, of_leaves: Sequence[Any]) -> tuple[Any, ...]:
        """Give each layer what its leaf has."""
        return tuple(of_leaves[leaf] for leaf in self.leaf_of)

    def layer_shape(self, leaf: int, shape: Shape) -> Shape:
        """Tell the shape of one layer of a leaf."""
        return tuple(s for i, s in enumerate(shape) if i not in self.axes[leaf])

    def layer_size(self, leaf: int, shape: Shape) -> int:
        """Count the entries of one layer of a leaf."""
        return math.prod(self.layer_shape(leaf, shape))

    def spread(self, leaf: int, values: Any, shape: Shape) -> Any:
        """Lay what each layer of all has along a leaf, so that it broadcasts.

        Args:
            leaf: its number.
            values: [layers], an array of JAX or NumPy.
            shape: of the leaf.
        """
        numbers = self.numbers[leaf]
        if self.runs:
            own = values[np.asarray(numbers, np.int32)]
            return jnp.repeat(own, np.asarray(self.runs), total_repeat_length=shape[0])
        if not self.axes[leaf]:
            return values[numbers[0]]
        sides = [s if i in self.axes[leaf] else 1 for i, s in enumerate(shape)]
        return values[np.asarray(numbers, np.int32)].reshape(sides)

    def inner(self, leaf: int, ndim: int) -> tuple[int, ...]:
        """List the axes of a leaf that lie within a layer."""
        return tuple(i for i in range(ndim) if i not in self.axes[leaf])

    def gather(self, of_leaves: Sequence[jax.Array]) -> jax.Array:
        """Join what each leaf has of its layers, in the order of its axes, to [layers].

        Args:
            of_leaves: one array a leaf, as many entries as it has layers.
        """
        flat = jnp.concatenate([on_all_devices(x).reshape(-1) for x in of_leaves])
        order = np.asarray(list(itertools.chain(*self.numbers)), np.int32)
        if np.array_equal(order, np.arange(len(order))):
            return flat
        return flat[np.argsort(order)]

    def draw(
        self,
        leaf: int,
        shape: Shape,
        draw: Callable[[Any, Shape], jax.Array],
    ) -> jax.Array:
        """Draw for each layer of a leaf what it would be given as a leaf of its own.

        Args:
            leaf: its number.
            shape: of the leaf.
            draw: ``(number of the layer, shape of the layer) -> array``.
        """
        one, numbers = self.layer_shape(leaf, shape), self.numbers[leaf]
        if not self.axes[leaf]:
            return draw(numbers[0], one)
        # One after the other: not all generators draw the same under vmap.
        each = jax.lax.map(lambda n: draw(n, one), np.asarray(numbers, np.int32))
        return self.whole(leaf, each, shape)

    def draw_all(
        self, shapes: Sequence[Shape], draw: Callable[[Any, Shape], jax.Array]
    ) -> tuple[jax.Array, ...]:
        """Draw for every leaf as `draw` does, with one loop for all of one kind.

        Args:
            shapes: of the leaves.
            draw: ``(number of the layer, shape of the layer) -> array``.
        """
        if jax.device_count() > 1:  # each leaf may lie elsewhere
            return tuple(self.draw(i, shape, draw) for i, shape in enumerate(shapes))
        found: dict[int, jax.Array] = {}
        layers = tuple(self.layer_shape(i, shape) for i, shape in enumerate(shapes))
        for one in dict.fromkeys(layers):
            own = [i for i, layer in enumerate(layers) if layer == one]
            if len(own) == 1:
                found[own[0]] = self.draw(own[0], shapes[own[0]], draw)
                continue
            numbers = np.asarray([n for i in own for n in self.numbers[i]], np.int32)
            each = jax.lax.map(lambda n, one=one: draw(n, one), numbers)
            counts = [len(self.numbers[i]) for i in own]
            # False, but the compiler does not know it.
            bits = jax.lax.population_count(each.reshape(-1)[:1].astype(jnp.int32))
            never = bits[0] > 64
            parts = cut(each.reshape(-1), [(n, *one) for n in counts], never)
            for i, part in zip(own, parts, strict=True):
                found[i] = self.whole(i, part, shapes[i])
        return tuple(found[i] for i in range(len(shapes)))

    def slices(self, leaf: int, x: jax.Array) -> jax.Array:
        """Lay the layers of a leaf out along a first axis, [layers, ...]."""
        axes = self.axes[leaf]
        moved = jnp.moveaxis(x, axes, range(len(axes)))
        return moved.reshape(len(self.numbers[leaf]), *moved.shape[len(axes) :])

    def whole(self, leaf: int, slices: jax.Array, shape: Shape) -> jax.Array:
        """Undo `slices`."""
        axes = self.axes[leaf]
        sides = [shape[a] for a in axes]
        return jnp.moveaxis(
            slices.reshape(*sides, *slices.shape[1:]), range(len(axes)), axes
        )


def _is_explicit(x: jax.Array) -> bool:
    return AxisType.Explicit in jax.typeof(x).sharding.mesh.axis_types


# A leaf's number, what is left of its path, and of the sides of its stack.
_Left = tuple[int, tuple[str, ...], Shape]


def _in_order(leaves: Sequence[_Left], place: Shape) -> Iterator[tuple[int, Shape]]:
    """List the layers of some leaves below one module, each by its leaf and its place.

    The largest module with nothing but leaves that are stacked alike is taken for what
    the loop goes over. Leaves that are no modules of their own belong together where
    they follow each other and are stacked alike.
    """
    if len(leaves) == 1 and not leaves[0][2]:
        yield leaves[0][0], place
        return
    first = {side[:1] for _, _, side in leaves}
    if len(first) == 1 and () not in first:
        inside = [(leaf, path, side[1:]) for leaf, path, side in leaves]
        for i in range(leaves[0][2][0]):
            yield from _in_order(inside, (*place, i))
        return
    for _, group in itertools.groupby(_counted(leaves), _sibling):
        yield from _in_order([(n, path[1:], side) for n, path, side in group], place)


def _counted(leaves: Sequence[_Left]) -> Iterator[_Left]:
    """Put modules that numbers alone tell apart in the order of these: 2 before 10."""

    def words(leaf: _Left) -> str:
        return re.sub(r"\d+", "0", leaf[1][0]) if leaf[1] else ""

    def count(leaf: _Left) -> tuple[int, ...]:
        return tuple(map(int, re.findall(r"\d+", leaf[1][0]))) if leaf[1] else ()

    for _, alike in itertools.groupby(leaves, words):
        yield from sorted(alike, key=count)


def _sibling(leaf: _Left) -> tuple[Any, ...]:
    """Tell the modules below one apart, and the leaves that are in none."""
    number, path, side = leaf
    if len(path) > 1:
        return ("module", path[0])
    return ("stack", side[0]) if side else ("leaf", number)
