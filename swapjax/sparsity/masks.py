"""What can be done with masks: apply, count, combine, check, pack for files."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from swapjax.core import counts, holes, trees
from swapjax.core.given_masks import (
    require_bool,
    require_mask_leaves,
    require_values,
    take_masks,
)
from swapjax.core.types import Masks, Params


def apply_masks(params: Params, masks: Masks) -> Params:
    """Set params to zero where masks are False.

    Args:
        params: any pytree of arrays.
        masks: the same tree of bool arrays, or of scalars where nothing is pruned; what
            `optax.masked` or Equinox leaves out of it stays as it is.

    Returns:
        Params of the same dtypes. A masked entry is exactly zero even where it was
        NaN.

    Raises:
        ValueError: for masks that are not of these params: another tree, other shapes,
            or other dtypes than bool.
    """
    return jax.tree.map(_apply, params, take_masks(masks, params))


def _apply(leaf: Any, mask: jax.Array) -> Any:
    # A function of an Equinox module, or a PRNG key, has no zero.
    if not hasattr(leaf, "dtype") or jnp.issubdtype(leaf.dtype, jax.dtypes.extended):
        return leaf
    return jnp.where(mask, leaf, jnp.zeros((), leaf.dtype))


def from_zeros(params: Params, prunable: Masks) -> Masks:
    """Read masks off params that are already sparse.

    Args:
        params: any pytree of arrays.
        prunable: masks that tell, by a bool array against a scalar, which leaves are
            pruned; their values do not matter.
    """
    return jax.tree.map(
        lambda p, m: p != 0 if np.ndim(m) else jnp.asarray(True),
        params,
        take_masks(prunable, params, "prunable"),
    )


def intersect(first: Masks, second: Masks) -> Masks:
    """Keep what both keep.

    Raises:
        ValueError: for masks of different trees, shapes, or other dtypes than bool.
    """
    return jax.tree.map(jnp.logical_and, *_paired(first, second))


def count(masks: Masks) -> tuple[int, int]:
    """Count the kept and all of the prunable entries.

    A leaf whose mask is a scalar is never pruned, and not counted.

    Raises:
        ValueError: for leaves that are not bool, and for a scalar False.
    """
    leaves = require_bool(masks)
    for path, leaf in zip(trees.paths(masks), leaves, strict=True):
        require_values(leaf, "masks")
        if not np.ndim(leaf) and not leaf:
            raise ValueError(
                f"masks: {path or 'it'} is one False for entries whose number it does "
                "not tell; give it the shape of params"
            )
    arrays = [leaf for leaf in leaves if np.ndim(leaf)]
    return sum(map(counts.count_true, arrays)), sum(m.size for m in arrays)


def density(masks: Masks) -> float:
    """Tell the fraction of prunable entries that is kept; 1 if there are none.

    Raises:
        ValueError: as `swapjax.sparsity.masks.count` does.
    """
    kept, total = count(masks)
    return kept / total if total else 1.0


def churn(before: Masks, after: Masks) -> int:
    """Count the entries that changed between two masks of the same params.

    A leaf that only one of the two prunes was all True in the other.

    Raises:
        ValueError: for masks of different trees, shapes, or other dtypes than bool.
    """
    both = map(jax.tree.leaves, _paired(before, after))
    pairs = [pair for pair in zip(*both, strict=True) if any(map(np.ndim, pair))]
    for leaf in (leaf for pair in pairs for leaf in pair):
        require_values(leaf, "masks")
    return sum(counts.count_true(jnp.not_equal(*pair)) for pair in pairs)


def _paired(first: Masks, second: Masks) -> tuple[Masks, Masks]:
    """Give two masks one tree: that of the one which leaves nothing out.

    Raises:
        ValueError: for masks of different trees or shapes, or of other dtypes than
            bool.
    """
    for masks, name in ((first, "the first masks"), (second, "the second masks")):
        require_bool(masks, name)
    onto_first = holes.match(holes.by_path(second), first)
    onto_second = holes.match(holes.by_path(first), second)
    if _fits(onto_first):
        second = _rebuilt(onto_first, first)
    elif _fits(onto_second):
        first = _rebuilt(onto_second, second)
    else:
        extra = [*onto_first.extra, *onto_first.beyond]
        raise ValueError(
            "masks: must have one tree; the second is "
            f"{holes.describe(onto_first.missing, extra)}"
        )
    trio = zip(*map(jax.tree.leaves, (first, second)), strict=True)
    for path, (a, b) in zip(trees.paths(first), trio, strict=True):
        if np.ndim(a) and np.ndim(b) and np.shape(a) != np.shape(b):
            raise ValueError(
                f"masks: {path or 'it'} has shape {np.shape(a)} in one and "
                f"{np.shape(b)} in the other"
            )
    return first, second


def _fits(found: holes.Matched) -> bool:
    return not (found.missing or found.extra or found.beyond)


def _rebuilt(found: holes.Matched, like: Masks) -> Masks:
    leaves = [True if x is holes.HOLE else x for x in found.leaves]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def check(masks: Masks, params: Params, name: str = "masks") -> None:
    """Raise unless masks have the very tree of params, as those of a state have.

    Raises:
        ValueError: for another tree structure, a leaf that is not bool, or one that
            has neither the shape of its params nor none.
    """
    expected: object = jax.tree.structure(params)
    got: object = jax.tree.structure(masks)
    if expected != got:
        raise ValueError(f"{name}: must have the tree of params {expected}, got {got}")
    require_mask_leaves(jax.tree.leaves(masks), params, name)


def pack(mask: np.ndarray) -> np.ndarray:
    """Pack a bool array into bytes for a file, eight entries to one."""
    return np.packbits(np.asarray(mask, bool).ravel())


def unpack(packed: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Undo `pack`.

    Raises:
        ValueError: when the bytes are not those of a mask of this shape.
    """
    size = math.prod(shape)
    if packed.dtype != np.uint8 or packed.shape != (math.ceil(size / 8),):
        raise ValueError(
            f"a packed mask of shape {shape} takes {math.ceil(size / 8)} bytes, got "
            f"{packed.dtype} of shape {packed.shape}"
        )
    return np.unpackbits(packed, count=size).astype(bool).reshape(shape)
