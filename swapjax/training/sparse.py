"""Sparse training as an Optax transformation around any other."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax

from swapjax.core import sharding, trees
from swapjax.core.checks import require_count, take_key
from swapjax.core.types import Leaves, Masks, Params
from swapjax.sparsity import masks as masking
from swapjax.sparsity.bounds import room
from swapjax.sparsity.budget import select_compiled
from swapjax.sparsity.plan import Plan
from swapjax.sparsity.schedules import Schedule
from swapjax.training.mask_schedule import Timetable, make
from swapjax.training.rule import Rule
from swapjax.training.state import SparseState
from swapjax.training.update import Update, alone, masked, straight_through


def sparse(
    optimizer: optax.GradientTransformation,
    rule: Rule,
    *,
    sparsity: float | None = None,
    plan: Plan | None = None,
    schedule: Schedule | None = None,
    steps: int | None = None,
    within: Masks | None = None,
    key: jax.Array,
) -> optax.GradientTransformationExtraArgs:
    """Train a sparse network with any Optax optimizer.

    Nothing else changes in a training loop: the updates that come back move params on
    the masks and set to exactly zero what leaves them, in every dtype. The optimizer
    sees gradients of active weights only, and its moments of others are as new; a
    weight that comes back starts at zero.

    ========================= =======================================================
    update                    what happens
    ========================= =======================================================
    0                         ``init`` makes the first masks; params are still dense
                              unless you call ``swapjax.apply_masks(params, masks)``
    1                         params are zero outside of the masks from here on
    start, start + every, ... a mask step: first the rule chooses masks by params and
    till the schedule's end   gradients, then the optimizer moves what these leave;
                              with `swapjax.ste` it has moved dense weights before
    ========================= =======================================================

    Gradients must be dense where a rule grows entries by them: take the gradient at
    params as they are, and do not multiply by masks in the loss. `check_state` tells of
    a mistake here.

    Args:
        optimizer: any transformation. Weight decay and learning rates belong here;
            clipping by a norm counts active weights only here, all of them outside.
        rule: as `swapjax.granet` makes it.
        sparsity: to reach, of leaves named ``kernel`` or ``weight`` of rank 2 or more.
        plan: instead of a sparsity, by `swapjax.plan`, made for the tree that ``init``
            will get.
        schedule: when masks change, and how far each time: `swapjax.cubic` and others,
            with a start and an end. `swapjax.static` needs none.
        steps: updates in all, to make sure that the schedule ends before, and for rules
            that go on after it, which without it end with the schedule. Nothing grows
            at the last update, with no other to train it.
        within: masks outside of which nothing is ever active, to train a sparse network
            on.
        key: a JAX PRNG key, for what is chosen at random; the same key gives the same
            run.

    Returns:
        A transformation whose state holds a `SparseState`. Its ``update`` needs params.
        Masks lie as params do. ``init`` and ``update`` raise ValueError for a plan, a
        state or `within` of other params, and for params that are missing.

    Raises:
        ValueError: for what is no optimizer, rule, schedule or key, a rule without a
            schedule or with one for stages, and a schedule that ends after training.

    Example:
        >>> import jax, jax.numpy as jnp, optax, swapjax
        >>> tx = swapjax.sparse(
        ...     optax.adam(1e-2), swapjax.rigl(), sparsity=0.75,
        ...     schedule=swapjax.constant(0, 80, every=10), key=jax.random.key(0))
        >>> params = {"kernel": jax.random.normal(jax.random.key(1), (8, 4))}
        >>> state = tx.init(params)
        >>> loss = lambda p: jnp.mean((jnp.ones((1, 8)) @ p["kernel"] - 1) ** 2)
        >>> @jax.jit
        ... def step(params, state):
        ...     updates, state = tx.update(jax.grad(loss)(params), state, params)
        ...     return optax.apply_updates(params, updates), state
        >>> for _ in range(100):
        ...     params, state = step(params, state)
        >>> swapjax.density(swapjax.masks_of(state)), int((params["kernel"] != 0).sum())
        (0.25, 8)
    """
    _check(optimizer, rule, schedule, steps)
    wrapped = optax.with_extra_args_support(optimizer)
    # On the host: a loop that donates its state must not take the key with it.
    kind, seed = take_key(key)
    to_key = functools.partial(jax.random.wrap_key_data, impl=kind)

    @functools.lru_cache(maxsize=8)
    def timetable_of(treedef: Any, shapes: tuple) -> Timetable:
        like = treedef.unflatten([jax.ShapeDtypeStruct(*shape) for shape in shapes])
        return make(rule, like, sparsity, plan, schedule, steps, within)

    def timetable(params: Params) -> Timetable:
        leaves, treedef = jax.tree.flatten(params)
        return timetable_of(treedef, tuple((x.shape, x.dtype) for x in leaves))

    def init(params: Params) -> SparseState:
        count = jnp.zeros((), jnp.int32)
        extras: dict[str, Any]
        if not jax.tree.leaves(params):
            # Optax finds out by such a tree what of a state belongs to params.
            alike = {"within": within is not None, "dense": rule.straight_through}
            extras = {name: params for name, there in alike.items() if there}
            extras |= {"status": jnp.zeros(0, jnp.int32), "last": count}
            inner = wrapped.init(params)
            return SparseState(count, params, jnp.asarray(seed), inner, extras)
        table = timetable(params)
        weights = table.plan.split(params)
        inside = None
        if within is not None:
            inside = table.plan.leaf_masks(trees.align(within, params))
        first = _first_masks(rule, table, params, inside, to_key(jnp.asarray(seed)))
        extras = {
            "status": jnp.zeros(len(weights), jnp.int32),
            "last": jnp.asarray(table.last, jnp.int32),
        }
        # Copies: a loop may donate params and this state, not what others hold.
        copy = functools.partial(jax.tree.map, jnp.array)
        if inside is not None:
            extras["within"] = table.plan.masks(copy(inside))
        if rule.straight_through:
            extras["dense"] = alone(table.plan, copy(weights), params)
        masks = sharding.put_like(table.plan.masks(copy(first)), params)
        inner = wrapped.init(params)
        made = SparseState(count, masks, jnp.asarray(seed), inner, extras)
        return sharding.put_beside(made, params)

    def update(
        gradients: Params,
        state: SparseState,
        params: Params | None = None,
        **extra: Any,
    ) -> tuple[Params, SparseState]:
        if params is None:
            raise ValueError(
                "params: sparse training needs them; call tx.update(gradients, state, "
                "params)"
            )
        if not isinstance(state, SparseState):
            raise ValueError(
                f"state: must be what tx.init gave, got a {type(state).__name__}"
            )
        table = timetable(params)
        masking.check(state.masks, params, "state.masks")
        step = straight_through if rule.straight_through else masked
        key = to_key(state.key)
        return step(Update(rule, table, wrapped, gradients, state, params, key, extra))

    return optax.GradientTransformationExtraArgs(init, update)


def _check(
    optimizer: Any, rule: Rule, schedule: Schedule | None, steps: int | None
) -> None:
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise ValueError(
            "optimizer must be an Optax transformation, such as optax.adam(1e-3), got "
            f"{optimizer!r}"
        )
    if not isinstance(schedule, Schedule | None):
        raise ValueError(
            "schedule must be what a function like swapjax.cubic(0, 1000, every=100) "
            f"returns, got {schedule!r}"
        )
    if not isinstance(rule, Rule):
        raise ValueError(
            f"rule must be what a function like swapjax.granet() returns, got {rule!r}"
        )
    if schedule is None:
        if rule.choose is not None:
            raise ValueError(
                f"schedule: {rule.name} changes masks; say when, as "
                "swapjax.cubic(start, end, every=100) does"
            )
        return
    if schedule.start is None:
        raise ValueError(
            f"schedule: {schedule} counts stages; for training give it a start and an "
            "end in updates"
        )
    if steps is not None:
        require_count("steps", steps)
        if schedule.end > steps:
            raise ValueError(
                f"schedule: {schedule} ends after update {schedule.end}, training "
                f"after {steps}"
            )


def _first_masks(
    rule: Rule, table: Timetable, params: Params, inside: Leaves | None, key: jax.Array
) -> Leaves:
    plan = table.plan
    weights = plan.split(params)
    if rule.masks is not None:
        return _given_masks(rule.masks, plan, params, inside)
    if table.begin is None:
        return inside or plan.everything()
    block = plan.block
    if rule.begin == "magnitude":
        strength = jnp.abs if block is None else block.strength
        scores: Leaves = tuple(map(strength, weights))
    else:
        keys = jax.random.split(jax.random.fold_in(key, 0), len(weights))
        scores = tuple(map(jax.random.uniform, keys, plan.grids))
    if block is not None and inside is not None:
        inside = tuple(map(block.whole, inside))
    chosen = select_compiled(scores, table.first_budget(), inside)
    return chosen if block is None else tuple(map(block.expand, chosen))


def _given_masks(
    given: Masks, plan: Plan, params: Params, inside: Leaves | None
) -> Leaves:
    masks = trees.align(given, params)
    masking.check(masks, params, "masks")
    leaves = plan.leaf_masks(masks)
    with jax.ensure_compile_time_eval():
        kept = sum(room(plan, leaves))
        if kept != plan.kept:
            raise ValueError(
                f"masks: keep {kept:,} of the {plan.total:,} prunable entries, the "
                f"sparsity of {float(plan.sparsity):g} keeps {plan.kept:,}"
            )
        pairs = zip(leaves, inside or leaves, strict=True)
        if any(jnp.any(leaf & ~limit) for leaf, limit in pairs):
            raise ValueError("masks: have entries outside of within")
    return leaves
