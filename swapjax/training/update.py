"""One update of sparse training: which weights are active, and what moves them."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from swapjax.core import trees
from swapjax.core.types import Leaves, Params
from swapjax.sparsity.plan import Plan
from swapjax.training.mask_schedule import Timetable
from swapjax.training.optimizer_state import forget
from swapjax.training.rule import MaskStep, Rule
from swapjax.training.state import SparseState, examine


class Update(NamedTuple):
    """What comes to an update.

    Attributes:
        rule: that chooses masks.
        table: when it does, and how many to keep.
        optimizer: that moves weights.
        gradients: at params, dense.
        state: before the update.
        params: before the update.
        key: of the run.
        extra: what the optimizer is given besides.
    """

    rule: Rule
    table: Timetable
    optimizer: optax.GradientTransformationExtraArgs
    gradients: Params
    state: SparseState
    params: Params
    key: jax.Array
    extra: dict[str, Any]


def masked(given: Update) -> tuple[Params, SparseState]:
    """Choose masks, then move what is active, as if nothing else had ever been there.

    In this order a choice needs nothing but what is in memory anyway. After the
    optimizer it would need the updates, as arrays in memory at every step.
    """
    rule, table, optimizer, gradients, state, params, _, extra = given
    plan = table.plan
    weights, slopes = plan.split(params), plan.split(gradients)
    changed = _change_masks(given, weights)
    base = plan.merge(_only(changed.stays, weights), params)
    memory = forget(optimizer, state.inner, plan.masks(changed.stays), base)
    seen = plan.merge(_only(changed.masks, slopes), gradients)
    updates, inner = optimizer.update(seen, memory, base, **extra)
    if rule.skips:
        now = table.is_mask_step(state.count + 1)
        updates, inner = jax.tree.map(
            lambda before, after: jnp.where(now, before, after),
            (jax.tree.map(jnp.zeros_like, updates), memory),
            (updates, inner),
        )
    # w - w is zero in every dtype. What is new is that already, but at the first update
    # of dense params, whose first move is thus rounded as the weight before was.
    moves = tuple(
        jnp.where(m, u, 0) - jnp.where(s, 0, w)
        for m, s, u, w in zip(
            changed.masks,
            changed.stays,
            trees.take(updates, plan.positions),
            weights,
            strict=True,
        )
    )
    return plan.merge(moves, updates), _next(state, plan, changed, inner)


def straight_through(given: Update) -> tuple[Params, SparseState]:
    """Move dense weights by the gradients of params, then choose which to show."""
    rule, table, optimizer, gradients, state, params, _, extra = given
    plan = table.plan
    weights, slopes = plan.split(params), plan.split(gradients)
    dense, seen = plan.split(state.extras["dense"]), slopes
    if rule.decay:
        masks = plan.leaf_masks(state.masks)
        seen = tuple(
            g + jnp.where(m, 0, rule.decay * d).astype(g.dtype)
            for g, d, m in zip(slopes, dense, masks, strict=True)
        )
    updates, inner = optimizer.update(
        plan.merge(seen, gradients), state.inner, plan.merge(dense, params), **extra
    )
    dense = tuple(
        (d + u).astype(d.dtype)
        for d, u in zip(dense, trees.take(updates, plan.positions), strict=True)
    )
    changed = _change_masks(given, dense)
    moves = tuple(
        jnp.where(m, d - w, -w)
        for m, d, w in zip(changed.masks, dense, weights, strict=True)
    )
    after = _next(state, plan, changed, inner, dense=alone(plan, dense, params))
    return plan.merge(moves, updates), after


def alone(plan: Plan, leaves: Iterable[jax.Array], params: Params) -> Params:
    """Leaves in the tree of params, with scalars for those that are not prunable."""
    nothing = jax.tree.map(lambda x: jnp.zeros((), x.dtype), params)
    return plan.merge(tuple(leaves), nothing)


class _Changed(NamedTuple):
    """What is active after an update. Leaves are prunable ones.

    Attributes:
        masks: from now on.
        stays: what was active before, too.
        status: the worst `swapjax.Status` so far, ``int32[leaves]``.
    """

    masks: Leaves
    stays: Leaves
    status: jax.Array


def _change_masks(given: Update, ranked: Leaves) -> _Changed:
    """Let the rule choose if this is the update for it.

    Args:
        given: to the update.
        ranked: weights by which it chooses: params, or the dense ones behind them.
    """
    rule, table, _, gradients, state, params, key, _ = given
    plan = table.plan
    masks, worst = plan.leaf_masks(state.masks), state.extras["status"]
    if table.last < 0:
        return _Changed(masks, masks, worst)
    t = state.count + 1

    def choose() -> tuple[Leaves, jax.Array]:
        within = state.extras.get("within")
        budget, fraction = table.at(t)
        slopes = plan.split(gradients)
        step = MaskStep(
            weights=ranked if rule.straight_through else _only(masks, ranked),
            gradients=slopes,
            masks=masks,
            within=None if within is None else plan.leaf_masks(within),
            budget=budget,
            fraction=fraction,
            key=jax.random.fold_in(key, t),
        )
        found = examine(rule, t, masks, plan.split(params), step.weights, slopes)
        new = rule.masks_at(step, plan.block)
        return new, jnp.maximum(found, worst)

    # Without a mask step this costs copies of the masks, which XLA does faster on a CPU
    # than anything that the branch could work out instead.
    due = table.is_mask_step(t)
    new, status = jax.lax.cond(due, choose, lambda: (masks, worst))
    return _Changed(new, tuple(a & b for a, b in zip(new, masks, strict=True)), status)


def _only(masks: Leaves, leaves: Leaves) -> Leaves:
    """The leaves, zero where masks are False, whatever is there."""
    return tuple(
        jnp.where(m, x, jnp.zeros((), x.dtype))
        for m, x in zip(masks, leaves, strict=True)
    )


def _next(
    state: SparseState, plan: Plan, changed: _Changed, inner: Any, **extras: Any
) -> SparseState:
    return SparseState(
        count=optax.safe_increment(state.count),
        masks=plan.masks(changed.masks),
        key=state.key,
        inner=inner,
        extras=state.extras | {"status": changed.status} | extras,
    )
