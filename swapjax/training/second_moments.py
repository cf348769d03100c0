"""Second moments of weights that grow, in the state of any optimizer.

Adam's bias correction counts all updates, not those of a weight that grew a moment ago:
from moments of zero its steps are 2 to 7 times the learning rate, and an optimizer that
divides by the last second moment divides by zero. So a weight that grows takes the mean
second moment of the active weights of its leaf, or more if its gradient is larger than
theirs. Its momentum starts at zero. Which arrays of a state are second moments is found
out by giving the optimizer a few numbers.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from swapjax.core.types import Params
from swapjax.training.inputs import is_trained


class Typical(NamedTuple):
    """What is usual among the active weights of a leaf, scalars.

    Attributes:
        size: their mean second moment; negative where there are none.
        scale: one over the mean square of their gradients.
    """

    size: jax.Array
    scale: jax.Array


def find_sizes(
    optimizer: optax.GradientTransformationExtraArgs, params: Params
) -> list[bool]:
    """Tell which arrays of a state measure how large gradients are.

    They are those that do not change with the sign of the gradients, but do with their
    size. One update of three tiny networks tells.

    Returns:
        A bool for each leaf of the state; none where that cannot be found out.
    """

    def after(size: float) -> list[jax.Array]:
        def fill(value: float) -> Params:
            return jax.tree.map(
                lambda x: (
                    jnp.full((1,) * x.ndim, value, x.dtype) if is_trained(x) else x
                ),
                params,
            )

        tiny, slopes = fill(0.1), fill(size)
        return jax.tree.leaves(optimizer.update(slopes, optimizer.init(tiny), tiny)[1])

    try:
        # Small, so that what clips large gradients lets them through. Without jit,
        # which would take longer to compile than this takes.
        with jax.ensure_compile_time_eval(), jax.disable_jit():
            lanes = [after(size) for size in (1e-3, -1e-3, 2e-3)]
            return [
                bool(jnp.all(plus == minus) & jnp.any(plus != twice))
                for plus, minus, twice in zip(*lanes, strict=True)
            ]
    except Exception:  # one that takes further arguments, or traced ones
        return []


def measure(moment: jax.Array, slope: jax.Array, active: jax.Array) -> Typical:
    """Measure what is usual among active weights."""
    count = jnp.sum(active, dtype=jnp.int32).astype(jnp.float32)

    def mean(x: jax.Array) -> jax.Array:
        kept = jnp.where(active, x.astype(jnp.float32), 0)
        return jnp.sum(kept) / jnp.maximum(count, 1)

    square = mean(jnp.square(slope.astype(jnp.float32)))
    usable = (square > 0) & jnp.isfinite(square)
    return Typical(
        size=jnp.where(count > 0, mean(moment), -1),
        scale=jnp.where(usable, 1 / jnp.where(usable, square, 1), 0),
    )


def unmeasured(moment: jax.Array) -> Typical:
    """Stand for what is usual where nothing grows."""
    none = jnp.full_like(moment, -1, jnp.float32, shape=())
    return Typical(none, none)


def start(typical: Typical, slope: jax.Array, fresh: jax.Array) -> jax.Array:
    """Make the second moments that weights start from.

    Args:
        typical: of the active weights of the leaf.
        slope: the gradients of the leaf.
        fresh: what the optimizer starts from.
    """
    ratio = jnp.square(slope.astype(jnp.float32)) * typical.scale
    ratio = jnp.where(jnp.isfinite(ratio), jnp.maximum(ratio, 1), 1)
    known = (typical.size * ratio).astype(fresh.dtype)
    return jnp.where(typical.size >= 0, known, fresh)
