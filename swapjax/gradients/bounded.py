"""A loss that no example can raise by more than one: what wrong labels mislead less.

A few examples with wrong labels outweigh all others in a mean of losses: of those a
good network has the largest. Bounded,

    mean_i 1 - exp(-loss_i / u),

each counts one at most. Of a log-likelihood in units of u that is what the label lacks
in probability, the mean absolute error, which labels flipped at random leave in order
(Ghosh, Kumar and Sastry, AAAI 2017, arXiv:1712.09482). The unit u is taken from the
network: half of what it loses with all prunable weights zero, when it knows nothing, so
that a loss in other units gives the same answers; with ten classes that is 1.15 nats.
"""

import jax
import jax.numpy as jnp

from swapjax.core.types import Leaves
from swapjax.gradients.matrix_free import MatrixFreeRows, each_loss

SHARE = 0.5  # of the loss of a network that knows nothing


def bounded_loss(rows: MatrixFreeRows, leaves: Leaves, unit: jax.Array) -> jax.Array:
    """Measure the mean of ``1 - exp(-loss / u)`` over rows at other weights.

    Args:
        rows: a recipe of them, of single examples.
        leaves: the prunable weights.
        unit: u, more than 0.
    """
    losses = each_loss(rows, leaves)
    return jnp.mean(-jnp.expm1(-losses / unit.astype(losses.dtype)))
