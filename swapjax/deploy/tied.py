"""Masks of whole units: of all that lives or dies together."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from swapjax.core.given_masks import take_masks
from swapjax.core.types import Masks
from swapjax.roles.ties import Group, Ties


def tie_masks(ties: Ties, masks: Masks) -> Masks:
    """Remove all that belongs to units that masks have nothing of.

    Where all weights that make a unit are gone, or all that read it, so are its bias,
    its norm and the weights at its other end: what `swapjax.shrink` takes out then. A
    bias that would have been left, as a constant, is gone with it.

    Args:
        ties: of the function, from `swapjax.find_ties`.
        masks: of its params.

    Returns:
        Masks with nothing more, and some less.

    Raises:
        ValueError: for masks of other params, and ties that are none.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import swapjax
        >>> params = {"a": jnp.ones((3, 2)), "b": jnp.ones(2), "c": jnp.ones((2, 1))}
        >>> apply = lambda p, x: jax.nn.relu(x @ p["a"] + p["b"]) @ p["c"]
        >>> ties = swapjax.find_ties(apply, params, jnp.ones((1, 3)))
        >>> masks = {"a": jnp.array([[True, False]] * 3), "b": True, "c": True}
        >>> swapjax.tie_masks(ties, masks)["b"].tolist()
        [True, False]
    """
    if not isinstance(ties, Ties):
        raise ValueError(f"ties must be what swapjax.find_ties returns, got {ties!r}")
    shapes = [jax.ShapeDtypeStruct(shape, np.float32) for shape in ties.shapes]
    treedef = ties.tree
    given = take_masks(masks, jax.tree.unflatten(treedef, shapes))
    leaves = [
        np.array(np.broadcast_to(np.asarray(mask), shape))
        for mask, shape in zip(jax.tree.leaves(given), ties.shapes, strict=True)
    ]
    for group in ties.groups:
        for layer in range(group.layers):
            own = dict(enumerate(leaves))
            if group.layers > 1:  # each layer may have lost other units
                members = {m.leaf for m in group.members}
                own = {leaf: leaves[leaf][layer : layer + 1] for leaf in members}
            _clear(group, _gone(group, own), own)
    return jax.tree.unflatten(treedef, list(map(jnp.asarray, leaves)))


def _gone(group: Group, leaves: Mapping[int, np.ndarray]) -> np.ndarray:
    """Mark units without any weight that makes them, or without any that reads them."""
    made, read = np.zeros(len(group), bool), np.zeros(len(group), bool)
    makes = reads = False
    for member in group.members:
        mask = leaves[member.leaf]
        if mask.ndim - (group.layers > 1) < 2:
            continue
        others = tuple(i for i in range(mask.ndim) if i != member.axis)
        own = np.any(np.asarray(np.any(mask, axis=others))[member.positions], axis=1)
        if member.makes:
            made, makes = made | own, True
        else:
            read, reads = read | own, True
    return (~made & makes) | (~read & reads)


def _clear(group: Group, gone: np.ndarray, leaves: Mapping[int, np.ndarray]) -> None:
    """Take units out of masks."""
    for member in group.members:
        moved = np.moveaxis(leaves[member.leaf], member.axis, 0)
        moved[member.positions[gone].reshape(-1)] = False
