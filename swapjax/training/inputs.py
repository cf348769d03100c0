"""What sparse training is given: arguments, keys, params, states and gradients."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from swapjax.core import trees
from swapjax.core.checks import require_count, take_key
from swapjax.core.trees import is_trained
from swapjax.core.types import Masks, Params
from swapjax.sparsity.schedules import Schedule
from swapjax.training.rule import Rule
from swapjax.training.state import SparseState


def require_optimizer(optimizer: Any) -> None:
    """Raise for what is no transformation of Optax."""
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise ValueError(
            "optimizer must be an Optax transformation, such as optax.adam(1e-3), got "
            f"{optimizer!r}"
        )


def check_arguments(
    optimizer: Any, rule: Rule, schedule: Schedule | None, steps: int | None
) -> None:
    """Raise for arguments of `sparse` that are of another kind, or do not fit."""
    require_optimizer(optimizer)
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


def take_seed(
    rule: Rule, key: jax.Array | None
) -> tuple[str | None, Any, Callable[[jax.Array], jax.Array | None]]:
    """Split a key into its kind, its numbers, and a function that joins them again.

    Raises:
        ValueError: for other than one key, and for none where the rule needs one.
    """
    if key is None:
        if rule.needs_key:
            raise ValueError(
                f"key: {rule.name} draws at random and needs a PRNG key, got None"
            )
        # States are alike with and without a key.
        return None, np.zeros(2, np.uint32), lambda _: None
    # On the host where it can be: a loop that donates its state must not take the key.
    kind, seed = take_key(key, traced=True)
    return kind, seed, functools.partial(jax.random.wrap_key_data, impl=kind)


def take_arrays(params: Params) -> Params:
    """Take the arrays of params, numbers among them; all else becomes None.

    So a whole Equinox module will do as its arrays alone, as Equinox filters them.
    """

    def take(leaf: Any) -> Any:
        if hasattr(leaf, "shape") and hasattr(leaf, "dtype"):
            return leaf
        number = isinstance(leaf, bool | int | float | complex)
        return jnp.asarray(leaf) if number else None

    return jax.tree.map(take, params)


def check_state(state: Any, rule: Rule, within: Masks | None) -> None:
    """Raise for what is no state of this rule."""
    if not isinstance(state, SparseState):
        raise ValueError(
            f"state: must be what tx.init gave, got a {type(state).__name__}"
        )
    wanted = {
        "dense": rule.straight_through,
        "within": within is not None,
        "waits": True,
    }
    missing = [name for name in wanted if wanted[name] and name not in state.extras]
    if missing:
        raise ValueError(
            f"state: must be of the same rule and arguments, {rule} keeps "
            f"{' and '.join(missing)}, got {', '.join(sorted(state.extras))}"
        )


def check_mask_step(given: Any) -> None:
    """Raise for what cannot choose a program when it is compiled."""
    if not isinstance(given, bool | None):
        raise ValueError(
            "mask_step must be True, False or None when the program is compiled, got "
            f"{given!r}; under jax.jit name it in static_argnames"
        )


def check_gradients(gradients: Params, params: Params) -> None:
    """Raise unless gradients are of params, naming the first leaf that is not.

    Raises:
        ValueError: for other leaves, shapes or kinds of numbers. Their precision may be
            another, and whatever stands for a leaf that has no gradient will do.
    """
    wanted: object = jax.tree.structure(params)
    got: object = jax.tree.structure(gradients)
    names, found = trees.paths(params), trees.paths(gradients)
    if wanted != got:
        missing = [name for name in names if name not in found]
        beyond = [name for name in found if name not in names]
        raise ValueError(
            "gradients: must have the tree of params"
            + (f", {missing[0] or 'the array'} is missing" if missing else "")
            + (f", params have no {beyond[0] or 'bare array'}" if beyond else "")
            + f": wanted {wanted}, got {got}"
        )
    pairs = zip(jax.tree.leaves(gradients), jax.tree.leaves(params), strict=True)
    for path, (gradient, param) in zip(names, pairs, strict=True):
        if not is_trained(param):
            continue
        name = path or "the array"
        if jnp.shape(gradient) != jnp.shape(param):
            raise ValueError(
                f"gradients: {name} must have the shape {jnp.shape(param)} of params, "
                f"got {jnp.shape(gradient)}"
            )
        kind = jnp.result_type(gradient)
        real = jnp.issubdtype(kind, jnp.floating)
        if not real and jnp.issubdtype(param.dtype, jnp.floating):
            raise ValueError(
                f"gradients: {name} must hold floats, as params do, got {kind}"
            )
