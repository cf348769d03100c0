"""What can be done with masks: apply, count, combine, check, pack for files."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from swapjax.core import trees
from swapjax.core.types import Masks, Params


def apply_masks(params: Params, masks: Masks) -> Params:
    """Set params to zero where masks are False.

    Args:
        params: any pytree of arrays.
        masks: the same tree of bool arrays, or of scalars where nothing is pruned.

    Returns:
        Params of the same dtypes. A masked entry is exactly zero even where it was
        NaN.
    """
    return jax.tree.map(
        lambda p, m: jnp.where(m, p, jnp.zeros((), p.dtype)), params, masks
    )


def from_zeros(params: Params, prunable: Masks) -> Masks:
    """Read masks off params that are already sparse.

    Args:
        params: any pytree of arrays.
        prunable: masks that tell, by a bool array against a scalar, which leaves are
            pruned; their values do not matter.
    """
    return jax.tree.map(
        lambda p, m: p != 0 if np.ndim(m) else jnp.asarray(True), params, prunable
    )


def intersect(first: Masks, second: Masks) -> Masks:
    """Keep what both keep."""
    return jax.tree.map(jnp.logical_and, first, second)


def count(masks: Masks) -> tuple[int, int]:
    """Count the kept and all of the prunable entries."""
    arrays = [m for m in jax.tree.leaves(masks) if np.ndim(m)]
    kept = sum(int(jnp.sum(m, dtype=jnp.int32)) for m in arrays)
    return kept, sum(m.size for m in arrays)


def density(masks: Masks) -> float:
    """Tell the fraction of prunable entries that is kept; 1 if there are none."""
    kept, total = count(masks)
    return kept / total if total else 1.0


def churn(before: Masks, after: Masks) -> int:
    """Count the entries that changed between two masks of the same params."""
    pairs = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    return sum(int(jnp.sum(a != b, dtype=jnp.int32)) for a, b in pairs if np.ndim(a))


def check(masks: Masks, params: Params, name: str = "masks") -> None:
    """Raise unless masks belong to params.

    Raises:
        ValueError: for another tree structure, a leaf that is not bool, or one that
            has neither the shape of its params nor none.
    """
    expected: object = jax.tree.structure(params)
    got: object = jax.tree.structure(masks)
    if expected != got:
        raise ValueError(f"{name}: must have the tree of params {expected}, got {got}")
    leaves = zip(
        trees.paths(params),
        jax.tree.leaves(params),
        jax.tree.leaves(masks),
        strict=True,
    )
    for path, leaf, mask in leaves:
        dtype = mask.dtype if hasattr(mask, "dtype") else np.asarray(mask).dtype
        shape = np.shape(mask)
        if dtype != np.dtype(bool) or shape not in ((), leaf.shape):
            raise ValueError(
                f"{name}: {path} must be bool of shape {leaf.shape} or (), got {dtype} "
                f"of shape {shape}"
            )


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
