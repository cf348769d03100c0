"""Units: entries of some leaves that live or die as one, each a number in a grid.

Leaves that share their units, as the matrices of an attention share its heads, are a
module, with one grid. What chooses among entries chooses among the numbers of grids,
and knows no difference.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from fractions import Fraction

import jax
import jax.numpy as jnp

from swapjax.core import trees
from swapjax.core.types import Leaves
from swapjax.sparsity.cuts import Cut
from swapjax.sparsity.layout import Layout
from swapjax.sparsity.stacking import Stacking
from swapjax.sparsity.unit_patterns import Channel, UnitPattern

Shape = tuple[int, ...]
_Join = Callable[[jax.Array, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Units:
    """The units of some leaves. Static: it has a hash, and holds no arrays.

    A grid has a number for each unit: first the axes of the stack of its leaves, then
    those that number units in a layer.

    Attributes:
        pattern: what a unit is.
        shapes: of the leaves.
        cuts: how each falls into units.
        modules: the module of each leaf, numbered in the order of first leaves.
        grids: the shape of the grid of each module.
        leaves: the layers of the leaves.
        stacking: the layers of the modules, in the order of the first layer in each.
        reads: what counts for the mean of a unit besides: a leaf, the module of the
            units that it reads, and how it falls into them.
    """

    pattern: UnitPattern
    shapes: tuple[Shape, ...]
    cuts: tuple[Cut, ...]
    modules: tuple[int, ...]
    grids: tuple[Shape, ...]
    leaves: Stacking
    stacking: Stacking
    reads: tuple[tuple[int, int, Cut], ...] = ()

    @classmethod
    def of(cls, pattern: UnitPattern, layout: Layout) -> "Units":
        """Cut the leaves of a layout into units.

        Raises:
            ValueError: for a leaf that cannot be cut, naming it.
        """
        cuts = []
        for path, shape, cut in zip(
            layout.paths, layout.shapes, pattern.cuts(layout), strict=True
        ):
            if 0 in shape:
                cut = "is empty"
            if isinstance(cut, str):
                raise ValueError(
                    f"pattern {pattern}: {path} of shape {shape} {cut}; exclude it"
                )
            cuts.append(cut)
        # Units may be what would be layers otherwise: experts.
        roles = [
            dataclasses.replace(
                role,
                axes=tuple(
                    "output" if i in cut.axes and word == "expert" else word
                    for i, word in enumerate(role.axes)
                ),
            )
            for role, cut in zip(layout.roles, cuts, strict=True)
        ]
        leaves = Stacking.of(layout.paths, layout.shapes, roles)
        keys: dict[tuple, int] = {}
        modules, grids = [], []
        for i, (path, shape, cut) in enumerate(
            zip(layout.paths, layout.shapes, cuts, strict=True)
        ):
            stack = tuple(shape[a] for a in leaves.axes[i])
            grid = (*stack, *(shape[a] // cut.tile[a] for a in cut.axes))
            if cut.place is not None:
                grid += cut.place[1:]
            key = (pattern.module(path), stack, grid)
            if key not in keys:
                keys[key] = len(keys)
                grids.append(grid)
            modules.append(keys[key])
        _require_even(pattern, layout.paths, cuts, modules)
        stacking = _stack_modules(leaves, modules)
        reads = []
        for i, name, cut in (
            pattern.reads(layout) if isinstance(pattern, Channel) else ()
        ):
            stack = tuple(layout.shapes[i][a] for a in leaves.axes[i])
            sides = (layout.shapes[i][a] // cut.tile[a] for a in cut.axes)
            module = keys.get((name, stack, (*stack, *sides)))
            if module is not None:
                reads.append((i, module, cut))
        return cls(
            pattern, layout.shapes, tuple(cuts), tuple(modules), tuple(grids), leaves,
            stacking, tuple(reads),
        )  # fmt: skip

    @property
    def counts(self) -> tuple[int, ...]:
        """The units of each layer."""
        each = map(self.stacking.layer_size, range(len(self.grids)), self.grids)
        return self.stacking.by_layer(tuple(each))

    @property
    def sizes(self) -> tuple[int, ...]:
        """The entries of a unit of each layer, those of all its leaves together."""
        return self.stacking.by_layer(self._sizes)

    @property
    def layer_of(self) -> tuple[int, ...]:
        """The layer of a module that each layer of a leaf belongs to."""
        found = [0] * self.leaves.count
        for numbers, module in zip(self.leaves.numbers, self.modules, strict=True):
            for n, own in zip(numbers, self.stacking.numbers[module], strict=True):
                found[n] = own
        return tuple(found)

    @property
    def parts(self) -> tuple[Fraction, ...]:
        """What of the entries that are kept lies in each leaf; 0 where any may."""
        pairs = zip(self.cuts, self.modules, strict=True)
        return tuple(
            Fraction(math.prod(cut.tile) * (cut.place is None), self._sizes[module])
            for cut, module in pairs
        )

    @property
    def _sizes(self) -> tuple[int, ...]:
        """The entries of a unit of each module."""
        found = [0] * len(self.grids)
        for module, cut in zip(self.modules, self.cuts, strict=True):
            if cut.place is None or cut.place[0] == 0:
                found[module] += math.prod(cut.tile)
        return tuple(found)

    def means(self, leaves: Leaves) -> Leaves:
        """Average the entries of each unit, in float32 or wider.

        Args:
            leaves: floats.

        Returns:
            One grid a module.
        """
        wide = trees.wide(leaves)
        leaves = tuple(x.astype(wide) for x in leaves)
        totals, sizes = list(self._reduce(leaves, _add)), list(self._sizes)
        for leaf, module, cut in self.reads:
            totals[module] += self._collect(leaf, leaves[leaf], _add, cut)
            sizes[module] += math.prod(cut.tile)
        return tuple(t / size for t, size in zip(totals, sizes, strict=True))

    def touched(self, masks: Leaves) -> Leaves:
        """Mark the units that masks have something of, in one grid a module."""
        return self._reduce(masks, jnp.logical_or)

    def expand(self, grids: Leaves, within: Leaves | None = None) -> Leaves:
        """Give each entry of the leaves what its unit has.

        Args:
            grids: one a module.
            within: bool leaves; where they are False the result is, too. None for all.
        """
        leaves = tuple(
            self._expand(i, grids[module]) for i, module in enumerate(self.modules)
        )
        if within is None:
            return leaves
        return tuple(x & w for x, w in zip(leaves, within, strict=True))

    def count(self, masks: Leaves) -> list[jax.Array]:
        """Count the True entries of each layer, one int32 array a module."""
        found: dict[int, jax.Array] = {}
        for i, (module, mask) in enumerate(zip(self.modules, masks, strict=True)):
            inner = self.leaves.inner(i, mask.ndim)
            own = jnp.sum(mask, axis=inner, dtype=jnp.int32)
            found[module] = found[module] + own if module in found else own
        return [found[module] for module in range(len(self.grids))]

    def _reduce(self, leaves: Sequence[jax.Array], join: _Join) -> Leaves:
        found: list[dict[int | None, jax.Array]] = [{} for _ in self.grids]
        for i, (module, x) in enumerate(zip(self.modules, leaves, strict=True)):
            own, parts = self._collect(i, x, join, self.cuts[i]), found[module]
            at = place[0] if (place := self.cuts[i].place) else None
            parts[at] = join(parts[at], own) if at in parts else own
        return tuple(
            parts[None]
            if None in parts
            else jnp.stack([parts[at] for at in range(len(parts))], axis=-1)
            for parts in found
        )

    def _collect(self, leaf: int, x: jax.Array, join: _Join, cut: Cut) -> jax.Array:
        """Join the entries of a leaf that lie in each unit."""
        split, gone, left = self._plan(leaf, cut)
        x = x.reshape(split)
        for axis in reversed(gone):
            x = _fold(x, axis, join)
        axes = self._order(leaf, cut)
        order = [left.index(a) for a in axes if a in left]
        sides = [self.shapes[leaf][a] // cut.tile[a] for a in axes]
        return x.transpose(order).reshape(sides)

    def _expand(self, leaf: int, grid: jax.Array) -> jax.Array:
        place = self.cuts[leaf].place
        if place is not None:
            grid = grid[..., place[0]]
        split, gone, left = self._plan(leaf, self.cuts[leaf])
        order = [a for a in self._order(leaf, self.cuts[leaf]) if a in left]
        sides = dict(zip(self._order(leaf, self.cuts[leaf]), grid.shape, strict=True))
        x = grid.reshape([sides[a] for a in order])
        x = x.transpose([order.index(a) for a in left])
        x = jnp.expand_dims(x, gone)
        return jnp.broadcast_to(x, split).reshape(self.shapes[leaf])

    def _plan(self, leaf: int, cut: Cut) -> tuple[Shape, tuple[int, ...], list[int]]:
        """Lay a leaf out so that whole axes lie within units, or number them.

        Returns:
            The sides; which of the axes lie within units; the axes of the leaf that the
            others come from.
        """
        split: list[int] = []
        gone: list[int] = []
        left: list[int] = []
        runs = dict(cut.runs)
        for axis, (side, tile) in enumerate(
            zip(self.shapes[leaf], cut.tile, strict=True)
        ):
            if side == tile:
                gone.append(len(split))
                split.append(side)
                continue
            if axis in runs:
                gone.append(len(split))
                split.append(runs[axis])
            left.append(axis)
            split.append(side // tile)
            if tile > runs.get(axis, 1):
                gone.append(len(split))
                split.append(tile // runs.get(axis, 1))
        return tuple(split), tuple(gone), left

    def _order(self, leaf: int, cut: Cut) -> tuple[int, ...]:
        """List the axes of a leaf that those of its grid come from."""
        return (*self.leaves.axes[leaf], *cut.axes)


def _add(a: jax.Array, b: jax.Array) -> jax.Array:
    return a + b


def _fold(x: jax.Array, axis: int, join: _Join) -> jax.Array:
    """Join all entries along an axis, half with half.

    A sum of the compiler's rounds otherwise in a stack of layers than in one of them.
    """
    size = x.shape[axis]
    while size > 1:
        half = size // 2
        cut = [
            jax.lax.slice_in_dim(x, start, start + n, axis=axis)
            for start, n in ((0, half), (half, half), (2 * half, size % 2))
        ]
        x = join(cut[0], cut[1])
        if size % 2:
            x = jnp.concatenate([x, cut[2]], axis=axis)
        size = x.shape[axis]
    return jnp.squeeze(x, axis)


def _require_even(
    pattern: UnitPattern,
    paths: Sequence[str],
    cuts: Sequence[Cut],
    modules: Sequence[int],
) -> None:
    """Raise for units that are leaves of their own, and not of one size.

    Raises:
        ValueError: naming one.
    """
    sizes: dict[int, dict[int, int]] = {}
    for cut, module in zip(cuts, modules, strict=True):
        if cut.place is not None:
            own, (at, _) = sizes.setdefault(module, {}), cut.place
            own[at] = own.get(at, 0) + math.prod(cut.tile)
    for path, cut, module in zip(paths, cuts, modules, strict=True):
        if cut.place is not None:
            own, (_, count) = sizes[module], cut.place
            if len(own) < count or len(set(own.values())) > 1:
                raise ValueError(
                    f"pattern {pattern}: the unit that {path} is in and those beside "
                    "it are not of the same shapes; exclude them"
                )


def _stack_modules(leaves: Stacking, modules: Sequence[int]) -> Stacking:
    """Give the layers of modules numbers, by the first layer of a leaf in each."""
    first: dict[tuple[int, int], int] = {}
    axes: dict[int, int] = {}
    for numbers, module, stack in zip(
        leaves.numbers, modules, leaves.axes, strict=True
    ):
        axes[module] = len(stack)
        for place, n in enumerate(numbers):
            key = (module, place)
            first[key] = min(n, first.get(key, n))
    number = {key: i for i, key in enumerate(sorted(first, key=lambda k: first[k]))}
    found: list[list[int]] = [[] for _ in axes]
    for key in sorted(first):
        found[key[0]].append(number[key])
    return Stacking(
        tuple(tuple(range(axes[module])) for module in range(len(axes))),
        tuple(map(tuple, found)),
    )
