"""A network without its dead units."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from swapjax.core import trees
from swapjax.core.types import Params
from swapjax.deploy.rebuild import taken


@dataclasses.dataclass(frozen=True, eq=False)
class Shrunk:
    """A smaller network that computes the same.

    Attributes:
        params: smaller arrays in the tree of the params before.
        apply: ``(params, *inputs)``, what the function is for them: the function
            itself where it takes its sizes from the arrays, else its program with the
            sizes in it changed; for inputs of other shapes it is traced again.
        is_rebuilt: whether `apply` is made from the program.
        kept: of each leaf that is smaller, by its path, the places along each axis that
            are left, by which `cut` brings moments of an optimizer to the same sizes.
            Where layers of a stack keep places of their own, int [layers, places].
        shapes: of those leaves before.
        removed: how many units are gone, by the name of their group.
        units: how many there were.
        folded: paths of leaves, such as biases, that took over what removed units
            added to all data alike.
        stayed: why places that are zero were not removed, by leaf and axis.
        error: the largest difference of outputs for the inputs given, relative to the
            largest output.
    """

    params: Params
    apply: Callable[..., Any]
    is_rebuilt: bool
    kept: Mapping[str, tuple[np.ndarray, ...]]
    shapes: Mapping[str, tuple[int, ...]]
    removed: Mapping[str, int]
    units: Mapping[str, int]
    folded: tuple[str, ...]
    stayed: Mapping[str, str]
    error: float

    def cut(self, tree: Params) -> Params:
        """Take what is left out of a tree like the params before, as of moments.

        Args:
            tree: of the same treedef and shapes.

        Raises:
            ValueError: naming a leaf of another shape.
        """
        leaves, treedef = jax.tree.flatten(tree)
        pairs = list(zip(trees.paths(tree), leaves, strict=True))
        for path, leaf in pairs:
            kept = self.kept.get(path)
            if kept is not None and np.shape(leaf) != self.shapes[path]:
                raise ValueError(
                    f"tree: {path} must have the shape {self.shapes[path]} that params "
                    f"had, got {np.shape(leaf)}"
                )
        cuts = [
            jnp.asarray(taken(np.asarray(leaf), self.kept[path]))
            if path in self.kept
            else leaf
            for path, leaf in pairs
        ]
        return jax.tree.unflatten(treedef, cuts)

    def __str__(self) -> str:
        lines = [
            f"{name}: {self.units[name] - count} of {self.units[name]} units left"
            for name, count in self.removed.items()
        ] or ["nothing to remove"]
        if self.stayed:
            first = ", ".join(list(self.stayed)[:3])
            more = f" and {len(self.stayed) - 3} more" if len(self.stayed) > 3 else ""
            lines.append(f"zeros that stay, see stayed: {first}{more}")
        return "\n".join(lines)
