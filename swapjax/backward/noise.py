"""How noisy pruned gradients are, and whether they are without bias."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from swapjax.backward.passing import Pruned, back_propagate, settings_of, unpruned
from swapjax.backward.state import BackwardState
from swapjax.core.checks import require_count
from swapjax.core.compiled import Compiled
from swapjax.core.objective import Objective
from swapjax.core.types import Params


@dataclasses.dataclass(frozen=True)
class GradientNoise:
    """The gradients of the weights over keys, for one batch.

    Attributes:
        snr: ``||E dW||^2 / E ||dW - E dW||^2`` over all leaves, without the bias that
            few draws have; infinite, or beyond rounding, where all draws agree.
        cosine: of the mean of the draws and the gradient without pruning.
        bias: ``||mean - dW|| / ||dW||``, of which noise alone makes
            ``1 / sqrt(draws snr)``.
        draws: how many keys.
    """

    snr: float
    cosine: float
    bias: float
    draws: int

    def as_dict(self) -> dict[str, float]:
        """Give all numbers by name, for JSON."""
        return dataclasses.asdict(self)


def gradient_noise(
    pruned: Objective,
    params: Params,
    state: BackwardState,
    batch: Any,
    key: jax.Array,
    *,
    draws: int = 32,
) -> GradientNoise:
    """Measure the noise that pruning adds to the gradients of a batch.

    Args:
        pruned: what `swapjax.backward.prune_backward` makes.
        params: the network.
        state: of the objective. With predicted thresholds nothing is pruned until its
            FIFOs are full.
        batch: of the loss.
        key: of the step, the same for a loss that draws itself; each draw of pruning
            takes a part of it.
        draws: how many passes back are compared.

    Raises:
        ValueError: for another objective, less than two draws, and what a step raises.
    """
    settings_of(pruned)
    require_count("draws", draws, least=2)
    exact = _exact((pruned,), params, state, batch, key)
    total = jax.tree.map(jnp.zeros_like, exact)
    squares = jnp.zeros(())
    for i in range(draws):
        own = jax.random.fold_in(key, i)
        total, squares = _add(
            (pruned,), total, squares, exact, params, state, batch, key, own
        )
    mean = jax.tree.map(lambda x: x / draws, total)
    return _told(exact, mean, float(squares), draws)


def _told(exact: Any, mean: Any, squares: float, draws: int) -> GradientNoise:
    """Make the numbers of the mean difference and the sum of squared ones."""
    size, off, along = (
        float(_dot(*pair)) for pair in ((exact, exact), (mean, mean), (exact, mean))
    )
    variance = max(squares - draws * off, 0.0) / (draws - 1)
    signal = size + 2 * along + off  # of the mean gradient, squared
    clean = max(signal - variance / draws, 0.0)
    cosine = (size + along) / math.sqrt(size * signal) if size and signal else math.nan
    return GradientNoise(
        snr=clean / variance if variance else math.inf,
        cosine=cosine,
        bias=math.sqrt(off / size) if size else math.nan,
        draws=draws,
    )


@Compiled
def _exact(
    pruned: Pruned, params: Params, state: BackwardState, batch: Any, key: jax.Array
) -> Params:
    way = unpruned(settings_of(pruned))
    return back_propagate(way, params, state, batch, key).passed.gradients


@Compiled
def _add(
    pruned: Pruned,
    total: Params,
    squares: jax.Array,
    exact: Params,
    params: Params,
    state: BackwardState,
    batch: Any,
    key: jax.Array,
    draw: jax.Array,
) -> tuple[Params, jax.Array]:
    """Add the difference of one draw, and its square."""
    way = settings_of(pruned)
    found = back_propagate(way, params, state, batch, key, draw=draw).passed.gradients
    # Differences, since squares of gradients would cancel where there is little noise.
    off = jax.tree.map(lambda a, b: (a - b).astype(jnp.float32), found, exact)
    return jax.tree.map(jnp.add, total, off), squares + _dot(off, off)


def _dot(one: Any, other: Any) -> jax.Array:
    parts = jax.tree.map(
        lambda a, b: jnp.vdot(a.astype(jnp.float32), b.astype(jnp.float32)), one, other
    )
    return jax.tree.reduce(jnp.add, parts)
