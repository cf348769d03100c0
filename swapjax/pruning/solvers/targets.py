"""Where the projections of the pruned weights should go: the variants of SWAP.

A target turns the projections x and y into a `Fit`, the quadratic that is solved while
the coupling is held. See `swap` for what each is good for.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from swapjax.pruning.solvers import sinkhorn, transport
from swapjax.pruning.solvers.least_squares import Fit
from swapjax.pruning.solvers.transport import Coupling


class State(NamedTuple):
    """What a target carries from one coupling to the next.

    Attributes:
        epsilon: the regularisation in use, in units of the cost; 0 where there is none.
        unit: the variance of y, in which epsilon is asked for and told.
        couplings: couplings by name, the warm starts of the next ones.
    """

    epsilon: jax.Array
    unit: jax.Array
    couplings: dict[str, Coupling]


class Target(NamedTuple):
    """A variant of the objective.

    Attributes:
        name: as in ``swap(target=...)``.
        prepare: ``y -> state``, once a stage.
        fit: ``(state, x, y) -> (fit, state)``, at every new x.
        moves: whether the fit depends on x, so that couplings and weights alternate.
    """

    name: str
    prepare: Callable[[jax.Array], State]
    fit: Callable[[State, jax.Array, jax.Array], tuple[Fit, State]]
    moves: bool


def make(
    name: str,
    *,
    epsilon: float | None,
    perplexity: float | None,
    rho: float,
    max_iterations: int,
) -> Target:
    """Make a target by name; the arguments are those of `swap`, already checked.

    One of epsilon and perplexity is None.
    """

    def prepare(y: jax.Array) -> State:
        unit = jnp.var(y)
        unit = jnp.where(unit > 0, unit, 1)
        if perplexity is not None:
            return State(sinkhorn.epsilon_for_perplexity(y, perplexity), unit, {})
        return State(jnp.asarray(epsilon, y.dtype) * unit, unit, {})

    couple = functools.partial(_couple, epsilon=epsilon, max_iterations=max_iterations)

    def identity(state: State, x: jax.Array, y: jax.Array) -> tuple[Fit, State]:
        del x
        return Fit(y, None, _zero(y)), state

    def exact(state: State, x: jax.Array, y: jax.Array) -> tuple[Fit, State]:
        coupling, couplings = couple(x, y, state, "xy")
        value = 0.5 * y.shape[0] * _value(coupling)
        return _at(x, coupling.targets, value), state._replace(couplings=couplings)

    def debiased(state: State, x: jax.Array, y: jax.Array) -> tuple[Fit, State]:
        across, couplings = couple(x, y, state, "xy")
        own, couplings = couple(x, x, state._replace(couplings=couplings), "xx")
        yy = couplings["yy"] if "yy" in couplings else couple(y, y, state, "yy")[0]
        value = _value(across) - 0.5 * _value(own) - 0.5 * _value(yy)
        fit = _at(x, across.targets + x - own.targets, 0.5 * y.shape[0] * value)
        return fit, state._replace(couplings={**couplings, "yy": yy})

    def hybrid(state: State, x: jax.Array, y: jax.Array) -> tuple[Fit, State]:
        coupling, couplings = couple(x, y, state, "xy")
        paired = jnp.mean(jnp.square(x - y))
        value = 0.5 * y.shape[0] * ((1 - rho) * paired + rho * _value(coupling))
        targets = (1 - rho) * y + rho * coupling.targets
        return _at(x, targets, value), state._replace(couplings=couplings)

    def prepare_smoothed(y: jax.Array) -> State:
        state = prepare(y)
        if epsilon == 0:
            coupling = transport.identity(y, y, return_plan=True)
        elif epsilon is not None and math.isinf(epsilon):
            coupling = transport.uniform(y, y, return_plan=True)
        else:
            coupling = sinkhorn.self_plan(
                y, state.epsilon, max_iterations=max_iterations
            )
        return state._replace(couplings={"yy": coupling})

    def smoothed(state: State, x: jax.Array, y: jax.Array) -> tuple[Fit, State]:
        del x
        plan = state.couplings["yy"].plan
        assert plan is not None
        return Fit(y, y.shape[0] * plan, _zero(y)), state

    if name == "identity":
        none = lambda y: State(_zero(y), _zero(y), {})  # noqa: E731
        return Target(name, none, identity, moves=False)
    if name == "smoothed":
        return Target(name, prepare_smoothed, smoothed, moves=False)
    moving: dict[str, Any] = {"exact": exact, "debiased": debiased, "hybrid": hybrid}
    return Target(name, prepare, moving[name], moves=True)


def none() -> Target:
    """Make the target of linear regression: y, whatever x is."""
    return make("identity", epsilon=0.0, perplexity=None, rho=0.0, max_iterations=1)


def _couple(
    x: jax.Array,
    y: jax.Array,
    state: State,
    key: str,
    *,
    epsilon: float | None,
    max_iterations: int,
) -> tuple[Coupling, dict[str, Coupling]]:
    """Couple x and y, and keep the coupling under a name as the next warm start."""
    if epsilon == 0:
        coupling = transport.in_order(x, y)
    elif epsilon is not None and math.isinf(epsilon):
        coupling = transport.uniform(x, y)
    else:
        before = state.couplings.get(key)
        coupling = sinkhorn.entropic(
            x,
            y,
            state.epsilon,
            init=None if before is None else before.potentials,
            max_iterations=max_iterations,
        )
    return coupling, {**state.couplings, key: coupling}


def describe(state: State) -> dict[str, jax.Array]:
    """Report the couplings in use: scalars, the worst of several."""
    couplings = list(state.couplings.values())
    if not couplings:
        return {}
    return {
        "epsilon": state.epsilon / state.unit,
        "perplexity": couplings[0].perplexity,
        "sinkhorn_iterations": jnp.stack([c.iterations for c in couplings]).max(),
        "marginal_error": jnp.stack([c.marginal_error for c in couplings]).max(),
        "transport_converged": jnp.stack([c.converged for c in couplings]).all(),
    }


def _value(coupling: Coupling) -> jax.Array:
    return coupling.cost + coupling.divergence


def _at(x: jax.Array, targets: jax.Array, value: jax.Array) -> Fit:
    """Make the fit with these targets that takes this value at x."""
    constant = value - 0.5 * jnp.sum(jnp.square(x - targets))
    return Fit(targets, None, constant)


def _zero(x: jax.Array) -> jax.Array:
    return jnp.zeros((), x.dtype)
