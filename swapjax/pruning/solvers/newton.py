"""Newton's method with conjugate gradients, from products with the curvature alone.

No Hessian is formed or stored (Hessian-free optimisation, as in SNOWS, Lucas and
Mazumder, ICLR 2025, arXiv:2411.18376). What is minimised may be a sum over batches that
lie on the host: every function is called from Python.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

_HALVINGS = 12  # of a step, before none is taken
_ARMIJO = 1e-4  # of what the slope promises, that a step must give


class Minimum(NamedTuple):
    """What `minimise` ends with.

    Attributes:
        weights: zero off the support.
        objective: before, and after each step that was taken.
        products: with the curvature, in all.
    """

    weights: jax.Array
    objective: tuple[float, ...]
    products: int


def minimise(
    value: Callable[[jax.Array], float],
    gradient: Callable[[jax.Array], tuple[float, jax.Array]],
    product: Callable[[jax.Array, jax.Array], jax.Array],
    start: jax.Array,
    support: jax.Array,
    *,
    steps: int,
    products: int,
    damping: float,
    tolerance: float,
) -> Minimum:
    """Minimise a function of weights on a support; no step raises it.

    Args:
        value: of weights.
        gradient: value and gradient.
        product: the curvature at weights, the first argument, times a direction.
        start: zero off the support.
        support: bool, where weights may move.
        steps: the most of Newton's.
        products: the most for each of them.
        damping: added to the curvature, in units of that along the gradient.
        tolerance: of the residual of each system, relative to the gradient; and the
            relative decrease of a step below which it is the last.
    """

    def cut(x: jax.Array) -> jax.Array:
        return jnp.where(support, x, 0)

    def multiply(at: jax.Array, v: jax.Array) -> jax.Array:
        return cut(product(at, v))

    weights, used = start, 0
    trace: list[float] = []
    for _ in range(steps):
        now, slope = gradient(weights)
        trace = trace or [now]
        slope = cut(slope)
        direction, count = _solve(
            functools.partial(multiply, weights),
            -slope,
            products=products,
            damping=damping,
            tolerance=tolerance,
        )
        used += count
        found = _search(value, weights, now, direction, float(_dot(slope, direction)))
        if found is None:
            break
        weights, after = found
        trace.append(after)
        if now - after <= tolerance * now:
            break
    return Minimum(weights, tuple(trace), used)


def _solve(
    multiply: Callable[[jax.Array], jax.Array],
    right: jax.Array,
    *,
    products: int,
    damping: float,
    tolerance: float,
) -> tuple[jax.Array, int]:
    """Solve a damped system by conjugate gradients, up to where it is not convex."""
    found, residual, direction = jnp.zeros_like(right), right, right
    left = first = float(_dot(right, right))
    ridge = 0.0
    for count in range(products):
        if not left > tolerance**2 * first:
            return found, count
        pulled = multiply(direction)
        if count == 0:
            ridge = damping * max(float(_dot(direction, pulled)), 0.0) / left
        pulled = pulled + ridge * direction
        curve = float(_dot(direction, pulled))
        if not curve > 0:
            # Steihaug's rule: what was found before goes downhill.
            return (found if count else right), count + 1
        length = left / curve
        found, residual = found + length * direction, residual - length * pulled
        rest = float(_dot(residual, residual))
        direction, left = residual + rest / left * direction, rest
    return found, products


def _search(
    value: Callable[[jax.Array], float],
    weights: jax.Array,
    now: float,
    direction: jax.Array,
    slope: float,
) -> tuple[jax.Array, float] | None:
    """Take the first of a step and its halves that is good enough; None without any."""
    length = 1.0
    for _ in range(_HALVINGS):
        trial = weights + length * direction
        after = value(trial)
        if after <= now + _ARMIJO * length * slope and after < now:
            return trial, after
        length /= 2
    return None


def _dot(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.vdot(x, y, precision=jax.lax.Precision.HIGHEST)
