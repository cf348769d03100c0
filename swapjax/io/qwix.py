"""Masks as Qwix keeps them: in the state of its sparsity modules, beside the weights.

A ``qwix.contrib.sparsity`` module is an attribute of the layer whose weights it masks,
and holds ``mask``, of the weights' shape, and ``step`` as ``nnx.BatchStat``. Here their
state is any pytree with such paths: an ``nnx.State``, its pure dict, or what a
checkpoint of either restores to.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from swapjax.core import given_masks, trees
from swapjax.core.types import Masks, Params
from swapjax.sparsity.patterns import NM

_ORDERS = {-2: "C", -1: "R"}  # along which axis groups lie


def masks_from_qwix(
    state: Any, params: Params, leaves: Mapping[str, str] | None = None
) -> Masks:
    """Read masks out of the state of a network with Qwix's sparsity modules.

    Args:
        state: with ``.../mask`` and ``.../step``, other variables beside them or not.
        params: the weights, whose tree masks get: of the same layers.
        leaves: the path of the weights of a mask, by the path of the mask, where a
            layer has several leaves of one shape.

    Returns:
        Masks with the tree of params; the scalar True where Qwix has none.

    Raises:
        ValueError: for a state without masks, a mask that is not bool, one whose layer
            has no leaf of its shape or several, and two of one leaf.

    Example:
        >>> import jax.numpy as jnp
        >>> params = {"fc": {"bias": jnp.ones(2), "kernel": jnp.ones((4, 2))}}
        >>> module = {"mask": jnp.eye(4, 2, dtype=bool), "step": jnp.int32(7)}
        >>> masks = masks_from_qwix({"fc": {"sparsity": module}}, params)
        >>> int(masks["fc"]["kernel"].sum()), bool(masks["fc"]["bias"])
        (2, True)
    """
    shapes = {path: np.shape(x) for path, x in trees.by_path(params).items()}
    found: dict[str, Any] = {}
    for path, mask in _masks_in(state, leaves).items():
        own = _leaf_of(path, np.shape(mask), shapes, leaves or {})
        if own is None:
            raise ValueError(_told(path, np.shape(mask), "no leaf", "of"))
        if own in found:
            raise ValueError(f"state: two masks are of {own}; say which with leaves=")
        found[own] = jnp.asarray(mask)
    every = [found.get(path, jnp.asarray(True)) for path in trees.paths(params)]
    masks = jax.tree.unflatten(jax.tree.structure(params), every)
    return given_masks.take_masks(masks, params, "state")


def masks_to_qwix(
    masks: Masks, state: Any, leaves: Mapping[str, str] | None = None
) -> Any:
    """Put masks into the state of a network with Qwix's sparsity modules.

    In evaluation (``SparsityRule(eval_mode=True)``) Qwix multiplies by these masks; in
    training it chooses anew by magnitude at each of its update steps, which are told by
    ``step`` and the rule. Weights that are zero where masks are False it chooses last,
    so that masks of its own N:M stay as they are while others do not.

    Args:
        masks: of the layers that have such modules, as `swapjax.prune` returns them.
        state: whose masks are replaced.
        leaves: the path of the weights of a mask, by the path of the mask, where a
            layer has several leaves of one shape.

    Returns:
        The state with other masks; all else, ``step`` among it, is as it was.

    Raises:
        ValueError: as `masks_from_qwix` does, and for masks other than a layer's that
            Qwix has none for: what is pruned there would come back.
    """
    given_masks.require_bool(masks)
    given = trees.by_path(masks)
    shapes = {path: np.shape(x) for path, x in given.items()}
    placed: dict[str, Any] = {}
    used = set()
    for path, old in _masks_in(state, leaves).items():
        shape = np.shape(old)
        own = _leaf_of(path, shape, shapes, leaves or {})
        if own is None and not _prunes_none(path, given):
            raise ValueError(_told(path, shape, "no mask", "of"))
        used.add(own)
        placed[path] = jnp.ones(shape, bool) if own is None else jnp.asarray(given[own])
    for path, mask in given.items():
        if path not in used and not np.all(np.asarray(mask)):
            raise ValueError(
                f"masks: {path} is False somewhere, and state has no mask of it"
            )
    treedef, paths = jax.tree.structure(state), trees.paths(state)
    every = zip(paths, jax.tree.leaves(state), strict=True)
    return jax.tree.unflatten(treedef, [placed.get(path, x) for path, x in every])


def rule_for_qwix(pattern: NM, axis: int = -2) -> dict[str, Any]:
    """Write an N:M pattern as the arguments of Qwix's ``SparsityRule``.

    Args:
        pattern: n of every m.
        axis: of the weights, along which groups lie: -2, where a kernel [..., inputs,
            outputs] has its inputs (Qwix's order ``"C"``), or -1 (``"R"``).

    Returns:
        Keyword arguments; the rule chooses once, at step 0. Pass ``eval_mode=True``
        beside them for masks that stay as they are given.

    Raises:
        ValueError: for another pattern or axis.

    Example:
        >>> rule_for_qwix(NM(2, 4))["weight_sparsity_order"]
        'C'
    """
    if not isinstance(pattern, NM):
        raise ValueError(f"pattern must be an NM for Qwix, got {pattern!r}")
    if axis not in _ORDERS:
        raise ValueError(f"axis must be -2 or -1 for Qwix, got {axis}")
    return {
        "weight_sparsity_n": pattern.n,
        "weight_sparsity_m": pattern.m,
        "weight_sparsity_order": _ORDERS[axis],
    }


def _masks_in(state: Any, told: Mapping[str, str] | None) -> dict[str, Any]:
    """List the masks of sparsity modules by path."""
    leaves = trees.by_path(state)
    found: dict[str, Any] = {}
    for path, leaf in leaves.items():
        module, _, name = path.rpartition("/")
        if name != "mask" or f"{module}/step".removeprefix("/") not in leaves:
            continue
        if getattr(leaf, "dtype", None) != np.dtype(bool):
            dtype = getattr(leaf, "dtype", type(leaf).__name__)
            raise ValueError(f"state: {path} must be bool, got {dtype}")
        found[path] = leaf
    if not found:
        raise ValueError(
            "state: must hold masks of Qwix's sparsity modules, as layer/sparsity/mask "
            "beside layer/sparsity/step; got none"
        )
    for path in told or ():
        if path not in found:
            raise ValueError(
                f"leaves: {path} is no mask of state, which has {', '.join(found)}"
            )
    return found


def _layer(path: str) -> str:
    """Tell the beginning of the paths of a mask's layer."""
    module = path.rpartition("/")[0]
    layer = module.rpartition("/")[0]
    return f"{layer}/" if layer else ""


def _leaf_of(
    path: str,
    shape: tuple[int, ...],
    shapes: Mapping[str, tuple[int, ...]],
    leaves: Mapping[str, str],
) -> str | None:
    """Find the leaf that a mask is of."""
    if path in leaves:
        if shapes.get(leaves[path]) != shape:
            got = shapes.get(leaves[path], "no leaf")
            raise ValueError(
                f"leaves: {path} has shape {shape}, {leaves[path]} has {got}"
            )
        return leaves[path]
    layer = _layer(path)
    inside = [p for p, s in shapes.items() if p.startswith(layer) and s == shape]
    directly = [p for p in inside if "/" not in p.removeprefix(layer)]
    several = directly or inside
    if len(several) > 1:
        raise ValueError(_told(path, shape, f"{len(several)} leaves", "of"))
    return several[0] if several else None


def _prunes_none(path: str, given: Mapping[str, Any]) -> bool:
    """Tell whether the layer of a mask has scalars alone, and only True."""
    own = [x for p, x in given.items() if p.startswith(_layer(path))]
    return bool(own) and all(not np.ndim(x) and bool(x) for x in own)


def _told(path: str, shape: tuple[int, ...], count: str, word: str) -> str:
    layer = _layer(path).removesuffix("/") or "the network"
    return (
        f"state: {path} has shape {shape}, and {layer} has {count} {word} that shape; "
        "say which with leaves="
    )
