"""The re-fit by conjugate gradients on G: no n x n array, two passes over G a step."""

from collections.abc import Callable
from typing import Literal, NamedTuple

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
from swapjax.pruning.solvers.unit_blocks import SupportRidge
from swapjax.sparsity import masks

Algebra = Literal["auto", "gram", "cg"]
_STEPS = 100  # of conjugate gradients, at most
_RESIDUAL = 1e-5  # of a solution, relative to the right-hand side, at which they end
_DENSITY = 0.1  # that costs are weighed for; the true one is known too late
_FORMING = 1.5  # passes that products with a vector take, for one that forms rows
_STREAMING = 10  # times a product of matrices is faster than as many with vectors


def prefers_cg(
    rows: GradientOperator, weights: Leaves, solves: int, grams: int = 1
) -> bool:
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
        solves: systems to solve: dampings times rounds.
        grams: how many of them have a Gram matrix of their own.
    """
    total = max(1, sum(w.size for w in weights))
    gram, cg = grams * _DENSITY * rows.n / 2, 2.0 * _STEPS * solves
    if isinstance(rows, StoredRows):
        return gram + 10 * grams * rows.n**2 / total > cg * _STREAMING
    return gram * _FORMING > cg


class _System(NamedTuple):
    """``G_S^T M G_S + n R_SS``, as products.

    Attributes:
        rows: the operator G.
        support: bool leaves S.
        damping: lambda, of the identity.
        ridge: R; None for the identity.
    """

    rows: GradientOperator
    support: Leaves
    damping: jax.Array
    ridge: SupportRidge | None

    def hold(self, v: Leaves) -> Leaves:
        """Compute ``n lambda v``, or ``n R v``."""
        n = self.rows.n
        if self.ridge is None:
            return tuple(n * self.damping * x for x in v)
        return tuple(n * x for x in self.ridge.multiply(v))

    def hold_support(self, v: Leaves) -> Leaves:
        """Compute the same on the support."""
        return masks.apply_masks(self.hold(v), self.support)

    def scale(self) -> Callable[[Leaves], Leaves] | None:
        """Make what divides by the diagonal of ``n R``; None for the identity.

        Outputs are held as firmly as what they count, which differs by orders.
        """
        if self.ridge is None:
            return None
        diagonals = tuple(self.rows.n * r for r in self.ridge.diagonal())
        inverses = tuple(jnp.where(r > 0, 1 / r, 1) for r in diagonals)
        return lambda v: tuple(
            (x * r).astype(x.dtype) for x, r in zip(v, inverses, strict=True)
        )

    def solve(
        self, fit: least_squares.Fit, right: jax.Array, besides: Leaves | None = None
    ) -> tuple[Leaves, jax.Array]:
        """Solve for the change that a residual calls for; tell if it converged.

        Args:
            fit: its metric is M.
            right: the residual r, of which the right-hand side is ``G_S^T M r``.
            besides: what is added to that.
        """
        dtype = right.dtype

        def pull(residual: jax.Array) -> Leaves:
            moved = least_squares.apply_metric(fit.metric, residual)
            pulled = tuple(g.astype(dtype) for g in self.rows.pull_back(moved))
            return masks.apply_masks(pulled, self.support)

        def multiply(d: Leaves) -> Leaves:
            return optax.tree.add(pull(self.rows.project(d)), self.hold_support(d))

        vector = pull(right)
        if besides is not None:
            vector = optax.tree.add(vector, besides)
        found, _ = jax.scipy.sparse.linalg.cg(
            multiply, vector, tol=_RESIDUAL, maxiter=_STEPS, M=self.scale()
        )
        left = optax.tree.norm(optax.tree.sub(vector, multiply(found)))
        return found, left <= 2 * _RESIDUAL * optax.tree.norm(vector)


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
    ridge: SupportRidge | None = None,
) -> Refit:
    """As `swapjax.pruning.solvers.refit.refit`, from products with G alone.

    Solves ``(G_S^T M G_S + n lambda I) d = G_S^T M (t - G_S wbar_S)`` for the change d;
    with a ridge R, ``G_S^T M G_S + n R_SS`` on the left, and ``n R_S,off wbar_off``
    besides on the right.
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
        ridge: what holds the weights, in the place of damping; None for the identity.
    """
    n, dtype = rows.n, y.dtype
    kept = masks.apply_masks(reference, support)
    off = tuple(x.astype(dtype) for x in optax.tree.sub(reference, kept))
    start = rows.project(kept)
    damping = jnp.asarray(damping, dtype)
    used = jnp.where(damping > 0, jnp.maximum(damping, jnp.finfo(dtype).eps), 0)

    system = _System(rows, support, used, ridge)

    def value(fit: least_squares.Fit, d: Leaves, x: jax.Array) -> jax.Array:
        change = optax.tree.sub(d, off)
        held = 0.5 * optax.tree.vdot(change, system.hold(change))
        return (least_squares.misfit(fit, x) + held).astype(dtype)

    def one_round(carry: tuple) -> tuple:
        i, _, fit, state, trace, _ = carry
        d, reached = system.solve(fit, fit.targets - start, besides)
        x = start + rows.project(d)
        fit, state = target.fit(state, x, y)
        trace = jnp.where(jnp.arange(rounds + 1) > i, value(fit, d, x), trace)
        return i + 1, d, fit, state, trace, reached

    def unsettled(carry: tuple) -> jax.Array:
        i, _, _, _, trace, _ = carry
        change = jnp.abs(trace[i - 1] - trace[i])
        return (i < rounds) & (change > tolerance * jnp.abs(trace[i]))

    none = tuple(jnp.zeros(w.shape, dtype) for w in reference)
    besides = None if ridge is None else system.hold_support(off)
    fit, state = target.fit(state, start, y)
    trace = jnp.full(rounds + 1, value(fit, none, start))
    carry = jnp.zeros((), jnp.int32), none, fit, state, trace, jnp.asarray(True)
    carry = one_round(carry)
    if target.moves:
        carry = jax.lax.while_loop(unsettled, one_round, carry)
    i, d, fit, state, trace, reached = carry

    one = jnp.ones(n, dtype)
    step = () if bend is None else trees.cast_like(system.solve(fit, one)[0], kept)
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
