"""One pass back through a network, with gradients pruned at sites of its loss."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from swapjax.backward import rates
from swapjax.backward.address import Site, require_apart
from swapjax.backward.mark import find_marks
from swapjax.backward.operator import Inputs, Pruning, operate, split
from swapjax.backward.placement import sites_of
from swapjax.backward.rewrite import Do
from swapjax.backward.shared import Passed, Traced, pass_back, trace_loss
from swapjax.backward.state import BackwardState, require_same_network
from swapjax.backward.thresholds import predicted
from swapjax.core import programs, trees
from swapjax.core.checks import take_key
from swapjax.core.objective import Objective
from swapjax.core.types import Params

_OWN = np.uint32(2**32 - 2)  # apart from what losses fold into their keys


class Settings(NamedTuple):
    """The arguments of `prune_backward`, checked."""

    inner: Objective
    rate: rates.Rate | dict[str, rates.Rate]
    exact: bool
    depth: int
    hard: bool
    inputs_only: bool
    sites: str | tuple[str, ...]
    axis_name: Any
    per_site: bool


@dataclasses.dataclass(frozen=True, eq=False)
class Pruned(Objective):
    """The objective that `swapjax.backward.prune_backward` makes.

    Attributes:
        settings: what it was made with.
    """

    settings: Settings | None = None


def settings_of(pruned: Objective) -> Settings:
    """Take the settings of an objective, to measure with on one device.

    Raises:
        ValueError: for one that prunes no gradients.
    """
    settings = pruned.settings if isinstance(pruned, Pruned) else None
    if settings is None:
        raise ValueError(
            f"pruned: an objective of prune_backward wanted, got {pruned!r}"
        )
    return settings._replace(axis_name=None)


def unpruned(settings: Settings) -> Settings:
    """Make settings with the same sites that prune nothing."""
    if isinstance(settings.rate, dict):
        return settings._replace(rate=dict.fromkeys(settings.rate, 0.0))
    return settings._replace(rate=0.0)


class Pass(NamedTuple):
    """What comes of a pass back: all of it, and the statistics of the operator.

    Attributes:
        passed: see `swapjax.backward.shared.Passed`.
        statistics: at each site, ``float32[*levels, 4]``.
        watched: the same at the sites where gradients are only counted.
    """

    passed: Passed
    statistics: dict[str, jax.Array]
    watched: dict[str, jax.Array]


def back_propagate(
    settings: Settings,
    params: Params,
    state: BackwardState,
    batch: Any,
    key: Any,
    watched: Sequence[Site] = (),
    draw: Any = None,
) -> Pass:
    """Send the gradients of a loss back, pruned.

    Args:
        settings: of the objective.
        params: the network.
        state: of the objective.
        batch: of the loss.
        key: of the step.
        watched: sites where gradients are counted after they are pruned, with names
            that no site has where they are pruned.
        draw: the key to prune with, that of the step by default.
    """
    data = (state.inner, batch, key)
    own = key if draw is None else draw
    traced, sites, rate_of = find_placed(settings, params, data)
    require_same_network(state, sites, settings.depth)
    ways = {site.name: _pruning(settings, rate_of[site.name], own) for site in sites}
    ways |= {site.name: _pruning(settings, 0.0, key) for site in watched}
    given = {
        site.name: _inputs(settings, i, site, rate_of[site.name], state, own)
        for i, site in enumerate(sites)
    }
    given |= {site.name: _idle(site, key) for site in watched}

    # Of one equation, the first site is met first on the way.
    both = (*sites, *watched)
    put = functools.partial(_replace, ways)
    passed = pass_back(traced, params, data, both, given, put)
    statistics, counted = (
        {site.name: passed.told[site.name] for site in several}
        for several in (sites, watched)
    )
    return Pass(passed, statistics, counted)


class Placed(NamedTuple):
    """The program of a loss, and where gradients are pruned in it.

    Attributes:
        traced: the program.
        sites: in the order of the program.
        rate_of: the rate of each by name.
    """

    traced: Traced
    sites: tuple[Site, ...]
    rate_of: dict[str, rates.Rate]


def find_placed(settings: Settings, params: Params, data: Any) -> Placed:
    """Trace the loss, and find sites and the rate of each.

    Raises:
        ValueError: for no site, two of one name, and patterns that match none.
    """
    traced = trace_loss(settings.inner, params, data)
    if settings.sites == "marked":
        found = find_marks(traced.program.jaxpr)
        hint = "mark some with swapjax.backward.site"
    else:
        shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(params)]
        paths = trees.paths(params)
        found = sites_of(traced.program, paths, shapes, outputs=settings.inputs_only)
        hint = (
            "it needs two layers before the classifier, or one that a normalisation "
            "follows; or mark some with swapjax.backward.site"
        )
    if not found:
        raise ValueError(f"loss_fn: no site to prune gradients at; {hint}")
    require_apart(found)
    names = tuple(site.name for site in found)
    if isinstance(settings.sites, tuple):
        named = [rates.matching(pattern, names, "sites") for pattern in settings.sites]
        names = tuple(name for name in names if any(name in some for some in named))
    rate_of = rates.by_site(settings.rate, names)
    sites = tuple(site for site in found if site.name in rate_of)
    return Placed(traced, sites, rate_of)


def _pruning(settings: Settings, rate: rates.Rate, key: jax.Array) -> Pruning:
    return Pruning(
        exact=settings.exact,
        hard=settings.hard,
        dense=settings.inputs_only,
        off=rate == 0,
        branch=callable(rate),
        axis_name=settings.axis_name,
        key=take_key(key, traced=True)[0],
    )


def _inputs(
    settings: Settings,
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


def _idle(site: Site, key: jax.Array) -> Inputs:
    """Make what the operator takes at a site where it only counts."""
    numbers = jax.random.key_data(key)
    return Inputs(
        jnp.zeros(site.levels, jnp.float32),
        jnp.broadcast_to(numbers, (*site.levels, *numbers.shape)),
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
    way = ways[site.name]
    put = functools.partial(operate, way, inputs=inputs)
    if site.kind == "input":
        operands[site.operand] = put(operands[site.operand])
        return do(operands)
    if way.dense and not way.off:
        data, weight = operands[site.operand], operands[1 - site.operand]

        def product(data: jax.Array, weight: jax.Array) -> jax.Array:
            pair = [data, weight] if site.operand == 0 else [weight, data]
            return programs.bind(equation, pair)[0]

        return [split(way, product, data, weight, inputs)]
    first, *others = do(operands)
    return [put(first), *others]
