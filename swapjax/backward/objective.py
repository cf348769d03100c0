"""Pruned back-propagation as an objective for training loops."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from swapjax.backward import rates
from swapjax.backward.address import Site, require_apart, trace
from swapjax.backward.mark import find_marks
from swapjax.backward.operator import Inputs, Pruning, operate
from swapjax.backward.placement import sites_of
from swapjax.backward.rewrite import Do, evaluate
from swapjax.backward.state import (
    BackwardState,
    first_state,
    require_new_key,
    require_same_network,
)
from swapjax.backward.thresholds import DEVIATION, predicted
from swapjax.core import trees
from swapjax.core.checks import require_count, take_key
from swapjax.core.objective import Objective, as_objective, value_and_grad
from swapjax.core.types import LossFn, Params

Threshold = Literal["fifo", "exact"]
Kind = Literal["stochastic", "hard"]
_OWN = np.uint32(2**32 - 2)  # apart from what losses fold into their keys


class _Settings(NamedTuple):
    """The arguments of `prune_backward`, checked."""

    inner: Objective
    rate: rates.Rate | dict[str, rates.Rate]
    exact: bool
    depth: int
    hard: bool
    sites: str | tuple[str, ...]
    axis_name: Any
    per_site: bool


def prune_backward(
    loss_fn: LossFn | Objective,
    *,
    rate: float | Callable[[jax.Array], Any] | Mapping[str, Any] = 0.9,
    threshold: Threshold = "fifo",
    depth: int = 4,
    pruning: Kind = "stochastic",
    sites: str | Sequence[str] = "auto",
    axis_name: Any = None,
    per_site: bool = False,
) -> Objective:
    """Prune the gradients that a loss sends back through its network, at random.

    Stochastic activation-gradient pruning after Ye et al. (ECCV 2020,
    arXiv:1908.00173), re-derived from its abstract: at each site entries below a
    threshold become zero or the threshold, so that the expectation stays what it was.
    The loss itself and the forward pass do not change. See `prune_gradient`.

    Args:
        loss_fn: ``loss_fn(params, batch)``, the mean loss of a batch, or an
            `swapjax.training.Objective` that follows the derivative of its loss.
        rate: P, the fraction of entries below the threshold if they are normal, in
            [0, 1); less become zero, see `expected_zeros`. Or a schedule, ``step -> P``
            with steps from 0, as Optax has them; or either by regular expression, for
            the sites whose names it is found in; other sites are left out.
        threshold: ``"exact"`` finds the threshold from the gradient itself, in two
            passes over it; ``"fifo"`` predicts it as the mean of those of the last
            steps. Nothing is pruned until there are enough of them.
        depth: how many steps that is.
        pruning: ``"hard"`` sets to zero as many entries as ``"stochastic"`` does on
            average, the smallest ones: biased, to compare with.
        sites: ``"auto"`` finds them in the program of the loss; ``"marked"`` takes
            those of `site`; regular expressions take some of those that are found.
        axis_name: the axis of ``jax.shard_map`` or ``vmap`` over which devices share
            thresholds and statistics. Under ``jax.jit`` alone the compiler sees to it.
        per_site: whether the zeros of each site are reported, too.

    Returns:
        An objective for `swapjax.training.fit`, whose state is a `BackwardState`. It
        reports ``"zeros before"`` and ``"zeros after"``, fractions over all sites, and
        ``"prediction error"``, by how much thresholds were off, ``|tau' / tau - 1|``,
        on average over sites.

    Raises:
        ValueError: for arguments out of range. From a step or the first state: for a
            loss without any site, a name of two sites, a pattern that matches none or
            the same as another, the state of another network, a key that is that of
            the step before where that is known; and where the gradient is
            differentiated once more.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from swapjax import backward
        >>> from swapjax.training import fit
        >>> def loss_fn(params, x):
        ...     hidden = backward.site(x @ params["in"], "hidden")
        ...     return jnp.mean((jnp.tanh(hidden) @ params["out"] - x) ** 2)
        >>> params = {"in": jnp.full((4, 8), 0.1), "out": jnp.full((8, 4), 0.1)}
        >>> x = jax.random.normal(jax.random.key(0), (64, 4))
        >>> pruned = backward.prune_backward(loss_fn, rate=0.9, sites="marked")
        >>> fitted = fit(pruned, params, optax.sgd(0.1), x, epochs=2, batch=8,
        ...              key=jax.random.key(1))
        >>> 0.1 < fitted.history[-1].told["zeros after"] < 0.9
        True
    """
    for name, value, known in (
        ("threshold", threshold, ("fifo", "exact")),
        ("pruning", pruning, ("stochastic", "hard")),
    ):
        if value not in known:
            raise ValueError(
                f"{name} must be {' or '.join(map(repr, known))}, got {value!r}"
            )
    require_count("depth", depth)
    settings = _Settings(
        inner=_differentiable(loss_fn),
        rate=rates.take_rate(rate),
        exact=threshold == "exact",
        depth=depth,
        hard=pruning == "hard",
        sites=_take_sites(sites),
        axis_name=axis_name,
        per_site=per_site,
    )
    return Objective(
        loss=functools.partial(_loss, settings),
        init=functools.partial(_init, settings),
        gradient=functools.partial(_gradient, settings),
        replays=settings.inner.replays,
        check=settings.inner.check,
    )


def _differentiable(loss_fn: LossFn | Objective) -> Objective:
    """Take a loss that is differentiated, plain or not."""
    if not callable(loss_fn) and not isinstance(loss_fn, Objective):
        raise ValueError(
            f"loss_fn must be a function of params and a batch, got {loss_fn!r}"
        )
    inner = as_objective(loss_fn)
    if inner.gradient is not None:
        raise ValueError(
            "loss_fn: an objective with a gradient of its own is not differentiated, "
            "and so there is nothing to prune; give its loss"
        )
    return inner


def _take_sites(sites: str | Sequence[str]) -> str | tuple[str, ...]:
    if sites in ("auto", "marked"):
        return str(sites)
    patterns = (sites,) if isinstance(sites, str) else tuple(sites)
    if not patterns:
        raise ValueError(
            "sites must be 'auto', 'marked' or regular expressions, got none"
        )
    return patterns


def _init(settings: _Settings, params: Params, batch: Any) -> BackwardState:
    """Make the first state."""
    inner = settings.inner.init(params, batch)
    data = (inner, batch, jax.random.key(0))
    return first_state(_find(settings, params, data)[1], settings.depth, inner)


def _loss(
    settings: _Settings, params: Params, state: BackwardState, batch: Any, key: Any
) -> tuple[jax.Array, BackwardState, dict[str, jax.Array]]:
    """Compute the loss alone, in which nothing is pruned."""
    value, _, aux = settings.inner.loss(params, state.inner, batch, key)
    return value, state, aux


def _gradient(
    settings: _Settings, params: Params, state: BackwardState, batch: Any, key: Any
) -> tuple[Params, jax.Array, BackwardState, dict[str, jax.Array]]:
    """Compute the gradients of a step."""
    require_new_key(state, key)
    data = (state.inner, batch, key)
    program, sites, rate_of = _find(settings, params, data)
    require_same_network(state, sites, settings.depth)
    ways = {site.name: _pruning(settings, rate_of[site.name], key) for site in sites}
    given = {
        site.name: _inputs(settings, i, site, rate_of[site.name], state, key)
        for i, site in enumerate(sites)
    }
    shapes = jax.eval_shape(functools.partial(_whole, settings), params, data)

    def loss(both: tuple[Params, dict[str, jax.Array]]) -> tuple[jax.Array, tuple]:
        params, probes = both
        extras = {name: x._replace(probe=probes[name]) for name, x in given.items()}
        values = evaluate(
            program,
            jax.tree.leaves((params, data)),
            sites,
            extras,
            functools.partial(_replace, ways),
        )
        value, inner, aux = jax.tree.unflatten(jax.tree.structure(shapes), values)
        return value, (inner, aux)

    probes = {name: x.probe for name, x in given.items()}
    (value, (inner, aux)), (gradients, statistics) = value_and_grad(
        loss, (params, probes)
    )
    new = state.followed_by(key, statistics, inner)
    told = _told(settings, state, statistics)
    if told.keys() & aux.keys():
        raise ValueError(
            "loss_fn: the objective reports what is reported here, "
            f"{', '.join(sorted(told.keys() & aux.keys()))}"
        )
    return gradients, value, new, {**aux, **told}


def _whole(settings: _Settings, params: Params, data: Any) -> tuple:
    """Compute all that a step of the inner objective returns."""
    state, batch, key = data
    return settings.inner.loss(params, state, batch, key)


def _find(
    settings: _Settings, params: Params, data: Any
) -> tuple[Any, tuple[Site, ...], dict[str, rates.Rate]]:
    """Trace the loss, and find sites and the rate of each."""
    whole = functools.partial(_whole, settings)
    program = trace(whole, params, data)
    found: tuple[Site, ...]
    if settings.sites == "marked":
        found = find_marks(program.jaxpr)
        hint = "mark some with swapjax.backward.site"
    else:
        leaves = jax.tree.leaves(params)
        found = sites_of(program, trees.paths(params), list(map(jnp.shape, leaves)))
        hint = (
            "the gradients of its products are none, or those of the classifier alone; "
            "mark some with swapjax.backward.site"
        )
    if not found:
        raise ValueError(f"loss_fn: no site to prune gradients at; {hint}")
    require_apart(found)
    names = tuple(site.name for site in found)
    if isinstance(settings.sites, tuple):
        wanted = {
            name
            for pattern in settings.sites
            for name in rates.matching(pattern, names, "sites")
        }
        found = tuple(site for site in found if site.name in wanted)
        names = tuple(site.name for site in found)
    rate_of = rates.by_site(settings.rate, names)
    return program, tuple(s for s in found if s.name in rate_of), rate_of


def _pruning(settings: _Settings, rate: rates.Rate, key: jax.Array) -> Pruning:
    return Pruning(
        exact=settings.exact,
        hard=settings.hard,
        off=rate == 0,
        branch=callable(rate),
        axis_name=settings.axis_name,
        key=take_key(key, traced=True)[0],
    )


def _inputs(
    settings: _Settings,
    number: int,
    site: Site,
    rate: rates.Rate,
    state: BackwardState,
    key: jax.Array,
) -> Inputs:
    """Make what the operator takes at a site, for all steps of the scans around it."""
    level = rates.level(rate, state.step)
    if not settings.exact:
        own = state.sites[site.name]
        level = level * predicted(own.deviations, own.filled)
    own_key = jax.random.fold_in(jax.random.fold_in(key, _OWN), number)
    if site.levels:
        own_key = jax.random.split(own_key, site.levels)
    return Inputs(
        jnp.broadcast_to(level, site.levels),
        jax.random.key_data(own_key),
        jnp.zeros((*site.levels, 4), jnp.float32),
    )


def _replace(
    ways: Mapping[str, Pruning],
    equation: Any,
    operands: list,
    site: Site,
    inputs: Inputs,
    do: Do,
) -> list:
    """Put the operator at a site; see `swapjax.backward.rewrite.Replace`."""
    del equation
    put = functools.partial(operate, ways[site.name], inputs=inputs)
    if site.kind == "input":
        operands[site.operand] = put(operands[site.operand])
        return do(operands)
    first, *others = do(operands)
    return [put(first), *others]


def _told(
    settings: _Settings, state: BackwardState, statistics: Mapping[str, jax.Array]
) -> dict[str, jax.Array]:
    """Report a step."""
    before, after = _zeros(sum(x.reshape(-1, 4).sum(0) for x in statistics.values()))
    told = {"zeros before": before, "zeros after": after}
    if not settings.exact:
        told["prediction error"] = _error(state, statistics)
    if settings.per_site:
        for name, x in statistics.items():
            before, after = _zeros(x.reshape(-1, 4).sum(0))
            told |= {f"zeros before {name}": before, f"zeros after {name}": after}
    return told


def _zeros(statistics: Any) -> tuple[jax.Array, jax.Array]:
    """Compute the fractions of zeros before and after."""
    n = jnp.maximum(statistics[1], 1)
    return statistics[2] / n, statistics[3] / n


def _error(state: BackwardState, statistics: Mapping[str, jax.Array]) -> jax.Array:
    """Compute by how much predicted thresholds were off, 0 where there were none."""
    total, count = jnp.zeros(()), jnp.zeros(())
    for name, x in statistics.items():
        site = state.sites[name]
        guess = predicted(site.deviations, site.filled)
        found = DEVIATION * x[..., 0] / jnp.maximum(x[..., 1], 1)
        there = (guess > 0) & (found > 0)
        off = jnp.abs(guess / jnp.where(there, found, 1) - 1)
        total += jnp.sum(jnp.where(there, off, 0))
        count += jnp.sum(there)
    return total / jnp.maximum(count, 1)
