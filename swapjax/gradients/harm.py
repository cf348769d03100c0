"""What pruning takes from single examples: harm, which wrong data misleads less.

The mean loss of data is a poor judge of pruning where labels or images are wrong. The
examples of which a good network has the largest losses outweigh all others, and weights
that forget the network to fit what is wrong look better than those that keep it. So an
example counts one at most, and only by what it loses,

    mean_i max(0, b_i - r_i)   with   b_i = 1 - exp(-loss_i / u),

r_i what b_i was in the network as it was last trained: before the first stage, or where
stages train, before each. Of a log-likelihood in units of u, b is what the label lacks
in probability, the mean absolute error, which labels flipped at random leave in order
(Ghosh, Kumar and Sastry, AAAI 2017, arXiv:1712.09482). The unit u is taken from the
network: half of what it loses with all prunable weights zero, when it knows nothing, so
that a loss in other units gives the same answers; with ten classes that is 1.15 nats.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from swapjax.core.types import Leaves, LossFn, Params
from swapjax.gradients.matrix_free import MatrixFreeRows, each_loss

SHARE = 0.5  # of the loss of a network that knows nothing


class Mark(NamedTuple):
    """What harm is measured against.

    Attributes:
        unit: u, more than 0.
        losses: of every example in the network that was trained, [n].
    """

    unit: jax.Array
    losses: jax.Array


def harm(rows: MatrixFreeRows, leaves: Leaves, mark: Mark) -> jax.Array:
    """Measure what examples lose by other weights, a number from 0 to 1.

    Args:
        rows: a recipe of them, of single examples.
        leaves: the prunable weights.
        mark: what harm is measured against.
    """
    return harm_of(each_loss(rows, leaves), mark)


def harm_of(losses: jax.Array, mark: Mark) -> jax.Array:
    """Measure harm by the losses that examples come to, [n].

    An example without a finite loss to compare with cannot lose; one that had less than
    0 loses as if that had been 0, where b would not stay below 1.
    """
    before = mark.losses.astype(losses.dtype)
    unit = mark.unit.astype(losses.dtype)
    is_known = jnp.isfinite(before)
    before = jnp.where(is_known, before, 0)
    rise = jnp.where(is_known, jnp.maximum(losses - before, 0), 0) / unit
    # exp(-r) - exp(-b), which does not cancel where both are small.
    return jnp.mean(-jnp.expm1(-rise) * jnp.exp(-jnp.maximum(before, 0) / unit))


def harm_in_batches(
    losses: Callable[[Params, Any], jax.Array], params: Params, *, unit: float
) -> LossFn:
    """Make a criterion of the harm out of what examples lose in the company of others.

    In training mode batch norm takes the statistics of the batch. Where they are
    estimated anew after pruning, those are nearer to what will be used than the ones of
    the network before. `prune` takes it as ``criterion=``, for rows of ``batch=16``
    examples or so; it costs twice the forward passes of a loss.

    Args:
        losses: ``losses(params, batch) -> [n]``, that of each example of a batch.
        params: the network that harm is measured against, as it was trained.
        unit: u, half of the loss of a network that knows nothing: ``log(10) / 2`` for
            the cross-entropy of ten classes.

    Returns:
        ``criterion(params, batch)``, a number from 0 to 1.

    Raises:
        ValueError: for a unit that is not above 0; when called, for losses that are not
            one an example.

    Example:
        >>> import jax.numpy as jnp, swapjax
        >>> def losses(params, x):  # of outputs without their mean in the batch
        ...     y = x @ params["kernel"]
        ...     return jnp.mean((y - jnp.mean(y, axis=0)) ** 2, axis=1)
        >>> trained = {"kernel": jnp.eye(3)}
        >>> criterion = swapjax.harm_in_batches(losses, trained, unit=0.5)
        >>> float(criterion(trained, jnp.ones((16, 3))))
        0.0
    """
    if not (math.isfinite(unit) and unit > 0):
        raise ValueError(f"unit: must be a number above 0, got {unit!r}")

    def criterion(changed: Params, batch: Any) -> jax.Array:
        before = losses(params, batch)
        if before.ndim != 1:
            raise ValueError(
                "losses: must return one number for each example of a batch, got shape "
                f"{before.shape}"
            )
        mark = Mark(jnp.asarray(unit, before.dtype), before)
        return harm_of(losses(changed, batch), mark)

    return criterion
