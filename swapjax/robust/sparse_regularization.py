"""Sparse regularisation: sharpened outputs that are pushed to be one-hot."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from swapjax.core.checks import require_count, require_fraction, take_amount
from swapjax.core.objective import Objective
from swapjax.core.types import Params
from swapjax.robust.inputs import Apply, require_data, values_of
from swapjax.robust.label_losses import LabelLoss
from swapjax.robust.memorized import largest_class

_MOST = 2**31 - 1  # of what the count of steps is multiplied to


def sharpen(logits: jax.Array, tau: float, *, normalize: bool = False) -> jax.Array:
    """Divide logits [n, K] by a temperature, and by their norms before if asked to.

    The largest probability of K classes that normalised logits can reach is
    ``1 / (1 + (K - 1) exp(-sqrt(K / (K - 1)) / tau))``, 0.478 for K = 10 at tau = 0.5.

    Args:
        logits: [n, K].
        tau: above 0; below 1 it sharpens.
        normalize: whether each row is divided by its l2 norm.
    """
    if normalize:
        squares = jnp.sum(jnp.square(logits), axis=-1, keepdims=True)
        # The norm itself has no derivative at 0.
        logits = logits * jax.lax.rsqrt(squares + 1e-24)
    return logits / tau


def lp_penalty(logits: jax.Array, p: float, *, clamp: float = 0.0) -> jax.Array:
    """Sum ``u_k^p`` over classes, u the softmax of logits [n, K]; float [n].

    1 for a one-hot u, ``K^(1 - p)`` for a uniform one.

    Args:
        logits: [n, K].
        p: above 0, 1 at most.
        clamp: u is taken as no less, and has no derivative below. The authors' code has
            1e-7, at which a one-hot u of ten classes is worth 2.80 with p = 0.1. By
            default ``exp(p log u)`` without a clamp, of which all derivatives are
            finite.
    """
    logs = jax.nn.log_softmax(logits)
    if clamp:
        logs = jnp.maximum(logs, math.log(clamp))
    return jnp.sum(jnp.exp(p * logs), axis=-1)


def sparse_regularized(
    apply: Apply,
    loss: LabelLoss,
    *,
    tau: float,
    p: float,
    weight: float,
    growth: float = 1.0,
    every: int = 1,
    times: int = 1,
    normalize: bool = False,
    clamp: float = 0.0,
) -> Objective:
    """Train against wrong labels by sparse regularisation of any loss.

    The mean over a batch of ``loss(z / tau, y) + w sum_k u_k^p``, with logits z, u the
    softmax of ``z / tau`` and w growing in steps. A loss of outputs that are
    permutations of one vector has the same sum over all labels, and is then tolerant of
    symmetric noise; a temperature below 1 and the penalty bring outputs there (Zhou et
    al., ICCV 2021, arXiv:2108.00192).

    Weights become large: clip gradients by their norm (the authors take 5, before
    weight decay), or training may end in one class, which `largest_class` tells.

    Args:
        apply: ``(params, images) -> logits [n, K]``, as in training.
        loss: ``(logits, labels) -> float [n]``, of `LABEL_LOSSES` or another.
        tau: the temperature, above 0.
        p: the exponent, above 0, 1 at most.
        weight: of the penalty at first, 0 or more.
        growth: what the weight is multiplied by, 1 or more.
        every: after how many steps.
        times: how often within so many steps, evenly: step t has the weight
            ``weight * growth ** floor(t * times / every)``.
        normalize: whether logits are divided by their norms first, as the authors do on
            all data but MNIST.
        clamp: of the probabilities in the penalty, see `lp_penalty`.

    Returns:
        An objective of batches ``(images, labels)``. Its state is the number of steps
        so far: one program serves for all weights. It tells ``base``, ``penalty``,
        ``weight`` and ``largest_class``, the share of the class predicted most.

    Raises:
        ValueError: for settings out of range. `swapjax.training.fit` raises one for
            labels that the network has no output for.
    """
    take_amount("tau", tau, zero=False)
    require_fraction("p", p, zero=False, one=True)
    take_amount("weight", weight)
    if take_amount("growth", growth) < 1:
        raise ValueError(f"growth must be 1 or more, got {growth}")
    require_fraction("clamp", clamp)
    require_count("every", every)
    require_count("times", times)
    every, times = every // math.gcd(every, times), times // math.gcd(every, times)
    if every * times > _MOST:
        raise ValueError(
            f"times must be {_MOST // every} or fewer in {every} steps, got {times}"
        )

    def init(params: Params, batch: Any) -> jax.Array:
        del params, batch
        return jnp.zeros((), jnp.int32)

    def of_batch(
        params: Params, step: jax.Array, batch: Any, key: jax.Array
    ) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
        del key
        images, labels = batch
        logits = apply(params, images)
        sharp = sharpen(logits, tau, normalize=normalize)
        base = jnp.mean(values_of(loss, sharp, labels, "loss"))
        penalty = jnp.mean(lp_penalty(sharp, p, clamp=clamp))
        # In two parts, since step * times may be beyond int32.
        grown = step // every * times + step % every * times // every
        now = weight * growth ** grown.astype(penalty.dtype)
        told = {
            "base": base,
            "penalty": penalty,
            "weight": now,
            "largest_class": largest_class(logits),
        }
        return base + now * penalty, step + 1, told

    return Objective(
        loss=of_batch, init=init, check=functools.partial(require_data, apply)
    )
