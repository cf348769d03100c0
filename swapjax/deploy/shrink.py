"""Remove dead channels, hidden units and heads, through all that depends on them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from swapjax.core.given_masks import take_masks
from swapjax.core.types import Masks, Params
from swapjax.deploy.constants import live_terms
from swapjax.deploy.dead import dead_units
from swapjax.deploy.rebuild import Smaller, cut
from swapjax.deploy.shrunk import Shrunk
from swapjax.roles.ties import Ties, find_ties
from swapjax.sparsity.masks import apply_masks

_TOLERANCE = 1e-5


def shrink(
    function: Callable[..., Any],
    params: Params,
    masks: Masks | None = None,
    *inputs: Any,
) -> Shrunk:
    """Remove what is dead, so that arrays become smaller and the function the same.

    A unit, as a channel with all that is tied to it, is dead if whatever reads it
    multiplies it with zeros, or if it is zero for all data.

    Args:
        function: ``(params, *inputs) -> any pytree of arrays``, such as a loss or what
            makes logits.
        params: weights, zero where pruned.
        masks: applied to params first; None where zeros of params say it all.
        *inputs: examples of what else the function takes. A few will do.

    Returns:
        Smaller params, and the function for them.

    Raises:
        ValueError: for masks that are not those of params, for a function that cannot
            be traced, and where outputs for the inputs given are not the same to 1e-5
            of the largest.

    Example:
        >>> import jax.numpy as jnp
        >>> import swapjax
        >>> params = {"in": jnp.ones((3, 8)), "out": jnp.ones((8, 2)).at[5:].set(0)}
        >>> apply = lambda p, x: jnp.tanh(x @ p["in"]) @ p["out"]
        >>> small = swapjax.shrink(apply, params, None, jnp.ones((1, 3)))
        >>> small.params["in"].shape, small.params["out"].shape
        ((3, 5), (5, 2))
        >>> print(small)
        in: 5 of 8 units left
    """
    if masks is not None:
        params = apply_masks(params, take_masks(masks, params))
    ties = find_ties(function, params, *inputs)
    leaves, treedef = jax.tree.flatten(params)
    known = {
        number: leaf
        for number, leaf in zip(ties.leaves, leaves, strict=True)
        if number is not None
    }
    dead = dead_units(ties, live_terms(ties.program, known))
    smaller = Smaller(ties.program, ties.labels, _flags(ties, dead))
    kept = {number: smaller.kept(number) for number in known}
    cuts = [
        leaf if number is None else cut(jnp.asarray(leaf), kept[number])
        for number, leaf in zip(ties.leaves, leaves, strict=True)
    ]
    small = jax.tree.unflatten(treedef, cuts)
    wanted = function(params, *inputs)
    rebuilt = _rebuilt(ties, smaller)
    apply, is_rebuilt, error = function, False, 0.0
    if dead:
        error = _error(function, small, inputs, wanted)
        if error > _TOLERANCE:
            apply, is_rebuilt = rebuilt, True
            error = _error(rebuilt, small, inputs, wanted)
        if error > _TOLERANCE:
            raise ValueError(
                f"shrink: outputs without dead units differ by {error:.1e} of the "
                f"largest, more than {_TOLERANCE:.0e}; are params finite?"
            )
    removed = {
        group.name: count
        for group in ties.groups
        if (count := sum(int(unit) in dead for unit in group.units))
    }
    return Shrunk(
        params=small,
        apply=apply,
        is_rebuilt=is_rebuilt,
        kept={
            path: kept[number]
            for path, shape, number in zip(
                ties.paths, ties.shapes, ties.leaves, strict=True
            )
            if number is not None
            and any(len(x) != n for x, n in zip(kept[number], shape, strict=True))
        },
        removed=removed,
        units={group.name: len(group) for group in ties.groups},
        stayed={},
        error=error,
    )


def _flags(ties: Ties, dead: set[int]) -> np.ndarray:
    """Mark units that are removed, by number."""
    most = max(
        (int(x.max(initial=0)) for axes in ties.labels.values() for x in axes),
        default=0,
    )
    flags = np.zeros(most + 1, bool)
    flags[list(dead)] = True
    return flags


def _rebuilt(ties: Ties, smaller: Smaller) -> Callable[..., Any]:
    """Make a function of the program for smaller arrays."""
    numbers = ties.leaves

    def apply(params: Params, *inputs: Any) -> Any:
        leaves = jax.tree.leaves(params)
        arrays = [x for x, n in zip(leaves, numbers, strict=True) if n is not None]
        results = smaller.evaluate([*arrays, *jax.tree.leaves(inputs)])
        return jax.tree.unflatten(ties.result, results)

    return jax.jit(apply)


def _error(
    function: Callable[..., Any], params: Params, inputs: tuple, wanted: Any
) -> float:
    """Tell how far outputs are off; infinity where shapes are."""
    try:
        found = function(params, *inputs)
    except (TypeError, ValueError):
        return float("inf")
    worst = 0.0
    pairs = zip(jax.tree.leaves(wanted), jax.tree.leaves(found), strict=True)
    for a, b in pairs:
        a, b = np.asarray(a), np.asarray(b)
        if a.shape != b.shape:
            return float("inf")
        a, b = a.astype(np.float64), b.astype(np.float64)
        largest = float(np.max(np.abs(a), initial=0.0)) or 1.0
        off = float(np.max(np.abs(a - b), initial=0.0)) / largest
        worst = max(worst, off if off == off else float("inf"))
    return worst
