"""Where the prunable leaves of a tree lie: take them out, put them back, mask them."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from swapjax.core import holes, trees
from swapjax.core.types import Leaves, Masks, Params
from swapjax.roles.find import find_roles
from swapjax.roles.role import Role
from swapjax.sparsity.leaf_rules import Rule, match
from swapjax.sparsity.stacking import Stacking


@dataclasses.dataclass(frozen=True)
class Layout:
    """The prunable leaves of a tree of params, by name and place. Holds no arrays.

    Layouts are static: they have a hash, and those of the same leaves of the same tree
    are equal, so that compiled code is shared between them.

    Attributes:
        paths: the prunable leaves, in the order of params.
        shapes: their shapes.
        positions: the place of each among all leaves of params.
        treedef: the structure of params.
        roles: what each does in its network.
        is_flat: whether `split` lays the leaves end to end, as one vector that stands
            for all of them, and `merge` and `masks` cut it again.
    """

    paths: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    positions: tuple[int, ...]
    treedef: Any
    roles: tuple[Role, ...]
    is_flat: bool = False

    @classmethod
    def of(
        cls,
        params: Params,
        include: Rule | None = None,
        exclude: Rule = (),
        roles: Sequence[Role] | None = None,
    ) -> "Layout":
        """Find the prunable leaves of params.

        Args:
            params: a pytree of arrays, or of their shapes and dtypes.
            include: regular expressions searched in the paths, or a predicate of path
                and leaf. By default leaves whose role is that of a matrix.
            exclude: what is left out of those, in the same form.
            roles: of all leaves of params, by default those that names tell.

        Raises:
            ValueError: for a rule that matches nothing, and where nothing is left.
            TypeError: for a prunable leaf that does not hold floats.
        """
        paths = trees.paths(params)
        leaves, treedef = jax.tree.flatten(params)
        if roles is None:
            roles = find_roles(params)
        chosen = match(paths, leaves, roles, include, exclude)
        for i in chosen:
            if not jnp.issubdtype(leaves[i].dtype, jnp.floating):
                raise TypeError(
                    f"params: {paths[i]} holds {leaves[i].dtype}, only floats can be "
                    "pruned; exclude it"
                )
        found = cls(
            paths=tuple(paths[i] for i in chosen),
            shapes=tuple(tuple(leaves[i].shape) for i in chosen),
            positions=tuple(chosen),
            treedef=treedef,
            roles=tuple(roles[i] for i in chosen),
        )
        if not found.total:
            raise ValueError(
                f"params: nothing to prune, {', '.join(found.paths)} are empty"
            )
        return found

    def only(self, chosen: Sequence[int]) -> "Layout":
        """Lay out some of the prunable leaves alone, by their numbers among them."""
        take = lambda values: tuple(values[i] for i in chosen)  # noqa: E731
        return dataclasses.replace(
            self,
            paths=take(self.paths),
            shapes=take(self.shapes),
            positions=take(self.positions),
            roles=take(self.roles),
        )

    @functools.cached_property
    def stacking(self) -> Stacking:
        """The layers of each prunable leaf, or of the vector."""
        found = Stacking.of(self.paths, self.shapes, self.roles)
        if not self.is_flat:
            return found
        laid = found.end_to_end(self.shapes)
        assert laid is not None  # `flat` has looked
        return laid

    def flat(self) -> "Layout | None":
        """Lay the leaves end to end; None where a layer would not lie together."""
        if self.stacking.end_to_end(self.shapes) is None:
            return None
        return dataclasses.replace(self, is_flat=True)

    @property
    def plain(self) -> "Layout":
        """The same leaves as they are."""
        return dataclasses.replace(self, is_flat=False) if self.is_flat else self

    @property
    def layers(self) -> tuple[str, ...]:
        """The names of the layers: ``blocks/kernel[3]``, or the path of a leaf."""
        return self.stacking.names(self.paths, self.shapes)

    @property
    def layer_shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shape of each layer."""
        stacking = self.stacking
        return tuple(stacking.layer_shape(i, self.shapes[i]) for i in stacking.leaf_of)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The number of entries of each prunable leaf."""
        return tuple(math.prod(shape) for shape in self.shapes)

    @property
    def starts(self) -> tuple[int, ...]:
        """Where each prunable leaf begins in the vector of them."""
        return tuple(np.cumsum((0, *self.sizes[:-1])).tolist())

    @property
    def total(self) -> int:
        """The number of prunable entries."""
        return sum(self.sizes)

    def split(self, params: Params) -> Leaves:
        """Take the prunable leaves out of params, or the vector of them.

        Raises:
            ValueError: for params of another structure or other shapes.
        """
        return self.pack(self.take(params))

    def take(self, params: Params) -> Leaves:
        """Take the prunable leaves out of params as they are, in a flat layout too.

        Raises:
            ValueError: for params of another structure or other shapes.
        """
        flat = self._flatten(params, "params")
        prunable = tuple(flat[i] for i in self.positions)
        for path, leaf, shape in zip(self.paths, prunable, self.shapes, strict=True):
            if leaf.shape != shape:
                raise ValueError(
                    f"params: {path} has shape {leaf.shape}, planned for {shape}"
                )
        return prunable

    def merge(self, leaves: Leaves, params: Params) -> Params:
        """Put prunable leaves, or the vector, back among the others of params.

        Raises:
            ValueError: for params of another structure.
        """
        return self.put(self.unpack(leaves), params)

    def put(self, leaves: Leaves, params: Params) -> Params:
        """Put prunable leaves back as they are, in a flat layout too.

        Raises:
            ValueError: for params of another structure.
        """
        return self._put(leaves, self._flatten(params, "params"))

    def pack(self, leaves: Leaves, lead: int = 0) -> Leaves:
        """Lay leaves end to end if the layout is flat.

        Args:
            leaves: arrays of the shapes of the prunable ones.
            lead: how many axes all of them have before that.
        """
        if not self.is_flat:
            return leaves
        flat = [x.reshape(*x.shape[:lead], -1) for x in leaves if x.size]
        return (jnp.concatenate(flat, axis=lead),)

    def unpack(self, leaves: Leaves) -> Leaves:
        """Undo `pack` of arrays without further axes."""
        if not self.is_flat:
            return leaves
        (vector,) = leaves
        ends = np.cumsum(self.sizes)
        parts = (vector[e - n : e] for e, n in zip(ends, self.sizes, strict=True))
        return tuple(x.reshape(s) for x, s in zip(parts, self.shapes, strict=True))

    def masks(self, leaves: Leaves) -> Masks:
        """Make masks with the treedef of params; True where nothing is pruned."""
        # An array each: a loop may donate them, which no two places may share.
        everything = [jnp.array(True) for _ in range(self.treedef.num_leaves)]
        return self._put(self.unpack(leaves), everything)

    def leaf_masks(self, masks: Masks) -> Leaves:
        """Take the masks of the prunable leaves, at full shape.

        Raises:
            ValueError: for masks of another structure than that of params.
        """
        flat = self._flatten(masks, "masks")
        return tuple(
            jnp.broadcast_to(flat[i], shape)
            for i, shape in zip(self.positions, self.shapes, strict=True)
        )

    def everything(self) -> Leaves:
        """Make masks of the prunable leaves that keep all."""
        return tuple(jnp.ones(shape, bool) for shape in self.shapes)

    def onto(self, params: Params) -> "Layout":
        """Lay out another tree with leaves of the same paths.

        It may leave out, as `optax.masked` does, what is not prunable. For a tree with
        other paths this is the layout as it is, which will not split it.
        """
        numbers = self.treedef.unflatten(range(self.treedef.num_leaves))
        treedef = jax.tree.structure(params)
        if trees.paths(numbers) == trees.paths(params):
            return dataclasses.replace(self, treedef=treedef)
        # Arrays, since a scalar would stand for all below it.
        places = jax.tree.map(lambda i: np.asarray([i]), numbers)
        found = holes.match(holes.by_path(places), params)
        order = [-1 if x is holes.HOLE else int(x[0]) for x in found.leaves]
        if found.missing or found.extra or not set(self.positions) <= set(order):
            return self
        positions = tuple(order.index(i) for i in self.positions)
        return dataclasses.replace(self, treedef=treedef, positions=positions)

    def _flatten(self, tree: Any, name: str) -> list[jax.Array]:
        flat, treedef = jax.tree.flatten(tree)
        if treedef != self.treedef:
            raise ValueError(
                f"{name}: the tree is not the one this plan was made for: "
                f"got {treedef}, planned for {self.treedef}"
            )
        return flat

    def _put(self, leaves: Leaves, flat: list[jax.Array]) -> Any:
        """Rebuild the tree, with the prunable leaves in place of what was there."""
        shapes = tuple(getattr(leaf, "shape", None) for leaf in leaves)
        if shapes != self.shapes:
            raise ValueError(
                f"leaves: must be {', '.join(self.paths)} of shapes {self.shapes}, got "
                f"shapes {shapes}"
            )
        for i, leaf in zip(self.positions, leaves, strict=True):
            flat[i] = leaf
        return jax.tree.unflatten(self.treedef, flat)
