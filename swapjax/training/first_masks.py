"""The masks that sparse training starts from."""

import functools

import jax
import jax.numpy as jnp

from swapjax.core.counts import count_true
from swapjax.core.types import Leaves, Masks, Params
from swapjax.sparsity.bounds import prunable
from swapjax.sparsity.budget import Budget, select
from swapjax.sparsity.plan import Plan
from swapjax.sparsity.scores import magnitude
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
    if rule.masks is not None:
        return _given_masks(rule.masks, plan, params, inside)
    if table.begin is None:
        return inside or plan.layout.everything()
    budget = table.first_budget()
    if rule.begin == "magnitude":
        return _largest(plan.layout.split(params), budget, inside)
    assert key is not None  # since rules that begin so need one
    return _at_random(key, budget, inside, plan.grids)


@jax.jit
def _largest(weights: Leaves, budget: Budget, inside: Leaves | None) -> Leaves:
    """Keep the largest of what is allowed."""
    return select(magnitude(weights), budget, inside)


@functools.partial(jax.jit, static_argnums=3)
def _at_random(
    key: jax.Array,
    budget: Budget,
    inside: Leaves | None,
    grids: tuple[tuple[int, ...], ...],
) -> Leaves:
    """Keep entries, or units, at random; each layer draws by its number.

    Args:
        key: of the run.
        budget: how many.
        inside: where entries may be active, or None.
        grids: the shapes of what is drawn: of leaves, or of their units.
    """
    units, own = budget.units, budget.in_units
    stacking = own.layers
    keys = jax.random.split(jax.random.fold_in(key, 0), stacking.count)
    scores = stacking.draw_all(
        grids, lambda n, shape: jax.random.uniform(keys[n], shape)
    )
    if units is None:
        return select(scores, own, inside)
    reached = None if inside is None else units.touched(inside)
    return units.expand(select(scores, own, reached), inside)


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
