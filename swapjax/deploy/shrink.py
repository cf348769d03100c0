"""Remove dead channels, hidden units and heads, through all that depends on them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from swapjax.core.checks import take_amount
from swapjax.core.given_masks import take_masks
from swapjax.core.types import Masks, Params
from swapjax.deploy.constants import find_constants
from swapjax.deploy.folds import find_folds
from swapjax.deploy.outputs import error_of, halves, outputs_of
from swapjax.deploy.rebuilt import rebuilt
from swapjax.deploy.removal import remove
from swapjax.deploy.shrunk import Shrunk
from swapjax.deploy.stayed import uneven, why_stayed
from swapjax.deploy.written import has_sizes
from swapjax.roles.ties import find_ties
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
    wanted = outputs_of(function, params, inputs)
    allowed = max(
        take_amount("tolerance", tolerance),
        *(_ROUNDINGS * jnp.finfo(d).eps for d in halves([*known.values(), *wanted])),
        0.0,
    )
    for folds in (find_folds(ties), {}):
        removal = remove(ties, leaves, constants, folds)
        small = jax.tree.unflatten(treedef, removal.leaves)
        apply, is_rebuilt, error = function, False, 0.0
        if removal.dead:
            is_rebuilt = has_sizes(function, ties.program, small, inputs)
        if removal.dead and not is_rebuilt:
            error = error_of(function, small, inputs, wanted)
            is_rebuilt = error > allowed
        if is_rebuilt:
            apply = rebuilt(function, params, inputs, ties, removal.smaller)
            error = error_of(apply, small, inputs, wanted)
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
