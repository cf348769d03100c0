"""Remove dead channels, hidden units and heads, through all that depends on them."""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from swapjax.core.checks import take_amount
from swapjax.core.given_masks import take_masks
from swapjax.core.types import Masks, Params
from swapjax.deploy.constants import find_constants
from swapjax.deploy.folds import find_folds
from swapjax.deploy.rebuilt import rebuilt
from swapjax.deploy.removal import remove
from swapjax.deploy.shrunk import Shrunk
from swapjax.deploy.stayed import uneven, why_stayed
from swapjax.roles.ties import Ties, find_ties
from swapjax.sparsity.masks import apply_masks

_ROUNDINGS = 8  # that outputs in half precision may be off by


def shrink(
    function: Callable[..., Any],
    params: Params,
    masks: Masks | None = None,
    *inputs: Any,
    tolerance: float = 1e-5,
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
        tolerance: how far outputs for these may be off, of the largest; more where
            params or outputs have half precision, whose rounding is coarser.

    Returns:
        Smaller params, and the function for them.

    Raises:
        ValueError: for masks that are not those of params, for a function that cannot
            be traced, and where outputs for the inputs given are further off.

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
    constants = find_constants(ties.program, known)
    wanted = _called(function, ties, params, inputs)
    allowed = max(
        take_amount("tolerance", tolerance),
        *(_ROUNDINGS * jnp.finfo(d).eps for d in _halves([*known.values(), *wanted])),
        0.0,
    )
    for folds in (find_folds(ties), {}):
        removal = remove(ties, leaves, constants, folds)
        small = jax.tree.unflatten(treedef, removal.leaves)
        apply, is_rebuilt = function, False
        error = 0.0
        if removal.dead:
            error = _error(function, ties, small, inputs, wanted)
        if error > allowed:
            apply = rebuilt(function, params, inputs, ties, removal.smaller)
            is_rebuilt = True
            error = _error(apply, ties, small, inputs, wanted)
        if error <= allowed:
            break
    else:
        raise ValueError(
            f"shrink: outputs without dead units differ by {error:.1e} of the "
            f"largest, more than {allowed:.0e}; are params finite, and is the function "
            "without randomness?"
        )
    counts = {
        group.name: sum(int(unit) in removal.dead for unit in group.units)
        for group in ties.groups
    }
    kept = removal.kept(ties)
    return Shrunk(
        params=small,
        apply=apply,
        is_rebuilt=is_rebuilt,
        kept=kept,
        shapes={
            path: shape
            for path, shape in zip(ties.paths, ties.shapes, strict=True)
            if path in kept
        },
        removed={name: count for name, count in counts.items() if count},
        units={group.name: len(group) for group in ties.groups},
        folded=removal.folded,
        stayed=why_stayed(ties, leaves, constants, removal.dead)
        | uneven(removal.layers),
        error=error,
    )


def _halves(arrays: list[Any]) -> set[Any]:
    """List the dtypes of floats of less than 32 bits."""
    dtypes = {jnp.asarray(x).dtype if np.isscalar(x) else x.dtype for x in arrays}
    return {d for d in dtypes if jnp.issubdtype(d, jnp.floating) and d.itemsize < 4}


def _called(
    function: Callable[..., Any], ties: Ties, params: Params, inputs: tuple
) -> list[np.ndarray]:
    """Call a function, compiled as a whole, and list the arrays that it returns."""
    leaves, treedef = jax.tree.flatten(params)
    arrays = [n is not None for n in ties.leaves]

    @jax.jit
    def of_arrays(traced: list[Any], inputs: tuple) -> Any:
        there = iter(traced)
        pairs = zip(leaves, arrays, strict=True)
        whole = [next(there) if is_array else leaf for leaf, is_array in pairs]
        return function(jax.tree.unflatten(treedef, whole), *inputs)

    with jax.default_matmul_precision("highest"):
        results = of_arrays(list(itertools.compress(leaves, arrays)), inputs)
    return [np.asarray(x) for x in jax.tree.leaves(results)]


def _error(
    function: Callable[..., Any],
    ties: Ties,
    params: Params,
    inputs: tuple,
    wanted: list[np.ndarray],
) -> float:
    """Tell how far outputs are off; infinity where shapes are."""
    try:
        found = _called(function, ties, params, inputs)
    except Exception:  # a module that knows its sizes says so in its own way
        return float("inf")
    worst = 0.0
    for a, b in zip(wanted, found, strict=True):
        if a.shape != b.shape:
            return float("inf")
        a, b = a.astype(np.float64), b.astype(np.float64)
        largest = float(np.max(np.abs(a), initial=0.0)) or 1.0
        off = float(np.max(np.abs(a - b), initial=0.0)) / largest
        worst = max(worst, off if off == off else float("inf"))
    return worst
