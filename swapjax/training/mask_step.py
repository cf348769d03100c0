"""A mask step: whether it is due, what the rule chooses, and what it met."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from swapjax.core.members import any_member
from swapjax.core.trees import is_trained
from swapjax.core.types import Leaves, Masks, Params
from swapjax.sparsity.budget import Budget
from swapjax.sparsity.cutting import apart, cut
from swapjax.sparsity.layout import Layout
from swapjax.training.examine import Met, examine, examine_choice
from swapjax.training.mask_schedule import Timetable
from swapjax.training.optimizer_state import forget
from swapjax.training.rule import MaskStep, Rule, is_by_entry

# Entries that are laid end to end: of 3 million copies take a quarter of a mask step.
_MOST = 2**20


class Before(NamedTuple):
    """What a mask step reads: arrays only, those before the update.

    Attributes:
        count: updates so far.
        masks: with the tree of params.
        status: the worst `swapjax.Status` so far, ``int32[leaves]``.
        waits: whether a mask step has been postponed.
        within: where entries may be active, or None.
        params: all of them.
        dense: the prunable leaves of dense weights behind params, after their update;
            None for rules without.
        gradients: at params, of all of them.
        inner: the state of the optimizer.
        moves: the updates of dense weights; None for rules without.
        key: of the run, or None.
        extra: further arguments of the optimizer.
    """

    count: jax.Array  # type: ignore[assignment]  # as that of the state
    masks: Masks
    status: jax.Array
    waits: jax.Array
    within: Masks | None
    params: Params
    dense: Leaves | None
    gradients: Params
    inner: Any
    moves: Params | None
    key: jax.Array | None
    extra: dict[str, Any]


class Changed(NamedTuple):
    """Masks after an update. Leaves are prunable ones.

    Attributes:
        masks: the active entries from now on.
        stays: those of them that have a weight. New ones have none, and params are
            zero there anyway, but before the first update, which may find them dense.
        inner: the state of the optimizer, without the moments of new ones; None for
            rules with dense weights, whose moments are those of all.
        status: the worst `swapjax.Status` so far, ``int32[leaves]``.
        waits: whether a mask step is postponed.
        made: whether this update was a mask step.
    """

    masks: Leaves
    stays: Leaves
    inner: Any
    status: jax.Array
    waits: jax.Array
    made: jax.Array


Change = Callable[[Before, bool | None], Changed]


def changer(
    rule: Rule, table: Timetable, optimizer: optax.GradientTransformationExtraArgs
) -> Change:
    """Make the function that changes masks where an update is a mask step.

    A mask step that comes with gradients that are not finite, and that the optimizer
    answers by no move at all, as `optax.apply_if_finite` does, waits for the next
    update: nothing would be learned about what to grow, and nothing has moved since. At
    the last update of all, if it is known, it waits no more; nothing grows there. One
    that is due in a program without mask steps waits as well.

    Returns:
        ``(before, mask_step) -> Changed``: a program with the mask step for True,
        without it for False, and one that finds out when it runs for None.
    """
    layout = table.plan.layout
    dense = bool(table.is_mask_step(1))  # whether one may meet dense params

    def stay(before: Before, waits: jax.Array) -> Changed:
        masks = layout.leaf_masks(before.masks)
        inner = None if rule.straight_through else before.inner
        never = jnp.zeros_like(waits)
        return Changed(masks, masks, inner, before.status, waits, never)

    def decide(before: Before) -> Changed:
        masks = layout.leaf_masks(before.masks)
        t = before.count + 1
        due = table.is_mask_step(t) | before.waits
        skipped = _is_skipped(optimizer, table, before, masks, due)
        last = jnp.asarray(False) if table.steps is None else t >= table.steps
        new, status = _choose(rule, table, before, masks, skipped & last)
        waits = due & skipped & ~last
        made = due & ~waits
        # Members of an ensemble may differ.
        new = tuple(jnp.where(made, n, m) for n, m in zip(new, masks, strict=True))
        status = jnp.where(made, status, before.status)
        stays = tuple(n & m for n, m in zip(new, masks, strict=True))
        inner = None
        if not rule.straight_through:
            base = layout.merge(only(stays, layout.split(before.params)), before.params)
            inner = forget(optimizer, before.inner, layout.masks(stays), base)
        return Changed(new, stays if dense else new, inner, status, waits, made)

    def change(before: Before, mask_step: bool | None) -> Changed:
        if mask_step:
            return decide(before)
        due = table.is_mask_step(before.count + 1) | before.waits
        same = stay(before, due)
        if mask_step is False:
            return same
        return _where_due(any_member(due), decide, before, same, layout, dense)

    # Outside of jit, too, it compiles once.
    compiled = jax.jit(change, static_argnums=1, inline=True)

    def run(before: Before, mask_step: bool | None) -> Changed:
        if table.last < 0:
            return stay(before, before.waits)
        plain = all(_is_array(x) for x in jax.tree.leaves(before.extra))
        return (compiled if plain else change)(before, mask_step)

    return run


def _where_due(
    due: jax.Array,
    decide: Callable[[Before], Changed],
    before: Before,
    same: Changed,
    layout: Layout,
    dense: bool,
) -> Changed:
    """Decide if a mask step is due, for one member at least; else leave all as it is.

    A loop of one round or none, not `jax.lax.cond`: what it carries stays where it is
    in memory, where branches copy it. So it must read these arrays from what it
    carries, and nothing may read them afterwards from elsewhere.

    Args:
        due: whether it is.
        decide: makes the mask step.
        before: what there is.
        same: what is left if it is not due.
        layout: the prunable leaves.
        dense: whether masks of what stays are wanted beside the new ones.
    """

    def carried(changed: Changed) -> Changed:
        return changed if dense else changed._replace(stays=())

    def once(state: tuple[jax.Array, Changed]) -> tuple[jax.Array, Changed]:
        go, now = state
        own = before._replace(masks=layout.merge(now.masks, before.masks))
        if now.inner is not None:
            own = own._replace(inner=now.inner)
        return go & False, carried(decide(own))

    start = carried(same)._replace(inner=jax.lax.stop_gradient(same.inner))
    _, found = jax.lax.while_loop(lambda state: state[0], once, (due, start))
    # The loop has no derivative. What it leaves as it is has one.
    inner = jax.tree.map(_with_tangent, found.inner, same.inner)
    return found._replace(stays=found.stays or found.masks, inner=inner)


@jax.custom_jvp
def _with_tangent(x: jax.Array, like: jax.Array) -> jax.Array:
    """Give an array the tangent of another of its kind, which is not read otherwise."""
    del like
    return x


@_with_tangent.defjvp
def _(primals: tuple, tangents: tuple) -> tuple:
    return primals[0], tangents[1]


def _is_skipped(
    optimizer: optax.GradientTransformationExtraArgs,
    table: Timetable,
    before: Before,
    masks: Leaves,
    due: jax.Array,
) -> jax.Array:
    """Tell whether a mask step is due that the optimizer answers by no move at all."""
    broken = due & ~_are_finite(before.gradients)
    return jax.lax.cond(
        any_member(broken),
        lambda: broken & _is_still(optimizer, table, before, masks),
        lambda: broken,
    )


def only(masks: Leaves, leaves: Leaves) -> Leaves:
    """Set leaves to zero where masks are False, even where they are not finite."""
    return tuple(
        jnp.where(m, x, jnp.zeros((), x.dtype))
        for m, x in zip(masks, leaves, strict=True)
    )


def _choose(
    rule: Rule, table: Timetable, before: Before, masks: Leaves, blind: jax.Array
) -> tuple[Leaves, jax.Array]:
    """Let the rule choose masks, and examine what it met and chose.

    Args:
        rule: that chooses.
        table: the counts.
        before: what there is.
        masks: the leaves of those before.
        blind: whether gradients that are not finite are to be taken as zeros.
    """
    layout = table.plan.layout
    t = before.count + 1
    budget, fraction = table.at(t)
    seen = _seen(rule, budget, before, layout)
    if seen.is_flat:
        budget = dataclasses.replace(budget, stacking=seen.stacking, patterns=())
    weights, masks = seen.split(before.params), seen.pack(masks)
    slopes = tuple(
        jnp.where(blind & ~jnp.isfinite(g), jnp.zeros((), g.dtype), g)
        for g in seen.split(before.gradients)
    )
    within = None
    if before.within is not None:
        within = seen.pack(layout.leaf_masks(before.within))
    step = MaskStep(
        weights=only(masks, weights)
        if before.dense is None
        else seen.pack(before.dense),
        gradients=slopes,
        masks=masks,
        within=within,
        budget=budget,
        fraction=fraction,
        key=None if before.key is None else jax.random.fold_in(before.key, t),
    )
    # What masks hide from an optimizer matters to a rule that grows by it only.
    read = slopes if rule.grows == "gradient" else only(masks, slopes)
    met = examine(rule, t, Met(masks, weights, step.weights, read), seen)
    new = rule.masks_at(step)
    most = tuple(budget.keep[g] for g in range(len(table.plan.keep)))
    chosen = examine_choice(new, most, within, seen)
    if seen.is_flat:
        never = budget.keep[0] < 0
        new = cut(apart(new[0], never), layout.shapes, never)
    return new, jnp.maximum(jnp.maximum(met, chosen), before.status)


def _seen(rule: Rule, budget: Budget, before: Before, layout: Layout) -> Layout:
    """Choose how a rule sees the leaves: as one vector if it may, and if that pays."""
    if not is_by_entry(rule.choose) or layout.total > _MOST:
        return layout
    if budget.units is not None or any(budget.patterns):
        return layout
    weights, slopes = map(layout.split, (before.params, before.gradients))
    dtypes = {leaf.dtype for leaf in (*weights, *slopes, *(before.dense or ()))}
    if len(dtypes) > 1 or budget.layers.laid(weights) is None:
        return layout
    return layout.flat() or layout


def _is_still(
    optimizer: optax.GradientTransformationExtraArgs,
    table: Timetable,
    before: Before,
    masks: Leaves,
) -> jax.Array:
    """Tell whether the optimizer answers these gradients by no move at all."""
    moves = before.moves
    if moves is None:
        layout = table.plan.layout
        base, seen = (
            layout.merge(only(masks, layout.split(tree)), tree)
            for tree in (before.params, before.gradients)
        )
        memory = forget(optimizer, before.inner, before.masks, base)
        moves, _ = optimizer.update(seen, memory, base, **before.extra)
    return jnp.all(jnp.stack([jnp.all(u == 0) for u in _floats(moves)]))


def _are_finite(gradients: Params) -> jax.Array:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(g)) for g in _floats(gradients)]))


def _floats(tree: Params) -> list[jax.Array]:
    return [x for x in jax.tree.leaves(tree) if is_trained(x)]


def _is_array(x: Any) -> bool:
    return hasattr(x, "dtype") or isinstance(x, bool | int | float | complex)
