"""A backward pass that is sampled as VCAS does it."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from swapjax.backward.shared import Passed, pass_back, trace_loss
from swapjax.backward.vcas_control import Budget, VcasState
from swapjax.backward.vcas_layout import Layout, layout_of
from swapjax.backward.vcas_product import CutRate, RowRate
from swapjax.core import trees
from swapjax.core.objective import Objective
from swapjax.core.types import Params

OWN = np.uint32(2**32 - 3)  # apart from what losses fold into their keys


class Settings(NamedTuple):
    """The arguments of `vcas`, checked."""

    inner: Objective
    budget: Budget
    every: int
    repeats: int
    per_site: bool


def layout_for(
    settings: Settings,
    params: Params,
    inner: Any,
    batch: Any,
    key: Any,
    *,
    measure: bool = False,
) -> Layout:
    """Find what to sample for a batch, from shapes alone."""
    return layout_of(
        trace_loss(settings.inner, params, (inner, batch, key)),
        params,
        trees.count_examples(batch, "batch"),
        measure=measure,
    )


def run(
    settings: Settings,
    layout: Layout,
    params: Params,
    data: Any,
    state: VcasState,
    *,
    key: jax.Array,
    exact: jax.Array | bool = False,
) -> Passed:
    """Propagate back, and sample.

    Args:
        settings: of the objective.
        layout: of the program of the loss for this batch.
        params: of the network.
        data: what the loss takes beside them.
        state: with the rates.
        key: to draw with.
        exact: whether all examples are kept.
    """
    change = settings.budget.step
    shares = jnp.stack([state.norm_share + change, state.norm_share - change])
    sites = (*layout.cuts, *layout.products)
    rates = {
        **{
            cut.name: jnp.where(exact, 1, state.activations[cut.name])
            for cut in layout.cuts
        },
        **{product.name: state.weights[product.name] for product in layout.products},
    }
    uniforms = _uniforms(layout, rates, key)
    given: dict[str, Any] = {}
    for site in sites:
        rate, own = rates[site.name], uniforms[site.name]
        probe = jnp.zeros((*site.levels, 4), jnp.float32)
        if site in layout.cuts:
            seen = jnp.broadcast_to(jnp.clip(shares, 0, 1), (*site.levels, 2))
            given[site.name] = CutRate(rate, own, seen, probe)
        else:
            given[site.name] = RowRate(rate, own, probe)
    return pass_back(layout.traced, params, data, sites, given, layout.replace)


def _uniforms(
    layout: Layout, rates: dict[str, jax.Array], key: jax.Array
) -> dict[str, jax.Array]:
    """Draw for all sites at once, which compiles quickly; nothing where all is kept."""
    sites = (*layout.cuts, *layout.products)
    shapes = {site.name: (*site.levels, layout.uniforms(site)) for site in sites}
    ends = np.cumsum([math.prod(shape) for shape in shapes.values()])
    total = int(ends[-1])
    some = jnp.any(jnp.concatenate([jnp.ravel(rate) for rate in rates.values()]) < 1)
    numbers = jax.lax.cond(
        some,
        lambda key: jax.random.uniform(key, (total,)),
        lambda key: jnp.zeros(total),
        key,
    )
    pieces = jnp.split(numbers, ends[:-1])
    return {
        name: piece.reshape(shape)
        for piece, (name, shape) in zip(pieces, shapes.items(), strict=True)
    }
