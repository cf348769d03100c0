"""The search by exchanges: pairs of removed and kept weights change places."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from swapjax.core import trees
from swapjax.core.types import Leaves
from swapjax.gradients.operator import GradientOperator
from swapjax.pruning.solvers.candidates import stack
from swapjax.sparsity.budget import Budget
from swapjax.sparsity.masks import apply_masks
from swapjax.sparsity.segments import Segments
from swapjax.sparsity.topk import common_width, sort_keys, top_keys_of_groups

_HIGHEST = jax.lax.Precision.HIGHEST


class Search(NamedTuple):
    """Where the exchanges led.

    Attributes:
        support: of the lowest loss.
        last: where no exchange was left, or passes ended.
        value: f at support.
        exchanges: how many pairs changed places in all.
        passes: how many there were.
    """

    support: Leaves
    last: Leaves
    value: jax.Array
    exchanges: jax.Array
    passes: jax.Array


class _Candidates(NamedTuple):
    """Weights that a pass may exchange, c of either kind.

    Attributes:
        ins: places of removed ones, [c].
        outs: places of kept ones, [c].
        fall: what f falls by if the removed one alone returns, [c].
        rise: what f rises by if the kept one alone goes, [c].
        same: which pairs share a budget, [c, c].
    """

    ins: jax.Array
    outs: jax.Array
    fall: jax.Array
    rise: jax.Array
    same: jax.Array


def search(
    rows: GradientOperator,
    weights: Leaves,
    support: Leaves,
    squares: Leaves,
    budget: Budget,
    loss_of: Callable[[Leaves], jax.Array],
    within: Leaves | None,
    *,
    damping: float,
    candidates: int,
    passes: int,
) -> Search:
    """Exchange pairs of removed and kept weights while the quadratic model falls.

    The model of a mask is ``f = w_P^T H w_P`` with P what it removes and ``H = (1/n)
    G^T G + lambda I``. Each pass takes candidates of either kind and exchanges the pair
    that lowers f most, then the best one given that exchange, and so on; the search
    ends where no two candidates can be exchanged with profit. Of all the masks passed
    through the one with the lowest loss of the examples counts. For the selection
    problem of the Combinatorial Brain Surgeon (Yu et al., ICML 2022,
    arXiv:2203.04466); which pairs are tried, and in which order, is ours.

    Args:
        rows: the operator G, of n rows.
        weights: the leaves.
        support: the first mask.
        squares: ``(1/n) sum_i G_iq^2``, leaves.
        budget: its groups, within which pairs are exchanged, and its floors.
        loss_of: the mean loss of weights, which judges.
        within: entries outside of which nothing may be kept.
        damping: lambda.
        candidates: of either kind, per group.
        passes: the most.
    """
    n, wide = rows.n, trees.wide(weights)
    weights = tuple(w.astype(wide) for w in weights)
    own = tuple(
        jnp.square(w) * (f + damping).astype(wide)
        for w, f in zip(weights, squares, strict=True)
    )
    flat_weights = jnp.concatenate([w.ravel() for w in weights])
    width = min(candidates, flat_weights.size)
    inside = within or tuple(jnp.ones(w.shape, bool) for w in weights)

    def one_pass(carry: tuple) -> tuple:
        i, support, _, exchanges, best = carry
        _, falls, rises = _evaluate(rows, weights, own, support, damping)
        stay = _floors(weights, support, budget)
        ins, outs, fall, rise, same = _choose(
            support, stay, inside, falls, rises, budget.segments, width
        )
        size = len(ins)
        places = jnp.concatenate([ins, outs])
        columns = rows.columns(places) * flat_weights[places]
        cross = 2 / n * jnp.matmul(columns.T, columns, precision=_HIGHEST)
        fall, rise, swapped = _exchange(cross, fall, rise, same, size)
        count = jnp.sum(swapped[:size], dtype=jnp.int32)
        flat = jnp.concatenate([s.ravel() for s in support])
        # Added up, since a place may be listed twice, if only once to change.
        flat ^= jnp.zeros_like(flat).at[places].max(swapped)
        support = trees.split_flat(flat, support)
        loss = loss_of(apply_masks(weights, support))
        better = loss < best[1]
        kept = (support, loss, exchanges + count)
        best = jax.tree.map(lambda a, b: jnp.where(better, a, b), kept, best)
        return i + 1, support, count, exchanges + count, best

    def moving(carry: tuple) -> jax.Array:
        i, _, last, _, _ = carry
        return (i < passes) & (last > 0)

    none = jnp.zeros((), jnp.int32)
    best = (support, loss_of(apply_masks(weights, support)), none)
    carry = none, support, none + 1, none, best
    i, last, _, _, (support, _, exchanges) = jax.lax.while_loop(moving, one_pass, carry)
    value = _evaluate(rows, weights, own, support, damping)[0]
    return Search(support, last, value, exchanges, i)


def _evaluate(
    rows: GradientOperator,
    weights: Leaves,
    own: Leaves,
    support: Leaves,
    damping: float,
) -> tuple[jax.Array, Leaves, Leaves]:
    """Evaluate f, what it falls by per removed, and rises by per kept entry.

    Args:
        rows: the operator G.
        weights: the leaves.
        own: ``w_q^2 H_qq``, what an entry has to do with itself.
        support: the mask.
        damping: lambda.
    """
    n = rows.n
    gone = tuple(jnp.where(s, 0, w) for s, w in zip(support, weights, strict=True))
    u = rows.project(gone)
    held = sum(jnp.vdot(g, g) for g in gone) * damping
    linear = tuple(
        2 / n * w * p.astype(w.dtype)
        for w, p in zip(weights, rows.pull_back(u), strict=True)
    )
    # The damping is a diagonal: it enters own, but not the products with u.
    tail = tuple(2 * damping * jnp.square(w) for w in weights)
    falls = tuple(a - o + t for a, o, t in zip(linear, own, tail, strict=True))
    rises = tuple(a + o for a, o in zip(linear, own, strict=True))
    return jnp.vdot(u, u) / n + held, falls, rises


def _choose(
    support: Leaves,
    stay: Leaves,
    inside: Leaves,
    falls: Leaves,
    rises: Leaves,
    segments: Segments,
    width: int,
) -> _Candidates:
    """Choose the dearest removed and the cheapest kept entries of every group.

    Args:
        support: the mask.
        stay: kept entries that must not go.
        inside: entries that may be kept.
        falls: what f falls by per removed entry.
        rises: what f rises by per kept one.
        segments: the groups of layers.
        width: candidates of either kind, per group.
    """
    groups = sorted(set(segments.groups))
    numbers = segments.spread(jnp.arange(segments.total, dtype=jnp.int32), support)

    def top(values: Leaves, group: int) -> tuple[jax.Array, jax.Array]:
        flat = [
            jnp.where(g == group, x, -jnp.inf).ravel()
            for g, x in zip(numbers, values, strict=True)
        ]
        return jax.lax.top_k(jnp.concatenate(flat), width)

    dear = tuple(
        jnp.where(~s & i, f, -jnp.inf)
        for s, i, f in zip(support, inside, falls, strict=True)
    )
    cheap = tuple(
        jnp.where(s & ~f, -r, -jnp.inf)
        for s, f, r in zip(support, stay, rises, strict=True)
    )
    fall, ins = stack([top(dear, group) for group in groups])
    rise, outs = stack([top(cheap, group) for group in groups])
    of = jnp.repeat(jnp.arange(len(groups)), width)
    same = of[:, None] == of
    return _Candidates(ins.ravel(), outs.ravel(), fall.ravel(), -rise.ravel(), same)


def _exchange(
    cross: jax.Array, fall: jax.Array, rise: jax.Array, same: jax.Array, size: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Exchange the best pair of candidates, and the next best given it, and so on.

    Args:
        cross: ``(2/n) v_a^T v_b`` of all candidates, those removed first, [2c, 2c].
        fall: what f falls by if a removed one returns, [c].
        rise: what f rises by if a kept one goes, [c].
        same: which pairs share a budget, [c, c].
        size: c.

    Returns:
        Fall and rise after the exchanges, and who changed places, ``bool[2c]``.
    """
    # Below this an exchange is rounding.
    least = -1e-6 * jnp.max(jnp.where(jnp.isfinite(fall), jnp.abs(fall), 0))

    def change(fall: jax.Array, rise: jax.Array) -> jax.Array:
        both = rise[None, :] - fall[:, None] - cross[:size, size:]
        return jnp.where(same & jnp.isfinite(both), both, jnp.inf)

    def step(carry: tuple) -> tuple:
        t, fall, rise, swapped, _ = carry
        values = change(fall, rise)
        at = jnp.argmin(values)
        i, j = at // size, at % size
        good = values[i, j] < least
        moved = cross[:, size + j] - cross[:, i]
        new_fall = (fall + moved[:size]).at[i].set(-jnp.inf)
        new_rise = (rise + moved[size:]).at[j].set(jnp.inf)
        fall = jnp.where(good, new_fall, fall)
        rise = jnp.where(good, new_rise, rise)
        both = swapped.at[i].set(True).at[size + j].set(True)
        return t + 1, fall, rise, jnp.where(good, both, swapped), good

    def going(carry: tuple) -> jax.Array:
        return carry[-1] & (carry[0] < size)

    start = (jnp.zeros((), jnp.int32), fall, rise, jnp.zeros(2 * size, bool), True)
    _, fall, rise, swapped, _ = jax.lax.while_loop(going, step, start)
    return fall, rise, swapped


def _floors(weights: Leaves, support: Leaves, budget: Budget) -> Leaves:
    """Mark the largest kept weights of each layer, as many as its floor: they stay."""
    ranked = common_width(
        jnp.where(s, sort_keys(jnp.abs(w)), 0)
        for s, w in zip(support, weights, strict=True)
    )
    floors = jnp.asarray(budget.floors, jnp.int32)
    return top_keys_of_groups(ranked, floors, Segments.of_layers(budget.layers))
