"""Sparse training as an Optax transformation around any other."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from swapjax.core import sharding
from swapjax.core.members import differ_like, own_seed
from swapjax.core.types import Masks, Params
from swapjax.sparsity import masks as masking
from swapjax.sparsity.bounds import prunable
from swapjax.sparsity.plan import Plan
from swapjax.sparsity.planned import require_one
from swapjax.sparsity.schedules import Schedule
from swapjax.training.first_masks import first_masks
from swapjax.training.inputs import (
    check_arguments,
    check_gradients,
    check_mask_step,
    check_state,
    take_arrays,
    take_seed,
)
from swapjax.training.mask_schedule import Timetable, make
from swapjax.training.mask_step import Change, changer
from swapjax.training.passed_over import pass_over_constants
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
    key: jax.Array | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Train a sparse network with any Optax optimizer.

    Nothing else changes in a training loop: the updates move params where masks are
    True and make them exactly zero elsewhere, in every dtype. The optimizer sees
    gradients of active weights only, and the moments of all others are reset. A weight
    that comes back starts at zero. Leaves that hold no floats stay as they are.

    ========================= =======================================================
    update                    what happens
    ========================= =======================================================
    0                         ``init`` makes the first masks; params are still dense
                              unless you call ``swapjax.apply_masks(params, masks)``
    1                         params are zero outside of the masks from here on
    start, start + every, ... a mask step, till the schedule's end: first the rule
                              chooses masks by params and gradients, then the optimizer
                              moves what these leave; with `swapjax.ste` it moves the
                              dense weights first
    ========================= =======================================================

    A mask step whose gradients are not finite, and which the optimizer skips as
    `optax.apply_if_finite` does, is made up for at the next update.

    The program of an update finds out from its state whether a mask step is due. Two
    programs, one without mask steps, are faster: ``tx.update(..., mask_step=False)``
    leaves them out, and one that is due there waits for the next update that makes it;
    ``mask_step=True`` makes it if it is due, and changes no mask otherwise.
    `until_mask_step` tells which to take next. The argument passes through the wrappers
    of Optax as others do, and must be known when a program is compiled.

    Gradients must be dense where a rule grows entries by them: take the gradient at
    params as they are, and do not multiply by masks in the loss. `check_state` finds
    this mistake.

    Args:
        optimizer: any transformation. Weight decay and learning rates belong here. A
            norm to clip by is that of active weights here, of all weights in a chain
            before `sparse`.
        rule: as `swapjax.granet` makes it, or a `swapjax.training.Rule` of your own.
        sparsity: to reach, of what the names of leaves tell to be matrices; a plan made
            with a loss does not go by names.
        plan: instead of a sparsity, by `swapjax.plan`, made for the tree that ``init``
            will get.
        schedule: when masks change, and how far each time: `swapjax.cubic` and others,
            with a start and an end. `swapjax.static` needs none.
        steps: updates in all. With it, a schedule that ends later is an error, and
            rules like `swapjax.granet` change masks until then instead of stopping with
            the schedule. Nothing grows at the last update, since no other would train
            it.
        within: masks outside of which nothing is ever active, to train a sparse network
            on. A group of a pattern n:m with fewer than n entries keeps what it has,
            and so does a block of which some are gone.
        key: a JAX PRNG key; the same key gives the same run. Only rules that draw at
            random need one: those that start from random masks or grow at random.
            Members of a ``vmap`` that share it draw by the key folded with their
            number, devices of a ``shard_map`` with theirs.

    Returns:
        A transformation whose state holds a `SparseState`. Its ``update`` needs params.
        Masks are sharded as params are. ``init`` and ``update`` raise ValueError for a
        plan, a state, gradients or `within` of other params, for masks that are False
        in a leaf that the plan does not prune, for params that are missing, and for a
        ``mask_step`` that is not True, False or None.

    Raises:
        ValueError: for an optimizer, rule, schedule or key of the wrong kind, both or
            neither of sparsity and plan, a sparsity that is not a number in [0, 1), a
            rule without a schedule or with one for stages, a schedule that ends after
            training, and a rule without the key that it needs.

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
    check_arguments(optimizer, rule, schedule, steps)
    require_one(sparsity, plan)
    wrapped = pass_over_constants(optimizer)
    kind, seed, to_key = take_seed(rule, key)

    @functools.lru_cache(maxsize=8)
    def of(treedef: Any, shapes: tuple) -> tuple[Timetable, Change]:
        like = treedef.unflatten([jax.ShapeDtypeStruct(*shape) for shape in shapes])
        table = make(rule, like, sparsity, plan, schedule, steps, within)
        return table, changer(rule, table, wrapped)

    def network(params: Params) -> tuple[Timetable, Change]:
        leaves, treedef = jax.tree.flatten(params)
        return of(treedef, tuple((x.shape, x.dtype) for x in leaves))

    def init(params: Params) -> SparseState:
        params = take_arrays(params)
        if not jax.tree.leaves(params):
            return _empty_state(rule, wrapped, params, within, seed)
        own = jnp.asarray(seed) if kind is None else own_seed(kind, seed, params)
        table, _ = network(params)
        return _first_state(rule, table, wrapped, params, within, own, to_key)

    def update(
        gradients: Params,
        state: SparseState,
        params: Params | None = None,
        *,
        mask_step: bool | None = None,
        **extra: Any,
    ) -> tuple[Params, SparseState]:
        if params is None:
            raise ValueError(
                "params: sparse training needs them; call tx.update(gradients, state, "
                "params)"
            )
        check_mask_step(mask_step)
        check_state(state, rule, within)
        params = take_arrays(params)
        if not jax.tree.leaves(params):
            # Who asks with nothing wants to know how often this is called.
            return gradients, state._replace(count=optax.safe_increment(state.count))
        check_gradients(gradients, params)
        table, change = network(params)
        masking.check(state.masks, params, "state.masks")
        step = straight_through if rule.straight_through else masked
        key = to_key(state.key)
        given = Update(
            rule,
            table,
            change,
            wrapped,
            gradients,
            state,
            params,
            key,
            extra,
            mask_step,
        )
        return step(given)

    return optax.GradientTransformationExtraArgs(init, update)


def _empty_state(
    rule: Rule,
    optimizer: optax.GradientTransformationExtraArgs,
    params: Params,
    within: Masks | None,
    seed: np.ndarray,
) -> SparseState:
    """Make a state of params without leaves.

    Optax finds out by such a tree what of a state belongs to params.
    """
    count = jnp.zeros((), jnp.int32)
    alike = {"within": within is not None, "dense": rule.straight_through}
    extras: dict[str, Any] = {name: params for name, there in alike.items() if there}
    extras |= {"status": jnp.zeros(0, jnp.int32)}
    extras |= {"last": count, "first": count, "every": count}
    extras["waits"] = jnp.zeros((), bool)
    inner = optimizer.init(params)
    return SparseState(count, params, jnp.asarray(seed), inner, extras)


def _first_state(
    rule: Rule,
    table: Timetable,
    optimizer: optax.GradientTransformationExtraArgs,
    params: Params,
    within: Masks | None,
    seed: jax.Array,
    to_key: Callable[[jax.Array], jax.Array | None],
) -> SparseState:
    """Make the state before the first update, its arrays placed as params are."""
    weights = table.plan.layout.split(params)
    inside = None
    if within is not None:
        with jax.ensure_compile_time_eval():
            inside = prunable(within, params, table.plan, "within")
    first = first_masks(rule, table, params, inside, to_key(seed))
    extras: dict[str, Any] = {
        "status": jnp.zeros(len(weights), jnp.int32),
        "last": jnp.asarray(table.last, jnp.int32),
        "first": jnp.asarray(table.first, jnp.int32),
        "every": jnp.asarray(table.every, jnp.int32),
        "waits": jnp.zeros((), bool),
    }
    # Copies: a loop may donate params and this state, not what others hold.
    copy = functools.partial(jax.tree.map, jnp.array)
    if inside is not None:
        extras["within"] = table.plan.layout.masks(copy(inside))
    if rule.straight_through:
        extras["dense"] = alone(table.plan, copy(weights), params)
    masks = sharding.put_like(table.plan.layout.masks(copy(first)), params)
    count, inner = jnp.zeros((), jnp.int32), optimizer.init(params)
    made = SparseState(count, masks, jnp.array(seed), inner, extras)
    return differ_like(sharding.put_beside(made, params), params)
