"""The re-fit by conjugate gradients on G: no n x n array, two passes over G a step."""

from typing import Literal

import jax
import jax.numpy as jnp
import jax.scipy.sparse.linalg
import optax

from swapjax.core import trees
from swapjax.core.types import Leaves
from swapjax.gradients.operator import GradientOperator
from swapjax.gradients.stored import StoredRows
from swapjax.pruning.solvers import least_squares
from swapjax.pruning.solvers.refit import Refit
from swapjax.pruning.solvers.targets import State, Target, describe
from swapjax.sparsity import masks

Algebra = Literal["auto", "gram", "cg"]
_STEPS = 100  # of conjugate gradients, at most
_RESIDUAL = 1e-5  # of a solution, relative to the right-hand side, at which they end
_DENSITY = 0.1  # that costs are weighed for; the true one is known too late
_FORMING = 1.5  # passes that products with a vector take, for one that forms rows
_STREAMING = 10  # times a product of matrices is faster than as many with vectors


def prefers_cg(rows: GradientOperator, weights: Leaves, solves: int) -> bool:
    """Whether conjugate gradients are likely to be faster than the Gram matrix.

    Counted in passes over the data for p weights, a tenth of them kept:

    ============ ============================ ==================================
    rows         Gram matrix                  conjugate gradients
    ============ ============================ ==================================
    matrix-free  ``1.5 * 0.1 n / 2``          ``2 * 100 * solves``
    stored       ``0.1 n / 2 + 10 n^2 / p``   ``2 * 100 * solves * 10``
    ============ ============================ ==================================

    Args:
        rows: the operator G.
        weights: the leaves, for their sizes.
        solves: systems that share a Gram matrix: dampings times rounds.
    """
    total = max(1, sum(w.size for w in weights))
    gram, cg = _DENSITY * rows.n / 2, 2.0 * _STEPS * solves
    if isinstance(rows, StoredRows):
        return gram + 10 * rows.n**2 / total > cg * _STREAMING
    return gram * _FORMING > cg


def refit(
    rows: GradientOperator,
    support: Leaves,
    reference: Leaves,
    y: jax.Array,
    target: Target,
    state: State,
    *,
    damping: jax.Array | float,
    bend: jax.Array | None,
    rounds: int,
    tolerance: float,
) -> Refit:
    """As `swapjax.pruning.solvers.refit.refit`, from products with G alone.

    Solves ``(G_S^T M G_S + n lambda I) d = G_S^T M (t - G_S wbar_S)`` for the change d.
    Rows left out cannot be had from products, so that the first-order step is offered
    in full. A system that is not solved in 100 steps counts as not settled.

    Args:
        rows: the operator G, of n rows.
        support: bool leaves.
        reference: the weights wbar.
        y: ``G wbar``, [n].
        target: the variant of the objective.
        state: as the target prepared it for y.
        damping: lambda; may be traced. Raised to what rounding resolves beside rows in
            their unit.
        bend: c of the first-order step, see `natural_step.bend`; None for no step.
        rounds: the most alternations.
        tolerance: the relative change of Q at which to stop.
    """
    n, dtype = rows.n, y.dtype
    kept = masks.apply_masks(reference, support)
    lost = optax.tree.norm(optax.tree.sub(reference, kept), squared=True)
    start = rows.project(kept)
    damping = jnp.asarray(damping, dtype)
    used = jnp.where(damping > 0, jnp.maximum(damping, jnp.finfo(dtype).eps), 0)
    ridge = n * used

    def pull(residual: jax.Array) -> Leaves:
        pulled = tuple(g.astype(dtype) for g in rows.pull_back(residual))
        return masks.apply_masks(pulled, support)

    def solve(fit: least_squares.Fit, right: jax.Array) -> tuple[Leaves, jax.Array]:
        """Solve ``(G_S^T M G_S + n lambda I) d = G_S^T M r``; tell if it converged."""

        def multiply(d: Leaves) -> Leaves:
            moved = pull(least_squares.apply_metric(fit.metric, rows.project(d)))
            return tuple(m + ridge * x for m, x in zip(moved, d, strict=True))

        vector = pull(least_squares.apply_metric(fit.metric, right))
        found, _ = jax.scipy.sparse.linalg.cg(
            multiply, vector, tol=_RESIDUAL, maxiter=_STEPS
        )
        left = optax.tree.norm(optax.tree.sub(vector, multiply(found)))
        return found, left <= 2 * _RESIDUAL * optax.tree.norm(vector)

    def value(fit: least_squares.Fit, d: Leaves, x: jax.Array) -> jax.Array:
        held = 0.5 * ridge * (optax.tree.norm(d, squared=True) + lost)
        return (least_squares.misfit(fit, x) + held).astype(dtype)

    def one_round(carry: tuple) -> tuple:
        i, _, fit, state, trace, _ = carry
        d, reached = solve(fit, fit.targets - start)
        x = start + rows.project(d)
        fit, state = target.fit(state, x, y)
        trace = jnp.where(jnp.arange(rounds + 1) > i, value(fit, d, x), trace)
        return i + 1, d, fit, state, trace, reached

    def unsettled(carry: tuple) -> jax.Array:
        i, _, _, _, trace, _ = carry
        change = jnp.abs(trace[i - 1] - trace[i])
        return (i < rounds) & (change > tolerance * jnp.abs(trace[i]))

    none = tuple(jnp.zeros(w.shape, dtype) for w in reference)
    fit, state = target.fit(state, start, y)
    trace = jnp.full(rounds + 1, value(fit, none, start))
    carry = jnp.zeros((), jnp.int32), none, fit, state, trace, jnp.asarray(True)
    carry = one_round(carry)
    if target.moves:
        carry = jax.lax.while_loop(unsettled, one_round, carry)
    i, d, fit, state, trace, reached = carry

    one = jnp.ones(n, dtype)
    step = () if bend is None else trees.cast_like(solve(fit, one)[0], kept)
    settled = jnp.abs(trace[i - 1] - trace[i]) <= tolerance * jnp.abs(trace[i])
    return Refit(
        weights=optax.tree.add(kept, trees.cast_like(d, kept)),
        objective=trace,
        rounds=i,
        settled=(settled | (not target.moves)) & reached,
        deficient=jnp.asarray(False),
        damping=used,
        raised=used > damping,
        step=step,
        length=jnp.asarray(0 if bend is None else 1 / bend, dtype),
        couplings=describe(state),
    )
