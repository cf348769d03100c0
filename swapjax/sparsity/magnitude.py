"""Masks of the largest weights: the commonest way to prune, and what drivers cut by."""

import jax

from swapjax.core import trees
from swapjax.core.static_leaves import take_arrays
from swapjax.core.types import Leaves, Masks, Params
from swapjax.sparsity import scores
from swapjax.sparsity.bounds import allowed
from swapjax.sparsity.budget import Budget, select_compiled
from swapjax.sparsity.plan import Plan
from swapjax.sparsity.planned import planned


def magnitude_masks(
    params: Params,
    sparsity: float | None = None,
    *,
    plan: Plan | None = None,
    within: Masks | None = None,
) -> Masks:
    """Keep the largest weights of params in hand: no loss, no data, no key.

    What `swapjax.prune` does with `swapjax.magnitude` in one stage. Not for use under
    jit: counts are exact and values are checked.

    Args:
        params: any pytree of arrays.
        sparsity: the fraction of prunable entries to remove, in [0, 1); what
            the names of leaves tell to be a matrix is prunable.
        plan: instead of a sparsity, made by `swapjax.plan`: layer by layer, N:M.
        within: masks outside of which nothing may be kept; a group of a pattern n:m
            with fewer than n entries keeps what it has.

    Returns:
        Masks with the tree of params, for `swapjax.apply_masks`.

    Raises:
        ValueError: as `swapjax.plan` does, for both or neither of sparsity and plan, a
            plan of other params, entries that are not finite, and masks
            that are not of these params or have too few entries.

    Example:
        >>> import jax, swapjax
        >>> params = {"kernel": jax.random.normal(jax.random.key(0), (8, 5))}
        >>> masks = swapjax.magnitude_masks(params, 0.9)
        >>> int((swapjax.apply_masks(params, masks)["kernel"] != 0).sum())
        4
    """
    params, _ = take_arrays(params, "params")
    target = planned(params, sparsity, plan)
    trees.require_finite(trees.paths(params), jax.tree.leaves(params), "params")
    inside = None if within is None else allowed(within, params, target)
    return largest(target, params, within=inside)


def largest(
    target: Plan,
    params: Params,
    budget: Budget | None = None,
    within: Leaves | None = None,
) -> Masks:
    """Keep the largest weights.

    Args:
        target: what is prunable.
        params: to look at, not under jit.
        budget: how many to keep; by default as many as the plan does.
        within: masks of the prunable leaves, to choose among what they keep.

    Returns:
        Masks with the tree of params.
    """
    ranked = scores.magnitude(target.layout.split(params))
    return target.layout.masks(select_compiled(ranked, budget or target.budget, within))
