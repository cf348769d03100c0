"""The first-order term of the loss: a natural-gradient step on the support.

Regression on the projections keeps the network what it was. The loss also has a slope,
``(1/batch) 1^T G w`` in the units of Q, since neither training nor pruning leaves a
network where its gradient vanishes. Minimising both together shifts every target by
``-1/batch``, which moves the re-fitted weights by ``-s G_S^T (K + n lambda I)^-1 1``
with ``s = 1/batch``: a step of natural-gradient descent that shares the factorised
system.

Taken in full it descends the sampling noise of few examples along with the gradient,
and in a network that fits its training data the empirical Fisher is too small to bound
it. So the rows say how far to trust it, and the loss has the last word.
"""

import jax
import jax.numpy as jnp

from swapjax.pruning.solvers.least_squares import System

FRACTIONS = (0.0, 0.25, 0.5, 1.0)  # of the trusted length, tried on the loss


def direction(system: System) -> jax.Array:
    """Find the step in R^n: G_S pulls it back to the weights."""
    return jnp.sum(system.inverse, axis=1)


def trusted_length(system: System, residual: jax.Array, batch: int) -> jax.Array:
    """How far to go, by leaving each row out in turn.

    For a re-fit without row i, ridge regression has the change that row i would see in
    closed form: its fitted value and its leverage are enough (with a plan as the metric
    this is an approximation). The length under which
    the rows left out predict the smallest loss, to second order, is the one to trust.

    Args:
        system: of the support, [n, n].
        residual: ``t - G_S wbar_S``, what the re-fit makes up for, [n].
        batch: examples a row.

    Returns:
        s, between 0 and ``1/batch``.
    """
    # A row of leverage 1 is fitted by itself alone: leaving it out says nothing.
    left = jnp.maximum(jnp.diagonal(system.rest), 1e-6)
    unfitted = jnp.matmul(system.rest, residual, precision=jax.lax.Precision.HIGHEST)
    missed = -unfitted / left
    follow = 1 - jnp.sum(system.rest, axis=1) / left
    # The predicted mean loss is mean(v) + batch/2 mean(v^2), v = missed - s follow.
    rise = jnp.mean(follow) + batch * jnp.mean(missed * follow)
    bend = batch * jnp.mean(jnp.square(follow))
    return jnp.clip(rise / jnp.where(bend > 0, bend, 1), 0, 1 / batch)
