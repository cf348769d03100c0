"""One update of sparse training: change masks, then move the active weights."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from swapjax.core.types import Params
from swapjax.sparsity.plan import Plan
from swapjax.training.line_search import at_active
from swapjax.training.mask_schedule import Timetable
from swapjax.training.mask_step import Before, Change, Changed, only
from swapjax.training.optimizer_state import forget
from swapjax.training.rule import Rule
from swapjax.training.state import SparseState


class Update(NamedTuple):
    """The arguments of an update.

    Attributes:
        rule: chooses masks.
        table: the mask steps, and how many entries to keep at each.
        change: the function that changes masks, of `changer`.
        optimizer: moves weights.
        gradients: at params, dense.
        state: before the update.
        params: before the update.
        key: of the run, if it has one.
        extra: further arguments of the optimizer.
        mask_step: whether this program makes a mask step; None for one that finds out.
    """

    rule: Rule
    table: Timetable
    change: Change
    optimizer: optax.GradientTransformationExtraArgs
    gradients: Params
    state: SparseState
    params: Params
    key: jax.Array | None
    extra: dict[str, Any]
    mask_step: bool | None


def masked(given: Update) -> tuple[Params, SparseState]:
    """Choose masks, then move the active weights.

    In this order the choice needs only arrays that are in memory anyway. After the
    optimizer it would need the updates too, as arrays in memory at every step.
    """
    rule, table, optimizer = given.rule, given.table, given.optimizer
    gradients, state, params = given.gradients, given.state, given.params
    extra = given.extra
    plan, layout = table.plan, table.plan.layout
    weights, slopes = layout.split(params), layout.split(gradients)
    changed = given.change(_before(given), given.mask_step)
    stays = changed.stays
    base = layout.merge(only(stays, weights), params)
    memory = forget(optimizer, changed.inner, layout.masks(changed.masks), base)
    seen = layout.merge(only(changed.masks, slopes), gradients)
    if "grad" in extra or "value_fn" in extra:
        # The loss of dense params, at first, is not that of what masks leave of them.
        moved = changed.made | (state.count == 0)
        masks = layout.masks(changed.masks)
        seen, extra = at_active(extra, gradients, base, masks, moved)
    updates, inner = optimizer.update(seen, memory, base, **extra)
    if rule.skips:
        updates, inner = jax.tree.map(
            lambda before, after: jnp.where(changed.made, before, after),
            (jax.tree.map(jnp.zeros_like, updates), memory),
            (updates, inner),
        )
    # w - w is zero in every dtype. What is new is that already, but at the first update
    # of dense params, whose first move is thus rounded as the weight before was.
    moves = tuple(
        jnp.where(m, u, 0) - jnp.where(s, 0, w)
        for m, s, u, w in zip(
            changed.masks,
            stays,
            layout.split(updates),
            weights,
            strict=True,
        )
    )
    return layout.merge(moves, updates), _next(state, plan, changed, inner)


def straight_through(given: Update) -> tuple[Params, SparseState]:
    """Move dense weights by the gradients at params, then choose masks by them."""
    rule, table, optimizer = given.rule, given.table, given.optimizer
    gradients, state, params = given.gradients, given.state, given.params
    extra = given.extra
    if extra.get("value_fn") is not None:
        raise ValueError(
            f"value_fn: a line search would measure dense weights, which {rule.name} "
            "trains behind the params; take another rule, such as swapjax.gmp()"
        )
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
    changed = given.change(
        _before(given)._replace(dense=dense, moves=updates), given.mask_step
    )
    moves = tuple(
        jnp.where(m, d - w, -w)
        for m, d, w in zip(changed.masks, dense, weights, strict=True)
    )
    dense = layout.merge(dense, state.extras["dense"])
    after = _next(state, plan, changed, inner, dense=dense)
    return layout.merge(moves, updates), after


def alone(plan: Plan, leaves: Iterable[jax.Array], params: Params) -> Params:
    """Put prunable leaves into the tree of params, with scalars for all others."""
    nothing = jax.tree.map(lambda x: jnp.zeros((), x.dtype), params)
    return plan.layout.merge(tuple(leaves), nothing)


def _before(given: Update) -> Before:
    state = given.state
    return Before(
        count=state.count,
        masks=state.masks,
        status=state.extras["status"],
        waits=state.extras["waits"],
        within=state.extras.get("within"),
        params=given.params,
        dense=None,
        gradients=given.gradients,
        inner=state.inner,
        moves=None,
        key=given.key,
        extra=given.extra,
    )


def _next(
    state: SparseState, plan: Plan, changed: Changed, inner: Any, **extras: Any
) -> SparseState:
    return SparseState(
        count=optax.safe_increment(state.count),
        masks=plan.layout.merge(changed.masks, state.masks),
        key=state.key,
        inner=inner,
        extras=state.extras
        | {"status": changed.status, "waits": changed.waits}
        | extras,
    )
