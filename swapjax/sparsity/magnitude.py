"""Masks of the largest weights, for what prunes a trained network by magnitude."""

from swapjax.core.types import Leaves, Masks, Params
from swapjax.sparsity import scores
from swapjax.sparsity.budget import Budget, select_compiled
from swapjax.sparsity.plan import Plan


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
