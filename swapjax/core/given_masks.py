"""Masks that somebody hands over: matched with params, and checked."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from swapjax.core import holes, trees
from swapjax.core.types import Masks, Params


def take_masks(masks: Masks, params: Params, name: str = "masks") -> Masks:
    """Give masks the tree of params, and check that they belong to them.

    Args:
        masks: a bool array for each leaf, or a scalar. A scalar, `optax.MaskedNode` or
            None may stand for all leaves below a node; what is left out by the latter
            two is never pruned. What belongs to leaves that params leave out in the
            same ways must be True. Nodes may be others than those of params, as those
            of an `nnx.State` are, with leaves of the same paths.
        params: arrays, or their shapes and dtypes.
        name: of the argument, for what is said of faults.

    Returns:
        Masks with the treedef of params; the scalar True for what was left out.

    Raises:
        ValueError: for leaves that are missing, too many, not bool, or of other shapes
            than params, and for entries that are False where params have no leaf.
    """
    _require_some(masks, name)
    wanted: object = jax.tree.structure(params)
    if wanted == jax.tree.structure(masks) or trees.paths(masks) == trees.paths(params):
        leaves = jax.tree.leaves(masks)
    else:
        found = holes.match(holes.by_path(masks), params)
        if found.missing or found.extra:
            raise ValueError(
                f"{name}: must have the tree of params; "
                f"{holes.describe(found.missing, found.extra)}"
            )
        require_true(found.beyond, name)
        leaves = [True if x is holes.HOLE else x for x in found.leaves]
    require_mask_leaves(leaves, params, name)
    treedef = jax.tree.structure(params)
    return jax.tree.unflatten(treedef, [_as_array(leaf) for leaf in leaves])


def require_mask_leaves(leaves: Iterable[Any], params: Params, name: str) -> None:
    """Raise unless each is a mask of the leaf of params in its place.

    Raises:
        ValueError: for a leaf that is not bool, or one that has neither the shape of
            its params nor none.
    """
    trio = zip(trees.paths(params), jax.tree.leaves(params), leaves, strict=True)
    for path, leaf, mask in trio:
        shape, wanted = np.shape(mask), tuple(getattr(leaf, "shape", ()))
        dtype = _dtype(mask)
        if dtype != np.dtype(bool) or shape not in ((), wanted):
            hint = "" if dtype == np.dtype(bool) else "; masks != 0 are bool"
            raise ValueError(
                f"{name}: {path or 'it'} must be bool of shape {wanted} or (), got "
                f"{dtype} of shape {shape}{hint}"
            )


def require_bool(masks: Masks, name: str = "masks") -> list[Any]:
    """List the leaves of masks, and check what can be without params.

    Raises:
        ValueError: for a leaf that is not bool.
    """
    _require_some(masks, name)
    leaves = jax.tree.leaves(masks)
    for path, leaf in zip(trees.paths(masks), leaves, strict=True):
        if _dtype(leaf) != np.dtype(bool):
            raise ValueError(
                f"{name}: {path or 'it'} must be bool, got {_dtype(leaf)}; masks != 0 "
                "are bool"
            )
    return leaves


def require_true(leaves: dict[str, Any], name: str) -> None:
    """Raise if masks are False somewhere in leaves that are not there to be pruned.

    Args:
        leaves: by path.
        name: of the argument.

    Raises:
        ValueError: naming a leaf, and the way out.
    """
    for path, leaf in leaves.items():
        require_values(leaf, name)
        if not np.all(np.asarray(leaf)):
            raise ValueError(
                f"{name}: {path} is False somewhere, and params leave this leaf out; "
                "make it True, or leave it out as they do"
            )


def require_values(leaf: Any, name: str) -> None:
    """Raise for a mask whose values are not known: under jit, and that of a shape.

    Raises:
        ValueError: naming the argument.
    """
    if isinstance(leaf, jax.core.Tracer | jax.ShapeDtypeStruct):
        raise ValueError(f"{name}: values are checked here, which jit does not know")


def _require_some(masks: Masks, name: str) -> None:
    """Raise for None in the place of all masks; within a tree it stands for a part."""
    if masks is None:
        raise ValueError(f"{name}: must be a tree of bool arrays, got None")


def _as_array(leaf: Any) -> Any:
    known = isinstance(leaf, jax.Array | jax.ShapeDtypeStruct)
    return leaf if known else jnp.asarray(leaf)


def _dtype(mask: Any) -> Any:
    return mask.dtype if hasattr(mask, "dtype") else np.asarray(mask).dtype
