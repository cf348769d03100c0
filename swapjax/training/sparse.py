"""Sparse training as an Optax transformation around any other."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from swapjax.core import sharding, trees
from swapjax.core.checks import require_count, take_key
from swapjax.core.types import Masks, Params
from swapjax.sparsity import masks as masking
from swapjax.sparsity.bounds import prunable
from swapjax.sparsity.plan import Plan, require_one
from swapjax.sparsity.schedules import Schedule
from swapjax.training.first_masks import first_masks
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
    key: jax.Array | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Train a sparse network with any Optax optimizer.

    Nothing else changes in a training loop: the updates move params where masks are
    True and make them exactly zero elsewhere, in every dtype. The optimizer sees
    gradients of active weights only, and the moments of all others are reset; a weight
    that comes back starts at zero.

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

    Gradients must be dense where a rule grows entries by them: take the gradient at
    params as they are, and do not multiply by masks in the loss. `check_state` finds
    this mistake.

    Args:
        optimizer: any transformation. Weight decay and learning rates belong here. A
            norm to clip by is that of active weights here, of all weights in a chain
            before `sparse`.
        rule: as `swapjax.granet` makes it, or a `swapjax.training.Rule` of your own.
        sparsity: to reach, of leaves named ``kernel`` or ``weight`` of rank 2 or more.
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

    Returns:
        A transformation whose state holds a `SparseState`. Its ``update`` needs params.
        Masks are sharded as params are. ``init`` and ``update`` raise ValueError for a
        plan, a state, gradients or `within` of other params, for masks that are False
        in a leaf that the plan does not prune, and for params that are missing.

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
    _check(optimizer, rule, schedule, steps)
    require_one(sparsity, plan)
    wrapped = optax.with_extra_args_support(optimizer)
    to_key, seed = _take_key(rule, key)

    @functools.lru_cache(maxsize=8)
    def timetable_of(treedef: Any, shapes: tuple) -> Timetable:
        like = treedef.unflatten([jax.ShapeDtypeStruct(*shape) for shape in shapes])
        return make(rule, like, sparsity, plan, schedule, steps, within)

    def timetable(params: Params) -> Timetable:
        leaves, treedef = jax.tree.flatten(params)
        for path, leaf in zip(trees.paths(params), leaves, strict=True):
            if not hasattr(leaf, "shape"):
                raise ValueError(
                    f"params: {path} must be an array, got a {type(leaf).__name__}"
                )
        return timetable_of(treedef, tuple((x.shape, x.dtype) for x in leaves))

    def init(params: Params) -> SparseState:
        if not jax.tree.leaves(params):
            return _empty_state(rule, wrapped, params, within, seed)
        return _first_state(
            rule, timetable(params), wrapped, params, within, seed, to_key
        )

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
        _check_state(state, rule, within)
        table = timetable(params)
        masking.check(state.masks, params, "state.masks")
        _check_gradients(gradients, params)
        step = straight_through if rule.straight_through else masked
        key = to_key(state.key)
        return step(Update(rule, table, wrapped, gradients, state, params, key, extra))

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
    extras |= {"status": jnp.zeros(0, jnp.int32), "last": count}
    inner = optimizer.init(params)
    return SparseState(count, params, jnp.asarray(seed), inner, extras)


def _first_state(
    rule: Rule,
    table: Timetable,
    optimizer: optax.GradientTransformationExtraArgs,
    params: Params,
    within: Masks | None,
    seed: np.ndarray,
    to_key: Callable[[jax.Array], jax.Array | None],
) -> SparseState:
    """Make the state before the first update, its arrays placed as params are."""
    weights = table.plan.layout.split(params)
    inside = None
    if within is not None:
        with jax.ensure_compile_time_eval():
            inside = prunable(within, params, table.plan, "within")
    first = first_masks(rule, table, params, inside, to_key(jnp.asarray(seed)))
    extras: dict[str, Any] = {
        "status": jnp.zeros(len(weights), jnp.int32),
        "last": jnp.asarray(table.last, jnp.int32),
    }
    # Copies: a loop may donate params and this state, not what others hold.
    copy = functools.partial(jax.tree.map, jnp.array)
    if inside is not None:
        extras["within"] = table.plan.layout.masks(copy(inside))
    if rule.straight_through:
        extras["dense"] = alone(table.plan, copy(weights), params)
    masks = sharding.put_like(table.plan.layout.masks(copy(first)), params)
    count, inner = jnp.zeros((), jnp.int32), optimizer.init(params)
    made = SparseState(count, masks, jnp.asarray(seed), inner, extras)
    return sharding.put_beside(made, params)


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


def _check_state(state: Any, rule: Rule, within: Masks | None) -> None:
    if not isinstance(state, SparseState):
        raise ValueError(
            f"state: must be what tx.init gave, got a {type(state).__name__}"
        )
    wanted = {"dense": rule.straight_through, "within": within is not None}
    missing = [name for name in wanted if wanted[name] and name not in state.extras]
    if missing:
        raise ValueError(
            f"state: must be of the same rule and arguments, {rule} keeps "
            f"{' and '.join(missing)}, got {', '.join(sorted(state.extras))}"
        )


def _check_gradients(gradients: Params, params: Params) -> None:
    wanted: object = jax.tree.structure(params)
    got: object = jax.tree.structure(gradients)
    if wanted != got:
        raise ValueError(f"gradients: must have the tree of params {wanted}, got {got}")
    pairs = zip(jax.tree.leaves(gradients), jax.tree.leaves(params), strict=True)
    for path, (gradient, param) in zip(trees.paths(params), pairs, strict=True):
        if jnp.shape(gradient) != jnp.shape(param):
            raise ValueError(
                f"gradients: {path} must have the shape {jnp.shape(param)} of params, "
                f"got {jnp.shape(gradient)}"
            )


def _take_key(
    rule: Rule, key: jax.Array | None
) -> tuple[Callable[[jax.Array], jax.Array | None], np.ndarray]:
    """Split a key into a function that makes it from numbers, and these numbers."""
    if key is None:
        if rule.needs_key:
            raise ValueError(
                f"key: {rule.name} draws at random and needs a PRNG key, got None"
            )
        # States are alike with and without a key.
        return lambda _: None, np.zeros(2, np.uint32)
    # On the host: a loop that donates its state must not take the key with it.
    kind, seed = take_key(key)
    return functools.partial(jax.random.wrap_key_data, impl=kind), seed
