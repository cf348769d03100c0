"""The first-order term of the loss: a natural-gradient step on the support.

Regression on the projections keeps the network what it was. The loss also has a slope,
since neither training nor pruning leaves a network where its gradient vanishes. To
second order it changes by ``mean(v) + c/2 mean(v^2)`` with ``v = G d``, if its Hessian
is c times the Fisher of the rows. Minimising that shifts every target by ``-1/c``,
which moves the re-fitted weights by ``-s G_S^T (K + n lambda I)^-1 1`` with
``s = 1/c``: a step of natural-gradient descent that shares the factorised system.

Of the negative log-likelihood of single examples c is 1, which is all that theory says.
In other units of the loss the Hessian grows by them and the Fisher by their square; of
batches the Fisher shrinks; of a squared error c has to do with its residuals, and in a
network that fits its training data the empirical Fisher vanishes. So c is measured.

Taken in full it descends the sampling noise of few examples along with the gradient.
So the rows say how far to trust it, and the loss has the last word.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from swapjax.core.types import Leaves
from swapjax.gradients.operator import GradientOperator
from swapjax.pruning.method import Problem, rows_of
from swapjax.pruning.solvers.dual_system import System
from swapjax.pruning.solvers.judges import LEAST

_ROUNDING = 1e-4  # of a loss: smaller changes of it say nothing of its curvature

FRACTIONS = (0.0, 0.25, 0.5, 1.0)  # of the trusted length, tried on the loss


def direction(system: System) -> jax.Array:
    """Find the step in R^n: G_S pulls it back to the weights."""
    return system.inverse(jnp.ones_like(system.inverted))


def bend(
    rows: GradientOperator,
    weights: Leaves,
    kept: Leaves,
    before: jax.Array,
    after: jax.Array,
) -> jax.Array:
    """Measure c, how many Fishers of the rows the Hessian of the loss is.

    Along the way from the weights to the thresholded ones, which is far enough for the
    loss to tell: ``c = 2 (rise - mean(v)) / mean(v^2)``. Where it does not rise, or by
    rounding alone, the projections of the weights stand for the unit of the loss, as
    they roughly do in a network whose loss is a log-likelihood.

    Args:
        rows: the operator G at the weights.
        weights: the leaves.
        kept: the same on a support, zero off it.
        before: the mean loss at the weights.
        after: the mean loss at those kept.

    Returns:
        c in units of the rows, a positive number.
    """
    v = rows.project(optax.tree.sub(kept, weights))
    unit = jnp.ones((), v.dtype) if rows.unit is None else rows.unit.astype(v.dtype)
    rise = ((after - before) / unit).astype(v.dtype)
    least = _ROUNDING * jnp.maximum(jnp.abs(before), jnp.abs(after)) / unit
    over, square = rise - jnp.mean(v), jnp.mean(jnp.square(v))
    told = jnp.isfinite(over) & (over > least) & (square > 0)
    size = jnp.sqrt(jnp.mean(jnp.square(rows.project(weights))) / rows.batch)
    instead = 1 / jnp.where(size > 0, size, 1)
    return jnp.where(told, 2 * over / jnp.where(told, square, 1), instead)


def bend_of(problem: Problem, kept: Leaves) -> jax.Array:
    """Measure c on the way from a problem's weights to those kept; see `bend`."""
    rows, weights = rows_of(problem), problem.weights
    # A criterion does not tell how the loss bends.
    loss = rows.loss if problem.has_criterion else problem.loss
    return bend(rows, weights, kept, loss(weights), loss(kept))


class Trust(NamedTuple):
    """What rows left out say of the step: means over rows, of v and of its square.

    The predicted mean loss is ``mean(v) + c/2 mean(v^2)`` with
    ``v = missed - s follow``.
    """

    follow: jax.Array
    both: jax.Array
    square: jax.Array

    def length(self, bend: jax.Array) -> jax.Array:
        """Find the length under which the rows left out predict the smallest loss.

        Args:
            bend: c, how many Fishers of the rows the Hessian is.

        Returns:
            s, between 0 and ``1/c``.
        """
        rise = self.follow + bend * self.both
        curved = bend * self.square
        return jnp.clip(rise / jnp.where(curved > 0, curved, 1), 0, 1 / bend)


def trust(system: System, residual: jax.Array) -> Trust:
    """Ask rows left out how far to go, each in turn.

    For a re-fit without row i, ridge regression has the change that row i would see in
    closed form: its fitted value and its leverage are enough (with a plan as the metric
    this is an approximation).

    Args:
        system: of the support, [n, n].
        residual: ``t - G_S wbar_S``, what the re-fit makes up for, [n].
    """
    left = jnp.maximum(system.rest_diagonal(), LEAST)
    missed = -system.rest(residual) / left
    follow = 1 - system.rest(jnp.ones_like(residual)) / left
    means = map(jnp.mean, (follow, missed * follow, jnp.square(follow)))
    return Trust(*means)
