"""Pruned back-propagation as an objective for training loops."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from swapjax.backward import rates
from swapjax.backward.passing import Pruned, Settings, back_propagate, find_placed
from swapjax.backward.shared import (
    loss_alone,
    reported,
    require_new_key,
    require_state,
    take_loss,
)
from swapjax.backward.state import BackwardState, first_state, fractions_of_zeros
from swapjax.backward.thresholds import deviation, predicted
from swapjax.core.checks import require_count
from swapjax.core.objective import Objective
from swapjax.core.types import LossFn, Params

Threshold = Literal["fifo", "exact"]
Kind = Literal["stochastic", "hard"]
Where = Literal["both", "inputs"]


def prune_backward(
    loss_fn: LossFn | Objective,
    *,
    rate: float | Callable[[jax.Array], Any] | Mapping[str, Any] = 0.9,
    threshold: Threshold = "fifo",
    depth: int = 4,
    pruning: Kind = "stochastic",
    where: Where = "both",
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
        where: ``"inputs"`` prunes for the gradients of inputs alone; those of weights
            see all of what comes back. Sites are then outputs of products, also where
            an activation follows, and its zeros do not count for the threshold.
        sites: ``"auto"`` finds them in the program of the loss; ``"marked"`` takes
            those of `site`; regular expressions take some of those that are found.
        axis_name: the axis of ``jax.shard_map`` or ``vmap`` over which devices share
            thresholds and statistics. Under ``jax.jit`` alone the compiler sees to it.
        per_site: whether the zeros of each site are reported, too.

    Returns:
        An objective for `swapjax.training.fit`, whose state is a `BackwardState`. It
        reports ``"zeros before"`` and ``"zeros after"``, fractions over all sites, and
        ``"prediction error"``, by how much thresholds were off, ``|tau' / tau - 1|``,
        on average over sites. With a schedule, ``"schedules outside [0, 1)"`` is 1 in
        a step for which it returns no rate, and nothing is pruned.

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
        ("where", where, ("both", "inputs")),
    ):
        if value not in known:
            raise ValueError(
                f"{name} must be {' or '.join(map(repr, known))}, got {value!r}"
            )
    require_count("depth", depth)
    if where == "inputs" and sites == "marked":
        raise ValueError(
            "where: 'inputs' is for the products that are found, not for marks; give "
            "sites='auto' or regular expressions"
        )
    settings = Settings(
        inner=take_loss(loss_fn),
        rate=rates.take_rate(rate),
        exact=threshold == "exact",
        depth=depth,
        hard=pruning == "hard",
        inputs_only=where == "inputs",
        sites=_take_sites(sites),
        axis_name=axis_name,
        per_site=per_site,
    )
    return Pruned(
        loss=functools.partial(loss_alone, settings.inner, BackwardState),
        init=functools.partial(_init, settings),
        gradient=functools.partial(_gradient, settings),
        replays=settings.inner.replays,
        check=settings.inner.check,
        settings=settings,
    )


def _take_sites(sites: str | Sequence[str]) -> str | tuple[str, ...]:
    if sites in ("auto", "marked"):
        return str(sites)
    patterns = (sites,) if isinstance(sites, str) else tuple(sites)
    if not patterns:
        raise ValueError(
            "sites must be 'auto', 'marked' or regular expressions, got none"
        )
    return patterns


def _init(settings: Settings, params: Params, batch: Any) -> BackwardState:
    """Make the first state."""
    inner = settings.inner.init(params, batch)
    data = (inner, batch, jax.random.key(0))
    sites = find_placed(settings, params, data).sites
    return first_state(sites, settings.depth, inner)


def _gradient(
    settings: Settings, params: Params, state: BackwardState, batch: Any, key: Any
) -> tuple[Params, jax.Array, BackwardState, dict[str, jax.Array]]:
    """Compute the gradients of a step."""
    require_state(state, BackwardState)
    require_new_key(state, key)
    passed, statistics, _ = back_propagate(settings, params, state, batch, key)
    new = state.followed_by(key, statistics, passed.inner, dense=settings.inputs_only)
    told = _told(settings, state, statistics)
    return passed.gradients, passed.loss, new, reported(passed.aux, told)


def _told(
    settings: Settings, state: BackwardState, statistics: Mapping[str, jax.Array]
) -> dict[str, jax.Array]:
    """Report a step."""
    flat = [x.reshape(-1, 4) for x in statistics.values()]
    before, after = fractions_of_zeros(jnp.concatenate(flat))
    told = {"zeros before": before, "zeros after": after}
    if not settings.exact:
        told["prediction error"] = _error(settings, state, statistics)
    outside = rates.outside(settings.rate, state.step)
    if outside is not None:
        told["schedules outside [0, 1)"] = outside
    if settings.per_site:
        for name, x in statistics.items():
            before, after = fractions_of_zeros(x)
            told |= {f"zeros before {name}": before, f"zeros after {name}": after}
    return told


def _error(
    settings: Settings, state: BackwardState, statistics: Mapping[str, jax.Array]
) -> jax.Array:
    """Compute by how much predicted thresholds were off, 0 where there were none."""
    total = count = jnp.zeros((), jnp.float32)
    for name, x in statistics.items():
        site = state.sites[name]
        guess = predicted(site.deviations, site.filled)
        found = deviation(x, dense=settings.inputs_only)
        there = (guess > 0) & (found > 0)
        off = jnp.abs(guess / jnp.where(there, found, 1) - 1)
        total += jnp.sum(jnp.where(there, off, 0))
        count += jnp.sum(there, dtype=jnp.float32)
    return total / jnp.maximum(count, 1)
