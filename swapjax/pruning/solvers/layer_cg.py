"""The best weights of a layer on a support, by preconditioned conjugate gradients.

The outputs of a layer share their Hessian and differ in their supports. One matrix for
each would have to be factored; products with the one Hessian serve all at once.
"""

import jax
import jax.numpy as jnp

_HIGHEST = jax.lax.Precision.HIGHEST
_STEPS = 500
_MEMORY = 0.8  # gains of steps go up and down; a mean of some tells where they end


def refit(
    hessian: jax.Array,
    reference: jax.Array,
    support: jax.Array,
    start: jax.Array,
    *,
    tolerance: float | None = None,
    steps: int = _STEPS,
) -> jax.Array:
    """Minimise E over weights on a support, all outputs side by side.

    The method of Algorithm 2 of ALPS (Meng et al., NeurIPS 2024, arXiv:2406.07831):
    conjugate gradients whose directions are cut to the support, preconditioned by the
    diagonal of H. Each output has step lengths of its own and rests once it is done,
    so that it does not depend on the others. O(inputs^2 * outputs) time a step.

    Args:
        hessian: H, [groups, inputs, inputs], positive definite.
        reference: Wbar, [groups, inputs, outputs].
        support: bool of that shape, where weights may be other than zero.
        start: weights to start from; zero off the support. No output ends with a larger
            error than it has here.
        tolerance: where an output is done: the last steps lowered its error by less
            than this share of it each, on average. None for three times the square root
            of what the dtype resolves, 1e-3 in float32.
        steps: the most, also where some output is not done.

    Returns:
        The weights, zero off the support.
    """
    if tolerance is None:
        tolerance = 3 * float(jnp.finfo(reference.dtype).eps) ** 0.5

    def one(item: tuple[jax.Array, ...]) -> jax.Array:
        return _group(*item, tolerance=tolerance, steps=steps)

    return jax.lax.map(one, (hessian, reference, support, start))


def _group(
    hessian: jax.Array,
    reference: jax.Array,
    support: jax.Array,
    start: jax.Array,
    *,
    tolerance: float,
    steps: int,
) -> jax.Array:
    """`refit` for one group."""
    inverse = (1 / jnp.diagonal(hessian))[:, None]

    def multiply(x: jax.Array) -> jax.Array:
        return jnp.matmul(hessian, x, precision=_HIGHEST)

    def pull(x: jax.Array) -> jax.Array:
        return jnp.where(support, multiply(x), 0)

    def energy(x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.sum(x * y, axis=0)

    def any_going(carry: tuple) -> jax.Array:
        i, *_, going = carry
        return (i < steps) & jnp.any(going)

    def step(carry: tuple) -> tuple:
        i, w, residual, direction, left, height, recent, going = carry
        pulled = pull(direction)
        curve = energy(direction, pulled)
        # What has no curvature left has nothing to gain: it is done.
        going &= (left > 0) & (curve > 0)
        length = jnp.where(going, left / jnp.where(going, curve, 1), 0)
        w, residual = w + length * direction, residual - length * pulled
        conditioned = inverse * residual
        rest = energy(residual, conditioned)
        turn = jnp.where(going, rest / jnp.where(going, left, 1), 0)
        gain, height = length * left, height - length * left
        recent = _MEMORY * recent + (1 - _MEMORY) * gain
        going &= recent > tolerance * height
        direction = conditioned + turn * direction
        return i + 1, w, residual, direction, rest, height, recent, going

    moved = multiply(reference - start)
    residual, before = jnp.where(support, moved, 0), energy(reference - start, moved)
    direction = inverse * residual
    carry = (
        jnp.zeros((), jnp.int32),
        start,
        residual,
        direction,
        energy(residual, direction),
        before,
        jnp.zeros_like(before),
        jnp.ones(before.shape, bool),
    )
    _, found, *_ = jax.lax.while_loop(any_going, step, carry)
    after = energy(found - reference, multiply(found - reference))
    return jnp.where(after <= before, found, start)
