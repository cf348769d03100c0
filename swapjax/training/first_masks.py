"""The masks that sparse training starts from."""

import jax
import jax.numpy as jnp

from swapjax.core.counts import count_true
from swapjax.core.types import Leaves, Masks, Params
from swapjax.sparsity.bounds import prunable
from swapjax.sparsity.budget import select_compiled
from swapjax.sparsity.plan import Plan
from swapjax.training.mask_schedule import Timetable
from swapjax.training.rule import Rule


def first_masks(
    rule: Rule,
    table: Timetable,
    params: Params,
    inside: Leaves | None,
    key: jax.Array | None,
) -> Leaves:
    """Choose the masks that training starts from, bool leaves.

    Args:
        rule: that trains.
        table: its mask steps.
        params: dense.
        inside: masks of the leaves, where entries may be active; None for anywhere.
        key: of the run, for rules that start from random masks.

    Raises:
        ValueError: for masks that were given to the rule and are not of params, of
            another sparsity than the plan, or outside of `inside`.
    """
    plan = table.plan
    weights = plan.layout.split(params)
    if rule.masks is not None:
        return _given_masks(rule.masks, plan, params, inside)
    if table.begin is None:
        return inside or plan.layout.everything()
    if rule.begin == "magnitude":
        scores: Leaves = tuple(map(jnp.abs, weights))
    else:
        assert key is not None  # since rules that begin so need one
        stacking = plan.stacking
        keys = jax.random.split(jax.random.fold_in(key, 0), stacking.count)
        scores = tuple(
            stacking.draw(i, grid, lambda n, shape: jax.random.uniform(keys[n], shape))
            for i, grid in enumerate(plan.grids)
        )
        if plan.units is not None:
            budget = table.first_budget().in_units
            reached = None if inside is None else plan.units.touched(inside)
            chosen = select_compiled(scores, budget, reached)
            return plan.units.expand(chosen, inside)
    return select_compiled(scores, table.first_budget(), inside)


def _given_masks(
    given: Masks, plan: Plan, params: Params, inside: Leaves | None
) -> Leaves:
    with jax.ensure_compile_time_eval():
        leaves = prunable(given, params, plan, "masks")
        kept = sum(map(count_true, leaves))
        if kept != plan.kept:
            raise ValueError(
                f"masks: keep {kept:,} of the {plan.layout.total:,} prunable entries, "
                f"the sparsity of {float(plan.sparsity):g} keeps {plan.kept:,}"
            )
        pairs = zip(leaves, inside or leaves, strict=True)
        if any(jnp.any(leaf & ~limit) for leaf, limit in pairs):
            raise ValueError("masks: have entries outside of within")
    return leaves
