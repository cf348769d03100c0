"""The controller of VCAS: rates that keep the variance they add within a budget."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from swapjax.backward.address import Site
from swapjax.backward.shared import keys_before

Rates = dict[str, jax.Array]
Place = tuple[str, tuple[int, ...]]  # a cut, and steps of the loops around it

LEAST = 1e-3  # the smallest rate of rows


class Budget(NamedTuple):
    """What sampling may add, and how rates change.

    Attributes:
        activations: the share of SGD's variance that sampling activations may add.
        weights: that which sampling rows may add.
        step: of the share of norms.
        factor: of the rates of rows, below 1.
        smoothing: how much of a cut's rate is kept.
    """

    activations: float
    weights: float
    step: float
    factor: float
    smoothing: float


class VcasState(NamedTuple):
    """What VCAS remembers from step to step.

    Attributes:
        step: steps taken, ``int32[]``.
        key: what tells the key of the last step from others, ``uint32[2]``.
        repeated: steps that had the key of the step before, ``int32[]``.
        inner: the state of the objective that is differentiated.
        adapted: how many times rates were set anew, ``int32[]``.
        norm_share: of the sum of the gradients' norms, what the examples kept at each
            cut have together, ``float32[]``.
        activations: share of the examples kept, by cut; from the first cut to the last,
            of the shape of the loops around it.
        weights: share of the rows kept, of those that are left, by product.
        added: the variance added by sampling activations at the last adaptation, as a
            share of that of SGD, ``float32[]``.
    """

    step: jax.Array
    key: jax.Array
    repeated: jax.Array
    inner: Any
    adapted: jax.Array
    norm_share: jax.Array
    activations: Rates
    weights: Rates
    added: jax.Array


class Seen(NamedTuple):
    """What an adaptation measured, each a mean over its runs.

    Attributes:
        sgd: the variance of SGD, of the gradient of all params, ``float32[]``.
        activations: the variance that sampling activations adds to it, ``float32[]``.
        layers: the variance of SGD by product, as the rates.
        weights: the variance that sampling rows adds, by product.
        more, less: share of the examples which have `norm_share` and a step more of the
            norms, or a step less, by cut.
    """

    sgd: jax.Array
    activations: jax.Array
    layers: Rates
    weights: Rates
    more: Rates
    less: Rates


def first_state(
    cuts: Sequence[Site], products: Sequence[Site], inner: Any
) -> VcasState:
    """Make the state before the first step: all is kept."""
    return VcasState(
        inner=inner,
        **keys_before(),
        adapted=jnp.zeros((), jnp.int32),
        norm_share=jnp.float32(1),
        activations={cut.name: jnp.ones(cut.levels) for cut in cuts},
        weights={product.name: jnp.ones(product.levels) for product in products},
        added=jnp.float32(0),
    )


def require_same_network(
    state: VcasState, cuts: Sequence[Site], products: Sequence[Site]
) -> None:
    """Raise for a state with the rates of another network.

    Raises:
        ValueError: naming what differs.
    """
    for what, rates, sites in (
        ("activations", state.activations, cuts),
        ("weights", state.weights, products),
    ):
        wanted = {site.name: site.levels for site in sites}
        given = {name: jnp.shape(rate) for name, rate in rates.items()}
        apart = sorted(
            name
            for name in wanted.keys() | given.keys()
            if wanted.get(name) != given.get(name)
        )
        if apart:
            raise ValueError(
                f"state: it is of another network; its rates of {what} and those "
                f"wanted differ at {apart[0]!r}"
            )


def share_above(norms: jax.Array, shares: jax.Array) -> jax.Array:
    """Return the least share of the examples that has a share of the norms together.

    Args:
        norms: of the gradients of examples, ``float32[n]``.
        shares: of their sum, from 0 to 1, ``float32[k]``.

    Returns:
        ``float32[k]``, at least ``1 / n``.
    """
    sums = jnp.cumsum(jnp.sort(norms)[::-1])
    fewer = sums[None] < shares[:, None] * sums[-1]
    count = jnp.minimum(jnp.sum(fewer, axis=1) + 1, norms.size)
    return count.astype(jnp.float32) / norms.size


def control(
    state: VcasState, seen: Seen, order: tuple[Place, ...], budget: Budget
) -> VcasState:
    """Set rates anew (Wang et al., ICLR 2024, arXiv:2402.17227, algorithm 1).

    The share of norms that is kept goes a step up where sampling activations adds more
    variance than it may, else a step down, and the rate of each cut follows the share
    of examples that it takes, not below that of a cut before it; smoothed by an
    exponential mean. The rate of the rows of a product is divided by the factor where
    they add more than they may to its own variance, else multiplied with it.

    Args:
        state: before.
        seen: what was measured; where it is not finite, rates go up.
        order: the cuts of all steps of loops, from the first to the last.
        budget: of both, and the steps to take.
    """
    within = seen.activations <= budget.activations * seen.sgd
    change = jnp.where(within, -budget.step, budget.step)
    new = _activations(state.activations, seen, within, order, budget.smoothing)
    return state._replace(
        adapted=state.adapted + 1,
        norm_share=jnp.clip(state.norm_share + change, 0, 1),
        activations=new,
        weights={
            name: _rows(rate, seen.weights[name], seen.layers[name], budget)
            for name, rate in state.weights.items()
        },
        added=seen.activations / jnp.where(seen.sgd > 0, seen.sgd, 1),
    )


def _rows(
    rate: jax.Array, added: jax.Array, own: jax.Array, budget: Budget
) -> jax.Array:
    """Set the rate of the rows of a product anew."""
    within = added <= budget.weights * own
    new = jnp.where(within, rate * budget.factor, rate / budget.factor)
    return jnp.clip(new, LEAST, 1)


def _activations(
    old: Rates,
    seen: Seen,
    within: jax.Array,
    order: tuple[Place, ...],
    smoothing: float,
) -> Rates:
    """Set the rates of cuts anew, all in one array; see `control`."""
    if not old:
        return {}
    names = sorted(old)
    shapes = {name: jnp.shape(old[name]) for name in names}
    ends = np.cumsum([math.prod(shapes[name]) for name in names])
    first = dict(zip(names, [0, *ends[:-1]], strict=True))
    passed = [
        first[name] + (np.ravel_multi_index(place, shapes[name]) if place else 0)
        for name, place in order
    ]

    def row(rates: Rates) -> jax.Array:
        return jnp.concatenate([jnp.ravel(rates[name]) for name in names])

    aims = jnp.where(within, row(seen.less), row(seen.more))[np.asarray(passed)]
    highest = lax.cummax(jnp.where(jnp.isfinite(aims), aims, 1))
    aims = highest[np.argsort(passed)]
    smooth = smoothing * row(old)
    pieces = jnp.split(smooth + (1 - smoothing) * aims, ends[:-1])
    return {n: x.reshape(shapes[n]) for n, x in zip(names, pieces, strict=True)}
