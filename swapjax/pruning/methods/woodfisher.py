"""WoodFisher and WoodTaylor: Optimal Brain Surgeon with the empirical Fisher."""

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from swapjax.core import trees
from swapjax.core.checks import require_count
from swapjax.core.types import Leaves
from swapjax.gradients.operator import Blocks, GradientOperator
from swapjax.pruning.damping import check_dampings
from swapjax.pruning.method import Method, Problem, Solution, rows_of
from swapjax.pruning.solvers import cholesky, natural_step
from swapjax.pruning.solvers import fisher_blocks as blockwise
from swapjax.pruning.solvers.backsolve import backsolve
from swapjax.pruning.solvers.candidates import best_of, conclude, pick
from swapjax.pruning.solvers.fisher_blocks import Curvature, Update
from swapjax.sparsity import scores
from swapjax.sparsity.budget import Budget, count_by_group, select
from swapjax.sparsity.masks import apply_masks

_DAMPINGS, _DAMPINGS_FIRST_ORDER = (1e-6, 1e-4), (1e-3,)


def woodfisher(
    *,
    block: int | None = 1000,
    damping: float | tuple[float, ...] | None = None,
    update: Literal["joint", "independent", "none"] = "joint",
    first_order: bool = False,
    rounds: int = 1,
    output_axis: int | None = None,
) -> Method:
    """Remove the weights whose removal costs least once all others have adapted.

    With ``H = (1/n) G^T G + lambda I`` an entry scores ``w_q^2 / [H^-1]_qq``, twice
    what the loss rises by when it alone is removed and the others make up for it
    (Optimal Brain Surgeon; WoodFisher, Singh and Alistarh, NeurIPS 2020,
    arXiv:2004.14340). Through the identity of Woodbury the full H costs one n x n
    system, O(n^2 p) time; blocks cost O(n p c + p c^2) time and c^2 memory with stored
    rows, O(n^2 p) time for c > n, and p c memory with matrix-free ones.

    Args:
        block: entries of a diagonal block of H, chunks of each leaf; None for the full
            matrix.
        damping: lambda, in units of the mean squared norm of the gradient rows, the
            trace of the whole Fisher. Of several the one with the lowest loss is taken.
            By default 1e-6 and 1e-4, or 1e-3 with first_order, which small dampings let
            run away.
        update: how kept weights make up for removed ones. ``"joint"`` solves for all
            of them at once; ``"independent"`` adds up what each removal alone calls
            for, as the authors' code does; ``"none"`` keeps weights as they are.
        first_order: WoodTaylor, which also follows the gradient: everything above
            counts from ``w - H^-1 g``, g over the number of Fishers that make up the
            Hessian, as the loss of the largest weights alone tells it.
        rounds: steps in which entries are removed, with gradients taken anew of the
            same examples before each but the first. Removed entries stay removed in
            later rounds. With stored rows a second G is then held.
        output_axis: which axis of a leaf counts outputs, so that a block stays within
            one as far as it can; by default what the plan knows of each leaf.

    Returns:
        The method, for `swapjax.prune`. Its details are ``damping``, the largest
        lambda that a block needed, in the units of the argument; and, of several
        dampings, ``loss``, the mean loss of the stage's examples with the weights
        returned.

    Raises:
        ValueError: for values out of range, naming the argument.
    """
    if block is not None:
        require_count("block", block)
    if update not in ("joint", "independent", "none"):
        raise ValueError(
            f"update must be 'joint', 'independent' or 'none', got {update!r}"
        )
    require_count("rounds", rounds)
    if damping is None:
        damping = _DAMPINGS_FIRST_ORDER if first_order else _DAMPINGS
    settings: dict[str, Any] = {
        "block": block,
        "damping": check_dampings(damping),
        "update": update,
        "first_order": first_order,
        "rounds": rounds,
        "output_axis": output_axis,
    }
    return Method(
        name="woodfisher",
        settings=tuple(settings.items()),
        solve=functools.partial(_solve, **settings),
        needs_shapes=False,
    )


def _solve(
    problem: Problem,
    budget: Budget,
    *,
    block: int | None,
    damping: tuple[float, ...],
    update: str,
    first_order: bool,
    rounds: int,
    output_axis: int | None,
) -> Solution:
    rows = rows_of(problem)
    if rounds > 1 and any(budget.patterns):
        raise ValueError("rounds: a pattern is reached in one round; use stages")
    dampings = jnp.asarray(damping, jnp.result_type(float))
    bend = None
    if first_order:
        mask = select(scores.magnitude(problem.weights), budget, problem.within)
        kept = apply_masks(problem.weights, mask)
        bend = natural_step.bend_of(problem, kept)
    cut = None
    if block is not None:
        cut = blockwise.partition(problem.weights, block, output_axis, problem.layout)

    def once(
        rows: GradientOperator,
        dampings: jax.Array,
        weights: Leaves,
        budget: Budget,
        within: Leaves | None,
    ) -> tuple[Update, Leaves]:
        surgeon = _Full(rows, dampings) if cut is None else _Blocks(rows, dampings, cut)
        return _prune(surgeon, weights, budget, within, update=update, bend=bend)

    def several(lam: jax.Array) -> tuple[Update, Leaves]:
        """Remove a share of what is to go, take gradients anew, and so on."""

        def one_round(carry: tuple, r: jax.Array) -> tuple[tuple, Update]:
            weights, mask = carry
            share = _on_the_way(mask, budget, r, rounds)
            taken = rows.at(weights)
            found, mask = pick(0, once(taken, lam[None], weights, share, mask))
            new = trees.cast_like(found.weights, weights)
            return (new, mask), found._replace(weights=())

        everywhere = tuple(jnp.ones(w.shape, bool) for w in problem.weights)
        start = problem.weights, problem.within or everywhere
        steps = jnp.arange(rounds, dtype=jnp.int32)
        (weights, mask), found = jax.lax.scan(one_round, start, steps)
        # Every round has a model of its own; the last one's values are told.
        return Update(
            weights, found.objective[-1], found.damping.max(), found.raised.any()
        ), mask

    if rounds > 1:
        options = jax.lax.map(several, dampings)
    else:
        options = once(rows, dampings, problem.weights, budget, problem.within)

    def make(option: tuple[Update, Leaves]) -> Solution:
        found, mask = option
        return conclude(
            problem,
            found.weights,
            mask,
            objective=found.objective,
            iterations=rounds,
            raised=found.raised,
            details={"damping": found.damping},
        )

    return best_of(make, options, problem.loss)


def _prune(
    surgeon: "_Blocks | _Full",
    weights: Leaves,
    budget: Budget,
    within: Leaves | None,
    *,
    update: str,
    bend: jax.Array | None,
) -> tuple[Update, Leaves]:
    """Remove the entries that cost least, and update the others; see `woodfisher`.

    Returns:
        The update and the masks for each damping of the surgeon, with a leading axis.
    """
    rows, slope = surgeon.rows, None
    if bend is not None:
        # H is in Fishers of the rows, of which the Hessian is so many.
        slope = rows.pull_back(jnp.full(rows.n, 1 / rows.n) / bend)
    curvature = surgeon.examine(weights, slope)
    count = len(surgeon.dampings)
    start = tuple(jnp.broadcast_to(w, (count, *w.shape)) for w in weights)
    if curvature.newton is not None:
        start = trees.cast_like(optax.tree.sub(start, curvature.newton), start)
    diagonal = curvature.inverse_diagonal
    masks = jax.lax.map(
        lambda args: select(_scores(*args), budget, within), (start, diagonal)
    )
    found = surgeon.remove(start, masks, diagonal if update == "independent" else None)
    if update == "none":
        kept = apply_masks(start, masks)
        found = found._replace(weights=kept, objective=found.objective[:, :1])
    raised = found.raised | curvature.raised
    used = jnp.maximum(found.damping, curvature.damping)
    return found._replace(raised=raised, damping=used), masks


def rank(
    problem: Problem, block: int, output_axis: int | None, damping: float
) -> Leaves:
    """Score by the root of ``w^2 / [H^-1]_qq``, H in blocks: large means keep."""
    rows, weights = rows_of(problem), problem.weights
    cut = blockwise.partition(weights, block, output_axis, problem.layout)
    dampings = jnp.asarray([damping], jnp.result_type(float))
    found = blockwise.examine(rows, cut, weights, dampings)
    return _scores(weights, pick(0, found.inverse_diagonal))


def _scores(weights: Leaves, inverse_diagonal: Leaves) -> Leaves:
    # The root of what an entry costs: squares of tiny weights vanish. In float32 at
    # least: 1 / damping is beyond what float16 holds.
    wide = trees.wide(weights)
    return tuple(
        jnp.abs(w.astype(wide)) / jnp.sqrt(d.astype(wide))
        for w, d in zip(weights, inverse_diagonal, strict=True)
    )


class _Blocks:
    """The diagonal blocks of H, for several dampings at once."""

    def __init__(
        self, rows: GradientOperator, dampings: jax.Array, blocks: Blocks
    ) -> None:
        self.rows, self.dampings, self.blocks = rows, dampings, blocks

    def examine(self, weights: Leaves, slope: Leaves | None) -> Curvature:
        return blockwise.examine(self.rows, self.blocks, weights, self.dampings, slope)

    def remove(self, weights: Leaves, masks: Leaves, alone: Leaves | None) -> Update:
        given = self.rows, self.blocks, weights, masks, self.dampings
        if alone is None:
            return blockwise.remove(*given)
        return blockwise.remove_alone(*given, alone)


class _Full:
    """H as a whole, through the n x n Gram matrix, for several dampings in turn."""

    def __init__(self, rows: GradientOperator, dampings: jax.Array) -> None:
        self.rows, self.dampings = rows, dampings

    def examine(self, weights: Leaves, slope: Leaves | None) -> Curvature:
        gram = self.rows.gram()
        return jax.lax.map(
            lambda lam: self._examine(self._factor(gram, lam), slope), self.dampings
        )

    def remove(self, weights: Leaves, masks: Leaves, alone: Leaves | None) -> Update:
        gram = None if alone is None else self.rows.gram()
        return jax.lax.map(
            lambda args: self._remove(gram, *args),
            (self.dampings, weights, masks, alone),
        )

    def _factor(self, gram: jax.Array, damping: jax.Array) -> cholesky.Factor:
        """Factorise ``G G^T``, always with a ridge: H, of rank n, would be singular."""
        wanted = self.rows.n * damping
        least = jnp.trace(gram) * jnp.finfo(gram.dtype).eps
        factor = cholesky.factor(gram, jnp.where(wanted > 0, wanted, least))
        return factor._replace(raised=factor.raised | (wanted <= 0))

    def _solve(self, factor: cholesky.Factor, v: Leaves) -> Leaves:
        """``H^-1 v = (v - G^T (G G^T + n lambda I)^-1 G v) / lambda``."""
        inner = self.rows.pull_back(factor.solve(self.rows.project(v)))
        return tuple(
            (a - b) * self.rows.n / factor.ridge for a, b in zip(v, inner, strict=True)
        )

    def _examine(self, factor: cholesky.Factor, slope: Leaves | None) -> Curvature:
        n = self.rows.n
        # 1 - g^T (G G^T + n lambda I)^-1 g is positive; rounding may say otherwise.
        least = jnp.finfo(factor.lower.dtype).eps
        diagonal = tuple(
            jnp.maximum(1 - e, least) * n / factor.ridge
            for e in self.rows.energies(factor.inverse_root())
        )
        newton = None if slope is None else self._solve(factor, slope)
        return Curvature(diagonal, newton, factor.ridge / n, factor.raised)

    def _remove(
        self,
        gram: jax.Array | None,
        damping: jax.Array,
        weights: Leaves,
        mask: Leaves,
        alone: Leaves | None,
    ) -> Update:
        n = self.rows.n
        gone = optax.tree.sub(weights, apply_masks(weights, mask))
        lost = self.rows.project(gone)
        if alone is None:
            best = backsolve(self.rows, mask, lost, n * damping)
            change, ridge, raised = best.change, best.ridge, best.raised
        else:
            assert gram is not None
            factor = self._factor(gram, damping)
            ridge, raised = factor.ridge, factor.raised
            share = tuple(g / d for g, d in zip(gone, alone, strict=True))
            change = apply_masks(self._solve(factor, share), mask)
            change = tuple(-c for c in change)
        moved = tuple(c - g for c, g in zip(change, gone, strict=True))

        def value(projected: jax.Array, d: Leaves) -> jax.Array:
            held = ridge * optax.tree.norm(d, squared=True)
            return 0.5 * (jnp.vdot(projected, projected) + held)

        before = value(lost, gone)
        after = value(self.rows.project(moved), moved)
        new = tuple(
            (w + d).astype(w.dtype) for w, d in zip(weights, moved, strict=True)
        )
        new = apply_masks(new, mask)
        return Update(new, jnp.stack([before, after]), ridge / n, raised)


def _on_the_way(mask: Leaves, budget: Budget, r: jax.Array, rounds: int) -> Budget:
    """Count what is kept after round r: every round left removes an equal share."""
    kept = count_by_group(mask, budget)
    go = jnp.maximum(kept - budget.keep, 0) // (rounds - r)
    return dataclasses.replace(budget, keep=kept - go)
