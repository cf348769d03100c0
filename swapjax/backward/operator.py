"""The operator: identity forward, stochastic pruning of the gradient backward.

Stochastic activation-gradient pruning after Ye et al. (ECCV 2020, arXiv:1908.00173),
re-derived from its abstract.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.random import threefry_2x32

from swapjax.backward.linear import NO_FURTHER, by_operand
from swapjax.backward.thresholds import deviation, quantile
from swapjax.core import members, trees
from swapjax.core.checks import require_fraction, take_key
from swapjax.sparsity.topk import top_k_mask


class Pruning(NamedTuple):
    """How gradients are pruned, as far as a program depends on it.

    Attributes:
        exact: whether the threshold is found from the gradient itself; otherwise it is
            given.
        hard: whether the same number of entries, the smallest, becomes zero instead.
        dense: whether gradients of weights see what was not pruned. Then entries that
            are zero before, as an activation leaves them, do not count for the
            threshold.
        off: whether nothing is pruned, and statistics alone are taken.
        branch: whether random numbers are drawn only where the threshold is above 0, at
            the cost of a branch.
        axis_name: the axis of devices that share a threshold, or None.
        key: the kind of the keys.
    """

    exact: bool = False
    hard: bool = False
    dense: bool = False
    off: bool = False
    branch: bool = False
    axis_name: Any = None
    key: str = "threefry2x32"


class Inputs(NamedTuple):
    """What the operator takes beside the array; none of it is differentiated.

    Attributes:
        level: ``float32[]``, the threshold; if it is exact, in deviations.
        key: the numbers of a PRNG key, ``uint32[k]``.
        probe: ``float32[4]`` zeros, whose "gradient" brings the statistics out: the sum
            of magnitudes, the number of entries, and zeros before and after.
    """

    level: jax.Array
    key: jax.Array
    probe: jax.Array


def prune_gradient(
    x: jax.Array,
    rate: Any = None,
    *,
    key: jax.Array,
    threshold: Any = None,
) -> jax.Array:
    """Return an array as it is, and prune the gradient that comes back to it.

    An entry g of the gradient below the threshold in magnitude becomes ``tau sign(g)``
    with probability ``|g|/tau``, else 0; the others stay. So the expectation is g, and
    the added variance ``|g| tau - g^2``.

    `prune_backward` puts it in place by itself. After Ye et al. (ECCV 2020,
    arXiv:1908.00173), re-derived from its abstract.

    Args:
        x: floats of any shape.
        rate: P, the fraction of entries below the threshold if they are normal with
            mean 0; the threshold is found from their mean magnitude.
        key: a PRNG key, one a step and a place.
        threshold: tau in place of a rate, the same for any gradient; 0 or below prunes
            nothing.

    Raises:
        ValueError: for other than floats, a rate outside [0, 1), a threshold that is
            no number, both or neither, and other than one key; where derivatives of the
            gradient are asked for.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from swapjax import backward
        >>> g = jax.random.normal(jax.random.key(0), (1000,))
        >>> loss = lambda x: jnp.vdot(
        ...     g, backward.prune_gradient(x, 0.9, key=jax.random.key(1)))
        >>> pruned = jax.grad(loss)(g)
        >>> bool(0.5 < jnp.mean(pruned == 0) < 0.6)
        True
    """
    require_floats(x)
    if (rate is None) == (threshold is None):
        raise ValueError("rate, threshold: give one of them")
    kind, numbers = take_key(key, traced=True)
    if rate is not None:
        if not isinstance(rate, jax.core.Tracer):
            require_fraction("rate", rate)
            rate = float(rate)
        threshold = quantile(rate)
    pruning = Pruning(exact=rate is not None, key=kind)
    try:
        level = jnp.asarray(threshold, jnp.float32)
    except (TypeError, ValueError):
        raise ValueError(f"threshold must be a number, got {threshold!r}") from None
    if level.ndim:
        name = "threshold" if rate is None else "rate"
        raise ValueError(f"{name} must be one number, got an array {level.shape}")
    inputs = Inputs(level, jnp.asarray(numbers), jnp.zeros(4, jnp.float32))
    return operate(pruning, x, inputs)


def require_floats(x: Any, where: str = "") -> None:
    """Raise for what is no array of floats."""
    dtype = getattr(x, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        kind = type(x).__name__ if dtype is None else f"an array of {dtype}"
        raise ValueError(f"x: an array of floats wanted{where}, got {kind}")


def operate(pruning: Pruning, x: jax.Array, inputs: Inputs) -> jax.Array:
    """Put the operator on an array; see `prune_gradient`.

    Raises:
        ValueError: for forward-mode differentiation, where that is known here.
    """
    try:
        return _operate(pruning, x, inputs)
    except TypeError as error:
        if "forward-mode" not in str(error):
            raise
        raise ValueError(NO_FURTHER) from error


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _operate(pruning: Pruning, x: jax.Array, inputs: Inputs) -> jax.Array:
    del pruning, inputs
    return x


def _forward(
    pruning: Pruning, x: jax.Array, inputs: Inputs
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    del pruning
    return x, (inputs.level, inputs.key)


def _backward(
    pruning: Pruning, kept: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, Inputs]:
    level, key = kept
    pruned, statistics = prune(pruning, gradient, level, key)
    none: Any = None  # no gradient of numbers of keys
    return pruned, Inputs(jnp.zeros_like(level), none, statistics)


_operate.defvjp(_forward, _backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def split(
    pruning: Pruning,
    product: Callable[[jax.Array, jax.Array], jax.Array],
    data: jax.Array,
    weight: jax.Array,
    inputs: Inputs,
) -> jax.Array:
    """Multiply data with a weight, and prune for the gradient of the data alone.

    Args:
        pruning: how.
        product: linear in each of them.
        data: what depends on products before.
        weight: the other operand.
        inputs: as in `operate`.
    """
    del pruning, inputs
    return product(data, weight)


def _split_forward(
    pruning: Any, product: Any, data: jax.Array, weight: jax.Array, inputs: Inputs
) -> tuple[jax.Array, tuple]:
    del pruning
    return product(data, weight), (data, weight, inputs.level, inputs.key)


def _split_backward(
    pruning: Pruning, product: Callable, kept: tuple, gradient: jax.Array
) -> tuple[jax.Array, jax.Array, Inputs]:
    data, weight, level, key = kept
    pruned, given = _backward(pruning, (level, key), gradient)
    pair = (data, weight)
    of_data = by_operand(product, pair, 0, pruned)
    return of_data, by_operand(product, pair, 1, gradient), given


split.defvjp(_split_forward, _split_backward)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def prune(
    pruning: Pruning, gradient: jax.Array, level: jax.Array, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Prune a gradient.

    In float32, or wider where the gradient is. NaN and infinite entries stay, and then
    nothing is pruned if the threshold is exact.

    Args:
        pruning: how.
        gradient: floats of any shape.
        level: as in `Inputs`.
        key: as in `Inputs`.

    Returns:
        The pruned gradient, and the statistics, ``float32[4]``.

    Raises:
        ValueError: where it is differentiated.
    """
    wide = trees.wide((gradient,))
    g = gradient.astype(wide)
    size = jnp.abs(g)
    count = jnp.asarray(g.size, jnp.float32)
    statistics = jnp.stack([jnp.sum(size).astype(jnp.float32), count, _count(g == 0)])
    if pruning.axis_name is not None:
        statistics = jax.lax.psum(statistics, pruning.axis_name)
    total, n, before = statistics
    tau = level
    if pruning.exact:
        tau = level * deviation(statistics, dense=pruning.dense)
    # As the gradient can hold it, or its expectation would not be the gradient.
    tau = tau.astype(gradient.dtype).astype(wide)
    tau = jnp.where(jnp.isfinite(tau), tau, 0)
    if pruning.off:
        pruned = gradient
    elif pruning.hard:
        pruned = _cut(g, size, tau).astype(gradient.dtype)
    else:
        draw = functools.partial(_draw, pruning, g, size, tau, key)
        pruned = (
            jax.lax.cond(members.any_member(tau > 0), draw, lambda: g)
            if pruning.branch
            else draw()
        ).astype(gradient.dtype)
    after = before if pruning.off else _count(pruned == 0)
    if pruning.axis_name is not None and not pruning.off:
        after = jax.lax.psum(after, pruning.axis_name)
    return pruned, jnp.stack([total, n, before, after])


@prune.defjvp
def _(pruning: Any, primals: Any, tangents: Any) -> Any:
    del pruning, primals, tangents
    raise ValueError(NO_FURTHER)


def _draw(
    pruning: Pruning,
    g: jax.Array,
    size: jax.Array,
    tau: jax.Array,
    key: jax.Array,
) -> jax.Array:
    """Prune at random."""
    if pruning.axis_name is not None:
        i = jax.lax.axis_index(pruning.axis_name)
        own = jax.random.wrap_key_data(key, impl=pruning.key)
        key = jax.random.key_data(jax.random.fold_in(own, i))
    seed = members.own_seed(pruning.key, key, [g])
    bits = random_bits(pruning.key, seed, g.shape)
    # Of 24 bits, which float32 holds, in the middle of their steps: never 0, and so
    # what is 0 stays 0. Signed integers are those that CPUs convert at once.
    r = (bits >> 8).astype(jnp.int32).astype(g.dtype) * 2**-24 + 2**-25
    small = jnp.where(size > tau * r, jnp.copysign(tau, g), 0)
    # The way round that keeps NaN.
    return jnp.where(size < tau, small, g)


def random_bits(kind: str, seed: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Draw 32 random bits an entry, from half as many.

    Two entries share a word, one with its halves exchanged: each is uniform, and what
    happens to one tells of the other only if 16 bits are those of its threshold. Words
    of the default kind of keys are taken from Threefry itself: `jax.random.bits` makes
    two of them for one, and takes four times as long to compile.
    """
    size = math.prod(shape)
    count = -(-size // 2)
    if kind == "threefry2x32":
        words = threefry_2x32(seed, jnp.arange(count, dtype=jnp.uint32))
    else:
        key = jax.random.wrap_key_data(seed, impl=kind)
        words = jax.random.bits(key, (count,), jnp.uint32)
    both = jnp.concatenate([words, (words << 16) | (words >> 16)])
    return both[:size].reshape(shape)


def _cut(g: jax.Array, size: jax.Array, tau: jax.Array) -> jax.Array:
    """Set as many entries to zero as `_draw` does on average, the smallest ones."""
    chance = jnp.where(size < tau, 1 - size / jnp.where(tau > 0, tau, 1), 0)
    zeros = jnp.round(jnp.sum(chance)).astype(jnp.int32)
    return jnp.where(top_k_mask(-size, zeros), 0, g)


def _count(flags: jax.Array) -> jax.Array:
    return jnp.sum(flags, dtype=jnp.int32).astype(jnp.float32)
