"""Combinatorial Brain Surgeon: which weights to remove *together*."""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from swapjax.core.checks import require_count
from swapjax.core.types import Leaves
from swapjax.pruning.damping import check_dampings
from swapjax.pruning.method import Method, Problem, Solution, rows_of
from swapjax.pruning.methods.woodfisher import rank
from swapjax.pruning.solvers.backsolve import backsolve
from swapjax.pruning.solvers.candidates import best_of, conclude, stack
from swapjax.pruning.solvers.pair_exchange import Search, search
from swapjax.sparsity import scores
from swapjax.sparsity.budget import Budget, select
from swapjax.sparsity.masks import apply_masks

Start = Literal["magnitude", "obd", "woodfisher"]


def cbs(
    *,
    start: Start | tuple[Start, ...] = ("magnitude", "woodfisher"),
    damping: float | tuple[float, ...] = (1e-5, 1e-4, 1e-3),
    candidates: int = 128,
    passes: int = 20,
    block: int = 1000,
    output_axis: int | None = None,
) -> Method:
    """Exchange removed and kept weights while the quadratic model of the loss falls.

    The model of removing a set P is ``f(P) = w_P^T H w_P`` with ``H = (1/n) G^T G +
    lambda I``, in which weights that point the same way in G add up and others cancel
    (Yu et al., ICML 2022, arXiv:2203.04466). Each pass takes the removed weights that
    are the dearest and the kept ones that are the cheapest, and exchanges pairs of
    them, always the pair that lowers f most given the exchanges before it. Of all the
    masks passed through, the one counts under which the examples' loss is lowest,
    weights kept as they are. Then what is kept makes up for what is removed, all at
    once, by a back-solve.

    A pass costs three products with G and one system of candidates: O(n p + n c^2 +
    c^3) time, O(n c) memory. The search ends where no two candidates can be exchanged
    with profit; with as many candidates as weights that is a mask that no exchange of
    two weights improves.

    Args:
        start: the first mask: ``"magnitude"``, ``"obd"``, or the score of `woodfisher`
            in blocks. Of several the one is taken whose result has the lowest loss.
        damping: lambda, in units of the mean squared norm of the gradient rows; the
            search takes the first. Of several the back-solve keeps the one with the
            lowest loss.
        candidates: removed and kept weights each that a pass looks at, per group of
            leaves that share a budget.
        passes: the most there are.
        block: entries of a block, for the score of `woodfisher`.
        output_axis: as in `woodfisher`.

    Returns:
        The method, for `swapjax.prune`. Its details are ``damping``, the lambda of the
        back-solve, in the units of the argument; ``exchanges``, the pairs exchanged;
        ``selection``, f of the mask; and, of several starts or dampings, ``loss``, the
        mean loss of the stage's examples with the weights returned.

    Raises:
        ValueError: for values out of range, naming the argument; when called, for a
            plan with N:M patterns, in which a weight has few to change places with, and
            of units such as channels.
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
        needs_shapes=False,
    )


def _solve(
    problem: Problem,
    budget: Budget,
    *,
    start: tuple[Start, ...],
    damping: tuple[float, ...],
    candidates: int,
    passes: int,
    block: int,
    output_axis: int | None,
) -> Solution:
    rows, w = rows_of(problem), problem.weights
    if any(budget.patterns):
        raise ValueError("pattern: cbs does not exchange within N:M patterns")
    if budget.units is not None:
        raise ValueError(f"pattern: cbs does not exchange {budget.units.pattern}")
    squares = rows.mean_squares()

    def first(rule: Start) -> Leaves:
        if rule == "magnitude":
            ranked = scores.magnitude(w)
        elif rule == "obd":
            ranked = scores.fisher_diagonal(w, squares)
        else:
            ranked = rank(problem, block, output_axis, damping[0])
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
                "damping": fit.ridge / rows.n,
                "exchanges": found.exchanges.astype(lost.dtype),
                "selection": found.value,
            },
        )

    supports = stack([first(rule) for rule in start])
    looked = jax.lax.map(
        lambda support: search(
            rows, w, support, squares, budget, problem.loss, problem.within,
            damping=damping[0], candidates=candidates, passes=passes,
        ),
        supports,
    )  # fmt: skip
    grid = jax.tree.map(lambda x: jnp.repeat(x, len(damping), axis=0), looked)
    lams = jnp.tile(jnp.asarray(damping, jnp.result_type(float)), len(start))
    return best_of(finish, (grid, lams), problem.loss)
