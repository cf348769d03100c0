"""One update of sparse training: change masks, then move the active weights."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from swapjax.core.types import Leaves, Params
from swapjax.sparsity.plan import Plan
from swapjax.training.mask_schedule import Timetable
from swapjax.training.optimizer_state import forget
from swapjax.training.rule import MaskStep, Rule
from swapjax.training.state import SparseState, examine, examine_choice


class Update(NamedTuple):
    """The arguments of an update.

    Attributes:
        rule: chooses masks.
        table: the mask steps, and how many entries to keep at each.
        optimizer: moves weights.
        gradients: at params, dense.
        state: before the update.
        params: before the update.
        key: of the run, if it has one.
        extra: further arguments of the optimizer.
    """

    rule: Rule
    table: Timetable
    optimizer: optax.GradientTransformationExtraArgs
    gradients: Params
    state: SparseState
    params: Params
    key: jax.Array | None
    extra: dict[str, Any]


def masked(given: Update) -> tuple[Params, SparseState]:
    """Choose masks, then move the active weights.

    In this order the choice needs only arrays that are in memory anyway. After the
    optimizer it would need the updates too, as arrays in memory at every step.
    """
    rule, table, optimizer, gradients, state, params, _, extra = given
    plan, layout = table.plan, table.plan.layout
    weights, slopes = layout.split(params), layout.split(gradients)
    changed = _change_masks(given, weights)
    base = layout.merge(_only(changed.stays, weights), params)
    memory = forget(optimizer, state.inner, layout.masks(changed.stays), base)
    seen = layout.merge(_only(changed.masks, slopes), gradients)
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
            layout.split(updates),
            weights,
            strict=True,
        )
    )
    return layout.merge(moves, updates), _next(state, plan, changed, inner)


def straight_through(given: Update) -> tuple[Params, SparseState]:
    """Move dense weights by the gradients at params, then choose masks by them."""
    rule, table, optimizer, gradients, state, params, _, extra = given
    plan, layout = table.plan, table.plan.layout
    weights, slopes = layout.split(params), layout.split(gradients)
    dense, seen = layout.split(state.extras["dense"]), slopes
    if rule.decay:
        masks = layout.leaf_masks(state.masks)
        seen = tuple(
            g + jnp.where(m, 0, rule.decay * d).astype(g.dtype)
            for g, d, m in zip(slopes, dense, masks, strict=True)
        )
    updates, inner = optimizer.update(
        layout.merge(seen, gradients), state.inner, layout.merge(dense, params), **extra
    )
    dense = tuple(
        (d + u).astype(d.dtype)
        for d, u in zip(dense, layout.split(updates), strict=True)
    )
    changed = _change_masks(given, dense)
    moves = tuple(
        jnp.where(m, d - w, -w)
        for m, d, w in zip(changed.masks, dense, weights, strict=True)
    )
    after = _next(state, plan, changed, inner, dense=alone(plan, dense, params))
    return layout.merge(moves, updates), after


def alone(plan: Plan, leaves: Iterable[jax.Array], params: Params) -> Params:
    """Put prunable leaves into the tree of params, with scalars for all others."""
    nothing = jax.tree.map(lambda x: jnp.zeros((), x.dtype), params)
    return plan.layout.merge(tuple(leaves), nothing)


class _Changed(NamedTuple):
    """Masks after an update. Leaves are prunable ones.

    Attributes:
        masks: the active entries from now on.
        stays: those of them that were active before, too.
        status: the worst `swapjax.Status` so far, ``int32[leaves]``.
    """

    masks: Leaves
    stays: Leaves
    status: jax.Array


def _change_masks(given: Update, ranked: Leaves) -> _Changed:
    """Let the rule choose new masks if this update is a mask step.

    Args:
        given: the arguments of the update.
        ranked: weights to choose by: params, or the dense weights behind them.
    """
    rule, table, _, gradients, state, params, key, _ = given
    plan, layout = table.plan, table.plan.layout
    masks, worst = layout.leaf_masks(state.masks), state.extras["status"]
    if table.last < 0:
        return _Changed(masks, masks, worst)
    t = state.count + 1

    def choose() -> tuple[Leaves, jax.Array]:
        within = state.extras.get("within")
        budget, fraction = table.at(t)
        slopes = layout.split(gradients)
        step = MaskStep(
            weights=ranked if rule.straight_through else _only(masks, ranked),
            gradients=slopes,
            masks=masks,
            within=None if within is None else layout.leaf_masks(within),
            budget=budget,
            fraction=fraction,
            key=None if key is None else jax.random.fold_in(key, t),
        )
        found = examine(rule, t, masks, layout.split(params), step.weights, slopes)
        new = rule.masks_at(step, plan.block)
        most = tuple(budget.keep[g] * plan.unit for g in range(len(plan.keep)))
        chosen = examine_choice(new, most, step.within)
        return new, jnp.maximum(jnp.maximum(found, chosen), worst)

    # Without a mask step this costs copies of the masks, which XLA does faster on a CPU
    # than anything that the branch could work out instead.
    due = table.is_mask_step(t)
    new, status = jax.lax.cond(due, choose, lambda: (masks, worst))
    return _Changed(new, tuple(a & b for a, b in zip(new, masks, strict=True)), status)


def _only(masks: Leaves, leaves: Leaves) -> Leaves:
    """Set leaves to zero where masks are False, even where they are not finite."""
    return tuple(
        jnp.where(m, x, jnp.zeros((), x.dtype))
        for m, x in zip(masks, leaves, strict=True)
    )


def _next(
    state: SparseState, plan: Plan, changed: _Changed, inner: Any, **extras: Any
) -> SparseState:
    return SparseState(
        count=optax.safe_increment(state.count),
        masks=plan.layout.masks(changed.masks),
        key=state.key,
        inner=inner,
        extras=state.extras | {"status": changed.status} | extras,
    )
