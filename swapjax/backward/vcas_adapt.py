"""An adaptation of VCAS: variances measured on parts of a batch."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from swapjax.backward.shared import Passed
from swapjax.backward.vcas_control import Rates, Seen, VcasState, control
from swapjax.backward.vcas_layout import Layout, leaf_of
from swapjax.backward.vcas_run import Settings, layout_for, run
from swapjax.core import trees
from swapjax.core.types import Params

Floats = list[jax.Array]


class _Sums(NamedTuple):
    """What an adaptation has gathered.

    Attributes:
        mean: of the exact gradients so far.
        last: the last of them.
        sgd: their squared deviations, for all leaves and by product.
        added: the squared deviations of sampled ones.
        rows: sums of the variances that sampling rows adds, by product.
        shares: sums of the shares of examples, [..., 2], by cut.
    """

    mean: Params
    last: Params
    sgd: tuple[jax.Array, Rates]
    added: jax.Array
    rows: Rates
    shares: Rates


def adapt(
    settings: Settings, params: Params, state: VcasState, batch: Any, key: Any, own: Any
) -> VcasState:
    """Measure variances on parts of a batch, and set the rates anew.

    Args:
        settings: of the objective.
        params: of the network.
        state: before.
        batch: of the step.
        key: that the loss draws with.
        own: the key that sampling draws with, in the step with 0 folded in.
    """
    m = settings.repeats
    size = trees.count_examples(batch, "batch") // m
    parts = jax.tree.map(lambda x: x[: m * size].reshape(m, size, *x.shape[1:]), batch)
    first = jax.tree.map(lambda x: x[0], parts)
    layout = layout_for(settings, params, state.inner, first, key, measure=True)
    # Parts of a batch are smaller, and may have cuts that it has not.
    cuts = tuple(c for c in layout.cuts if c.name in state.activations)
    layout = layout._replace(cuts=cuts)
    squares = functools.partial(_squares, params, layout)

    def one(sums: _Sums, number: jax.Array) -> tuple[_Sums, None]:
        part, exact = number // (1 + m), number % (1 + m) == 0
        found = run(
            settings,
            layout,
            params,
            (state.inner, jax.tree.map(lambda x: x[part], parts), key),
            state,
            key=jax.random.fold_in(own, number + 1),
            exact=exact,
        )
        new = _floats(found.gradients)
        return jax.lax.cond(exact, _of_exact, _of_sampled, sums, found, new, part), None

    def _of_exact(sums: _Sums, found: Passed, new: Params, part: jax.Array) -> _Sums:
        away = jax.tree.map(jnp.subtract, new, sums.mean)
        mean = jax.tree.map(lambda m, d: m + d / (part + 1), sums.mean, away)
        more = squares(away, jax.tree.map(jnp.subtract, new, mean))
        shares = {n: x + found.told[n][..., 1:3] for n, x in sums.shares.items()}
        return sums._replace(
            mean=mean,
            last=new,
            sgd=jax.tree.map(jnp.add, sums.sgd, more),
            shares=shares,
        )

    def _of_sampled(sums: _Sums, found: Passed, new: Params, part: jax.Array) -> _Sums:
        del part
        away = jax.tree.map(jnp.subtract, new, sums.last)
        rows = {n: x + found.told[n][..., 2] for n, x in sums.rows.items()}
        return sums._replace(added=sums.added + squares(away, away)[0], rows=rows)

    zeros = jax.tree.map(jnp.zeros_like, _floats(params))
    sums, _ = jax.lax.scan(
        one,
        _Sums(
            zeros,
            zeros,
            (jnp.float32(0), jax.tree.map(jnp.zeros_like, state.weights)),
            jnp.float32(0),
            jax.tree.map(jnp.zeros_like, state.weights),
            {n: jnp.zeros((*r.shape, 2)) for n, r in state.activations.items()},
        ),
        jnp.arange(m * (1 + m)),
    )
    total, layers = sums.sgd
    seen = Seen(
        sgd=total / (m - 1),
        activations=sums.added / m**2,
        layers={name: x / (m - 1) for name, x in layers.items()},
        weights=_of_weights(layout, {n: x / m**2 for n, x in sums.rows.items()}),
        more={name: x[..., 0] / m for name, x in sums.shares.items()},
        less={name: x[..., 1] / m for name, x in sums.shares.items()},
    )
    return control(state, seen, layout.order(), settings.budget)


def _floats(tree: Params) -> Floats:
    """Take what is trained, in float32."""
    return [x.astype(jnp.float32) for x in jax.tree.leaves(trees.trainable(tree))]


def _squares(
    params: Params, layout: Layout, left: Floats, right: Floats
) -> tuple[jax.Array, Rates]:
    """Sum products of two gradients: over all leaves, and by product over its weight.

    A weight that loops take slices of has a sum for each of their steps; of another,
    each step has that of the whole.
    """
    total = sum((jnp.vdot(x, y) for x, y in zip(left, right, strict=True)), 0.0)
    layers, paths = {}, trees.paths(params)
    for site in layout.products:
        leaf = leaf_of(paths, site.name)
        both = left[leaf] * right[leaf]
        deep = len(site.levels) if site.name in layout.sliced else 0
        sums = jnp.sum(both, axis=tuple(range(deep, both.ndim)))
        layers[site.name] = jnp.broadcast_to(sums, site.levels)
    return jnp.float32(total), layers


def _of_weights(layout: Layout, variances: Rates) -> Rates:
    """Sum over the steps of loops where all have one weight."""
    return {
        site.name: variances[site.name]
        if site.name in layout.sliced
        else jnp.broadcast_to(jnp.sum(variances[site.name]), site.levels)
        for site in layout.products
    }
