"""A mask step: whether it is due, what the rule chooses, and what it met."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from swapjax.core.members import any_member
from swapjax.core.trees import is_trained
from swapjax.core.types import Leaves, Masks, Params
from swapjax.training.mask_schedule import Timetable
from swapjax.training.optimizer_state import forget
from swapjax.training.rule import MaskStep, Rule
from swapjax.training.state import examine, examine_choice


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
        status: the worst `swapjax.Status` so far, ``int32[leaves]``.
        waits: whether a mask step is postponed.
        made: whether this update was a mask step.
    """

    masks: Leaves
    status: jax.Array
    waits: jax.Array
    made: jax.Array


def changer(
    rule: Rule, table: Timetable, optimizer: optax.GradientTransformationExtraArgs
) -> Callable[[Before], Changed]:
    """Make the function that changes masks where an update is a mask step.

    A mask step that comes with gradients that are not finite, and that the optimizer
    answers by no move at all, as `optax.apply_if_finite` does, waits for the next
    update: nothing would be learned about what to grow, and nothing has moved since. At
    the last update of all, if it is known, it waits no more; nothing grows there.
    """

    def change(before: Before) -> Changed:
        masks = table.plan.layout.leaf_masks(before.masks)
        t = before.count + 1
        due = table.is_mask_step(t) | before.waits

        def decide() -> Changed:
            skipped = _is_skipped(due)
            last = jnp.asarray(False) if table.steps is None else t >= table.steps
            new, status = _choose(rule, table, before, masks, skipped & last)
            waits = due & skipped & ~last
            made = due & ~waits
            # Members of an ensemble may differ.
            new = tuple(jnp.where(made, n, m) for n, m in zip(new, masks, strict=True))
            status = jnp.where(made, status, before.status)
            return Changed(new, status, waits, made)

        def _is_skipped(due: jax.Array) -> jax.Array:
            broken = due & ~_are_finite(before.gradients)
            return jax.lax.cond(
                any_member(broken),
                lambda: broken & _is_still(optimizer, table, before, masks),
                lambda: broken,
            )

        # Without a mask step this costs copies of the masks, which XLA does faster on a
        # CPU than anything that the branch could work out instead.
        same = Changed(masks, before.status, due, due)
        return jax.lax.cond(any_member(due), decide, lambda: same)

    # Outside of jit, too, it compiles once.
    compiled = jax.jit(change, inline=True)

    def run(before: Before) -> Changed:
        if table.last < 0:
            masks = table.plan.layout.leaf_masks(before.masks)
            never = jnp.zeros_like(before.waits)
            return Changed(masks, before.status, before.waits, never)
        plain = all(_is_array(x) for x in jax.tree.leaves(before.extra))
        return (compiled if plain else change)(before)

    return run


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
    weights = layout.split(before.params)
    slopes = tuple(
        jnp.where(blind & ~jnp.isfinite(g), jnp.zeros((), g.dtype), g)
        for g in layout.split(before.gradients)
    )
    step = MaskStep(
        weights=only(masks, weights) if before.dense is None else before.dense,
        gradients=slopes,
        masks=masks,
        within=None if before.within is None else layout.leaf_masks(before.within),
        budget=budget,
        fraction=fraction,
        key=None if before.key is None else jax.random.fold_in(before.key, t),
    )
    # What masks hide from an optimizer matters to a rule that grows by it only.
    read = slopes if rule.grows == "gradient" else only(masks, slopes)
    met = examine(rule, t, masks, weights, step.weights, read)
    new = rule.masks_at(step)
    most = tuple(budget.keep[g] for g in range(len(table.plan.keep)))
    chosen = examine_choice(new, most, step.within)
    return new, jnp.maximum(jnp.maximum(met, chosen), before.status)


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
