"""What all ways of changing the gradients of a loss have in common.

Each takes an objective that is differentiated, traces its loss, evaluates that anew
with something else at some sites, and remembers the keys of its steps. The state of
each is a tuple with the fields ``step``, ``key``, ``repeated`` and ``inner``.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core

from swapjax.backward.address import Site, trace_tree
from swapjax.backward.rewrite import Replace, evaluate
from swapjax.core.objective import Objective, as_objective, value_and_grad
from swapjax.core.types import LossFn, Params

_FRESH = "give each step one of its own, as jax.random.fold_in(key, step)"


def take_loss(loss_fn: LossFn | Objective) -> Objective:
    """Take a loss that is differentiated, plain or not.

    Raises:
        ValueError: for what is no function, and a gradient that is no derivative.
    """
    if not callable(loss_fn) and not isinstance(loss_fn, Objective):
        raise ValueError(
            f"loss_fn must be a function of params and a batch, got {loss_fn!r}"
        )
    inner = as_objective(loss_fn)
    if inner.gradient is not None:
        raise ValueError(
            "loss_fn: an objective with a gradient of its own is not differentiated, "
            "and so there is nothing to leave out; give its loss"
        )
    return inner


def require_state(state: Any, kind: type) -> None:
    """Raise for the state of something else.

    Raises:
        ValueError: naming both kinds.
    """
    if not isinstance(state, kind):
        raise ValueError(
            f"state must be a {kind.__name__}, as init returns it, got "
            f"{type(state).__name__}"
        )


def loss_alone(
    inner: Objective, kind: type, params: Params, state: Any, batch: Any, key: Any
) -> tuple[jax.Array, Any, dict[str, jax.Array]]:
    """Compute the loss, whose gradients alone are changed."""
    require_state(state, kind)
    value, new, aux = inner.loss(params, state.inner, batch, key)
    return value, state._replace(inner=new), aux


def reported(aux: dict[str, Any], told: dict[str, Any]) -> dict[str, Any]:
    """Join what the inner objective reports and what is told of the way back.

    Raises:
        ValueError: for a name that both have.
    """
    both = sorted(told.keys() & aux.keys())
    if both:
        raise ValueError(
            f"loss_fn: the objective reports what is reported here, {', '.join(both)}"
        )
    return {**aux, **told}


class Traced(NamedTuple):
    """The program of a loss, and the tree of what it returns."""

    program: core.ClosedJaxpr
    structure: Any


def trace_loss(inner: Objective, params: Params, data: tuple[Any, Any, Any]) -> Traced:
    """Trace a loss; data are its state, the batch and the key."""

    def whole(params: Params, data: tuple) -> tuple:
        return inner.loss(params, *data)

    return Traced(*trace_tree(whole, params, data))


class Passed(NamedTuple):
    """What comes of a pass back.

    Attributes:
        gradients: in the tree of params.
        loss: ``float[]``.
        inner: the state of the inner objective for the next step.
        aux: what it reports.
        told: the cotangents of the probes of sites, by name.
    """

    gradients: Params
    loss: jax.Array
    inner: Any
    aux: dict[str, jax.Array]
    told: dict[str, jax.Array]


def pass_back(
    traced: Traced,
    params: Params,
    data: tuple[Any, Any, Any],
    sites: Sequence[Site],
    extras: Mapping[str, Any],
    replace: Replace,
) -> Passed:
    """Differentiate a loss, with something else at some sites.

    Args:
        traced: for these params and data.
        params: of the network.
        data: state of the inner objective, batch and key.
        sites: of one equation, the first is met first on the way back.
        extras: for each by name; of one with a field ``probe`` that is differentiated.
        replace: does it, see `swapjax.backward.rewrite.evaluate`.
    """
    probes = {name: x.probe for name, x in extras.items() if hasattr(x, "probe")}

    def loss(both: tuple[Params, dict[str, jax.Array]]) -> tuple[jax.Array, tuple]:
        params, probes = both
        own = {name: extras[name]._replace(probe=x) for name, x in probes.items()}
        leaves = jax.tree.leaves((params, data))
        values = evaluate(traced.program, leaves, sites, {**extras, **own}, replace)
        value, *rest = jax.tree.unflatten(traced.structure, values)
        return value, tuple(rest)

    (value, (inner, aux)), (gradients, told) = value_and_grad(loss, (params, probes))
    return Passed(gradients, value, inner, aux, told)


def keys_before() -> dict[str, jax.Array]:
    """Make what a state remembers of keys before the first step."""
    return {
        "step": jnp.zeros((), jnp.int32),
        "key": jnp.zeros(2, jnp.uint32),
        "repeated": jnp.zeros((), jnp.int32),
    }


def keys_after(state: Any, key: jax.Array) -> dict[str, jax.Array]:
    """Make what a state remembers of keys after a step with this one."""
    own = _fingerprint(key)
    same = jnp.all(own == state.key) & (state.step > 0)
    return {
        "step": state.step + 1,
        "key": own,
        "repeated": state.repeated + same.astype(jnp.int32),
    }


def require_new_key(state: Any, key: jax.Array) -> None:
    """Raise for the key of the step before, where values are known.

    Raises:
        ValueError: for that key.
    """
    values = (state.key, state.step, key)
    if any(isinstance(x, jax.core.Tracer) for x in values):
        return
    if int(state.step) and bool(jnp.all(_fingerprint(key) == state.key)):
        raise ValueError(f"key: it is that of the step before; {_FRESH}")


def _fingerprint(key: jax.Array) -> jax.Array:
    """Make of a key, of any kind, ``uint32[2]`` that tell it from others."""
    return jax.random.bits(key, (2,), jnp.uint32)


def require_fresh_keys(state: Any) -> None:
    """Raise if a key was used for two steps in a row.

    With one key the same is left out, and what is without bias over keys is not
    averaged over steps. Inside compiled functions nothing can be raised, and so the
    state counts; `swapjax.training.fit` gives every step a key of its own.

    Args:
        state: a `BackwardState`, `VcasState` or `BlocksState` with known values.

    Raises:
        ValueError: telling how often.
    """
    repeated = int(state.repeated)
    if repeated:
        raise ValueError(
            f"key: {repeated} of {int(state.step)} steps had the key of the step "
            f"before; {_FRESH}"
        )
