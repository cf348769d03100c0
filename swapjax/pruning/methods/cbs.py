"""Combinatorial Brain Surgeon: which weights to remove *together*."""

import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from swapjax.core import trees
from swapjax.core.checks import require_count
from swapjax.core.types import Leaves
from swapjax.gradients.operator import GradientOperator
from swapjax.pruning.method import Method, Problem, Solution, check_dampings, rows_of
from swapjax.pruning.methods.woodfisher import rank
from swapjax.pruning.solvers.backsolve import backsolve
from swapjax.pruning.solvers.candidates import best_of, conclude, stack
from swapjax.sparsity import scores
from swapjax.sparsity.budget import Budget, select
from swapjax.sparsity.masks import apply_masks
from swapjax.sparsity.topk import sort_keys, top_keys

Start = Literal["magnitude", "obd", "woodfisher"]
_HIGHEST = jax.lax.Precision.HIGHEST


def cbs(
    *,
    start: Start | tuple[Start, ...] = ("magnitude", "woodfisher"),
    damping: float | tuple[float, ...] = (1e-3, 1e-2, 1e-1),
    candidates: int = 128,
    passes: int = 20,
    block: int = 1000,
    output_axis: int = -1,
) -> Method:
    """Exchange removed and kept weights while the quadratic model of the loss falls.

    The model of removing a set P is ``f(P) = w_P^T H w_P`` with ``H = (1/n) G^T G +
    lambda I``, in which weights that point the same way in G add up and others cancel
    (CBS, ICML 2022). Each pass takes the removed weights that are the dearest and the
    kept ones that are the cheapest, and exchanges pairs of them, always the pair that
    lowers f most given the exchanges before it. Of all the masks passed through, the
    one counts under which the examples' loss is lowest, weights kept as they are. Then
    what is kept makes up for what is removed, all at once, by a back-solve.

    A pass costs three products with G and one system of candidates: O(n p + n c^2 +
    c^3) time, O(n c) memory. The search ends where no two candidates can be exchanged
    with profit; with as many candidates as weights that is a mask that no exchange of
    two weights improves.

    Args:
        start: the first mask: ``"magnitude"``, ``"obd"``, or the score of `woodfisher`
            in blocks. Of several the one is taken whose result has the lowest loss.
        damping: lambda, in units of the Fisher of single examples; the search takes the
            first. Of several the back-solve keeps the one with the lowest loss.
        candidates: removed and kept weights each that a pass looks at, per group of
            leaves that share a budget.
        passes: the most there are.
        block: entries of a block, for the score of `woodfisher`.
        output_axis: as in `woodfisher`.

    Returns:
        The method, for `swapjax.prune`.

    Raises:
        ValueError: for values out of range, naming the argument; when called, for a
            plan with N:M patterns, in which a weight has few to change places with.
    """
    starts = (start,) if isinstance(start, str) else tuple(start)
    if not starts or set(starts) - {"magnitude", "obd", "woodfisher"}:
        raise ValueError(
            "start must be of 'magnitude', 'obd' and 'woodfisher', one or several, got "
            f"{start!r}"
        )
    for name, value in (("candidates", candidates), ("block", block)):
        require_count(name, value)
    require_count("passes", passes, least=0)
    settings: dict[str, Any] = {
        "start": starts,
        "damping": check_dampings(damping),
        "candidates": candidates,
        "passes": passes,
        "block": block,
        "output_axis": output_axis,
    }
    return Method(
        name="cbs",
        settings=tuple(settings.items()),
        solve=functools.partial(_solve, **settings),
    )


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


def _solve(
    problem: Problem,
    budget: Budget,
    *,
    start: tuple[Start, ...],
    damping: tuple[float, ...],
    candidates: int,
    passes: int,
    block: int,
    output_axis: int,
) -> Solution:
    rows, w = rows_of(problem), problem.weights
    if any(budget.patterns):
        raise ValueError("pattern: cbs does not exchange within N:M patterns")
    dampings = [d / rows.batch for d in damping]
    squares = rows.mean_squares()

    def first(rule: Start) -> Leaves:
        if rule == "magnitude":
            ranked = scores.magnitude(w)
        elif rule == "obd":
            ranked = scores.fisher_diagonal(w, squares)
        else:
            ranked = rank(rows, w, block, output_axis, dampings[0])
        return select(ranked, budget, problem.within)

    def finish(option: tuple[Search, jax.Array]) -> Solution:
        found, lam = option
        kept = apply_masks(w, found.support)
        lost = rows.project(optax.tree.sub(w, kept))
        fit = backsolve(rows, found.support, lost, rows.n * lam)
        new = tuple(
            a + c.astype(a.dtype) for a, c in zip(kept, fit.change, strict=True)
        )
        return conclude(
            problem,
            new,
            found.support,
            objective=jnp.stack([0.5 * jnp.vdot(lost, lost), fit.value]),
            iterations=found.passes,
            raised=fit.raised,
            details={
                "damping": fit.ridge / rows.n * rows.batch,
                "exchanges": found.exchanges.astype(lost.dtype),
                "selection": found.value,
            },
        )

    supports = stack([first(rule) for rule in start])
    looked = jax.lax.map(
        lambda support: search(
            rows, w, support, squares, budget, problem.within,
            damping=dampings[0], candidates=candidates, passes=passes,
        ),
        supports,
    )  # fmt: skip
    grid = jax.tree.map(lambda x: jnp.repeat(x, len(dampings), axis=0), looked)
    lams = jnp.tile(jnp.asarray(dampings, jnp.result_type(float)), len(start))
    return best_of(finish, (grid, lams), rows.loss)


def search(
    rows: GradientOperator,
    weights: Leaves,
    support: Leaves,
    squares: Leaves,
    budget: Budget,
    within: Leaves | None,
    *,
    damping: float,
    candidates: int,
    passes: int,
) -> Search:
    """Exchange pairs until no candidates are left to exchange.

    Args:
        rows: the operator G, of n rows.
        weights: the leaves.
        support: the first mask.
        squares: ``(1/n) sum_i G_iq^2``, leaves.
        budget: its groups, within which pairs are exchanged, and its floors.
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
    total, groups = flat_weights.size, sorted(set(budget.groups))
    width = min(candidates, total)
    inside = within or tuple(jnp.ones(w.shape, bool) for w in weights)

    def evaluate(support: Leaves) -> tuple[jax.Array, Leaves, Leaves]:
        """f, and what it falls by per removed, rises by per kept entry."""
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

    def top(values: Leaves, group: int) -> tuple[jax.Array, jax.Array]:
        """The largest of a group's values, and their places."""
        flat = [
            jnp.where(g == group, x, -jnp.inf).ravel()
            for g, x in zip(budget.groups, values, strict=True)
        ]
        return jax.lax.top_k(jnp.concatenate(flat), width)

    def choose(support: Leaves, falls: Leaves, rises: Leaves) -> tuple:
        """Places of the candidates, what each changes alone, who shares a budget."""
        stay = _floors(weights, support, budget)
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
        return ins.ravel(), outs.ravel(), fall.ravel(), -rise.ravel(), same

    def one_pass(carry: tuple) -> tuple:
        i, support, _, exchanges, best = carry
        _, falls, rises = evaluate(support)
        ins, outs, fall, rise, same = choose(support, falls, rises)
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
        loss = rows.loss(apply_masks(weights, support))
        better = loss < best[1]
        kept = (support, loss, exchanges + count)
        best = jax.tree.map(lambda a, b: jnp.where(better, a, b), kept, best)
        return i + 1, support, count, exchanges + count, best

    def moving(carry: tuple) -> jax.Array:
        i, _, last, _, _ = carry
        return (i < passes) & (last > 0)

    none = jnp.zeros((), jnp.int32)
    best = (support, rows.loss(apply_masks(weights, support)), none)
    carry = none, support, none + 1, none, best
    i, last, _, _, (support, _, exchanges) = jax.lax.while_loop(moving, one_pass, carry)
    return Search(support, last, evaluate(support)[0], exchanges, i)


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
    """The largest kept weights of each leaf, as many as its floor: they stay."""
    ranked = (
        jnp.where(s, sort_keys(jnp.abs(w)), 0)
        for s, w in zip(support, weights, strict=True)
    )
    return tuple(
        top_keys((r,), floor)[0] for r, floor in zip(ranked, budget.floors, strict=True)
    )
