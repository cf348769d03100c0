"""The re-fit on a support: weights and coupling in turn, all of it in R^n."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from swapjax.core import trees
from swapjax.core.types import Leaves
from swapjax.gradients.operator import GradientOperator
from swapjax.pruning.solvers import dual_system, judges, least_squares, natural_step
from swapjax.pruning.solvers.targets import State, Target, describe
from swapjax.pruning.solvers.unit_blocks import SupportRidge
from swapjax.sparsity import masks


class Ground(NamedTuple):
    """What all re-fits on one support share, whatever their damping.

    Attributes:
        support: bool leaves.
        kept: the weights that the ridge alone would choose, zero off the support: with
            the identity the reference on it.
        lost: twice what the ridge takes for them, in its own units: with the identity
            the squared norm of the reference off the support.
        start: the projections of kept, [n].
        spectrum: of the n x n system.
        fit: the target's quadratic at the start.
        state: what the target carries on.
        ridge: what holds the weights, None for the identity.
    """

    support: Leaves
    kept: Leaves
    lost: jax.Array
    start: jax.Array
    spectrum: dual_system.Spectrum
    fit: least_squares.Fit
    state: State
    ridge: SupportRidge | None = None


class Refit(NamedTuple):
    """Weights re-fitted on a support.

    Attributes:
        weights: the leaves, zero off the support.
        objective: Q before the first round and after each, [rounds + 1]; the last
            value is repeated once the tolerance is met.
        rounds: how many were needed.
        settled: whether the last round changed Q by less than the tolerance.
        deficient: whether the n x n system was singular.
        damping: lambda as it was used.
        raised: whether that is more than what was asked for.
        step: the leaves of a first-order step, to be subtracted; empty for none.
        length: how much of it the rows left out confirm, between 0 and 1/c.
        couplings: what is to be told of the last couplings, by name; scalars.
        left_out: the error of rows left out, see `judges.left_out`; empty for none.
    """

    weights: Leaves
    objective: jax.Array
    rounds: jax.Array
    settled: jax.Array
    deficient: jax.Array
    damping: jax.Array
    raised: jax.Array
    step: Leaves
    length: jax.Array
    couplings: dict[str, jax.Array]
    left_out: jax.Array | tuple[()] = ()


def prepare(
    rows: GradientOperator,
    support: Leaves,
    reference: Leaves,
    y: jax.Array,
    target: Target,
    state: State,
    least: jax.Array | float = 0.0,
    ridge: SupportRidge | None = None,
) -> Ground:
    """Do once what every damping needs: the Gram matrix, its eigenvalues if need be.

    A ridge R, ``n/2 v^T R v`` with v the change of all weights, is one damping by
    itself, 1. On the support it alone would choose ``wbar_S + d0``, where
    ``R_SS d0 = R_S,off wbar_off``; and from there the change is
    ``R_SS^-1 G_S^T (G_S R_SS^-1 G_S^T + n I)^-1 (t - G_S (wbar_S + d0))`` (Woodbury).
    So all that follows is as with the identity, in the metric of the ridge.

    Args:
        rows: the operator G, of n rows.
        support: bool leaves.
        reference: the weights wbar.
        y: ``G wbar``, [n].
        target: the variant of the objective.
        state: as the target prepared it for y.
        least: the smallest damping there will be; 0 for any.
        ridge: what holds the weights, on the support; None for the identity.
    """
    kept = masks.apply_masks(reference, support)
    off = optax.tree.sub(reference, kept)
    if ridge is None:
        lost = optax.tree.norm(off, squared=True)
        gram = rows.gram(support)
    else:
        # In 16 bits the product would be rounded, and the inverse make much of that.
        off = tuple(x.astype(y.dtype) for x in off)
        change, gram = ridge.solve_and_gram(ridge.multiply(off), rows)
        kept = trees.cast_like(optax.tree.add(kept, change), kept)
        left = optax.tree.sub(change, off)
        lost = optax.tree.vdot(left, ridge.multiply(left))
    start = rows.project(kept)
    lost = lost.astype(start.dtype)
    fit, state = target.fit(state, start, y)
    spectrum = dual_system.diagonalise(gram.astype(start.dtype), fit.metric, least)
    return Ground(support, kept, lost, start, spectrum, fit, state, ridge)


class Dual(NamedTuple):
    """A re-fit in R^n: `finish` makes weights of it, with what G pulls back.

    Attributes:
        change: c, ``G_S^T c`` is the change from kept, in the metric of the ridge.
        step: the same of the first-order step; empty for none.
        trust: what rows left out say of its length.
        fit: all that is known by now of the re-fit, no leaves among it.
    """

    change: jax.Array
    step: jax.Array | tuple[()]
    trust: natural_step.Trust | tuple[()]
    fit: Refit


def solve(
    ground: Ground,
    y: jax.Array,
    target: Target,
    *,
    damping: jax.Array | float,
    first_order: bool,
    rounds: int,
    tolerance: float,
    judge: judges.Judge = "loss",
) -> Dual:
    """Find the projections on a support nearest the targets; no leaves are touched.

    With the coupling held the answer is one product with the solved n x n system
    (Woodbury); the coupling then follows the new projections. Each half lowers Q for a
    target whose fit majorises it, which all but ``"debiased"`` do; the round that
    raises it is the last, and does not count.

    Args:
        ground: from `prepare`.
        y: ``G wbar``, [n].
        target: the variant of the objective.
        damping: lambda; may be traced; 1 with a ridge of its own.
        first_order: whether there is to be a first-order step.
        rounds: the most alternations.
        tolerance: the relative change of Q at which to stop.
        judge: who chooses among re-fits.
    """
    start, gram = ground.start, ground.spectrum.gram
    fit, state = ground.fit, ground.state
    system = dual_system.damp(ground.spectrum, damping)

    def objective(fit: least_squares.Fit, c: jax.Array, x: jax.Array) -> jax.Array:
        held = 0.5 * system.ridge * (jnp.vdot(c, gram @ c) + ground.lost)
        return least_squares.misfit(fit, x) + held

    def one_round(carry: tuple) -> tuple:
        i, before, fit, state, trace = carry
        c = dual_system.solve(system, fit, start)
        x = start + gram @ c
        fit, state = target.fit(state, x, y)
        value = objective(fit, c, x)
        # A target that does not majorise Q may run away: rounding would decide where.
        rose = value > trace[i] + tolerance * jnp.abs(trace[i])
        c = jnp.where(rose, before, c)
        # Entries that are never reached repeat the last one.
        trace = jnp.where(jnp.arange(rounds + 1) > i, value, trace)
        return i + 1, c, fit, state, trace

    def unsettled(carry: tuple) -> jax.Array:
        i, _, _, _, trace = carry
        fell = trace[i - 1] - trace[i]
        # A NaN makes this False, and ends the loop.
        return (i < rounds) & (fell > tolerance * jnp.abs(trace[i]))

    zero = jnp.zeros_like(start)
    trace = jnp.full(rounds + 1, objective(fit, zero, start))
    carry = one_round((jnp.zeros((), jnp.int32), zero, fit, state, trace))
    if target.moves:
        carry = jax.lax.while_loop(unsettled, one_round, carry)
    i, c, fit, state, trace = carry
    settled = jnp.abs(trace[i - 1] - trace[i]) <= tolerance * jnp.abs(trace[i])
    known = Refit(
        weights=(),
        objective=trace,
        rounds=i,
        settled=settled | (not target.moves),
        deficient=system.deficient,
        damping=system.ridge / len(start),
        raised=system.raised,
        step=(),
        length=jnp.zeros_like(trace[0]),
        couplings=describe(state),
        left_out=judges.left_out(judge, system, fit.targets, start, y),
    )
    if not first_order:
        return Dual(c, (), (), known)
    trust = natural_step.trust(system, fit.targets - start)
    return Dual(c, natural_step.direction(system), trust, known)


def pull_back(rows: GradientOperator, ground: Ground, residual: jax.Array) -> Leaves:
    """Compute ``G_S^T r``, in the metric of the ridge and the dtypes of the weights.

    Args:
        rows: the operator G.
        ground: from `prepare`.
        residual: r, [n].
    """
    pulled = rows.pull_back(residual)
    if ground.ridge is not None:
        pulled = ground.ridge.solve(pulled)
    pulled = trees.cast_like(pulled, ground.kept)
    return masks.apply_masks(pulled, ground.support)


def finish(
    ground: Ground, dual: Dual, change: Leaves, step: Leaves, bend: jax.Array | None
) -> Refit:
    """Make weights of a re-fit in R^n.

    Args:
        ground: from `prepare`.
        dual: from `solve`.
        change: its change, pulled back.
        step: its first-order step, pulled back; empty for none.
        bend: c of the first-order step, see `natural_step.bend`; None for no step.
    """
    weights = optax.tree.add(ground.kept, change)
    if bend is None:
        return dual.fit._replace(weights=weights)
    assert isinstance(dual.trust, natural_step.Trust)
    length = dual.trust.length(bend)
    return dual.fit._replace(weights=weights, step=step, length=length)


def refit(
    rows: GradientOperator,
    ground: Ground,
    y: jax.Array,
    target: Target,
    *,
    damping: jax.Array | float,
    bend: jax.Array | None,
    rounds: int,
    tolerance: float,
    judge: judges.Judge = "loss",
) -> Refit:
    """Find the weights on a support that bring the projections nearest the targets.

    Leaves are touched at the end only, in reverse mode.

    Args:
        rows: the operator G, of n rows.
        ground: from `prepare`.
        y: ``G wbar``, [n].
        target: the variant of the objective.
        damping: lambda; may be traced; 1 with a ridge of its own.
        bend: c of the first-order step, see `natural_step.bend`; None for no step.
        rounds: the most alternations.
        tolerance: the relative change of Q at which to stop.
        judge: who chooses among re-fits.
    """
    dual = solve(
        ground, y, target, damping=damping, first_order=bend is not None,
        rounds=rounds, tolerance=tolerance, judge=judge,
    )  # fmt: skip
    step: Leaves = ()
    if not isinstance(dual.step, tuple):
        step = pull_back(rows, ground, dual.step)
    return finish(ground, dual, pull_back(rows, ground, dual.change), step, bend)
