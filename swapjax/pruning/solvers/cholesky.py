"""Cholesky factors of positive semidefinite matrices, damped so that they exist."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

_SMALL = 256  # rows of a triangular matrix that is inverted at once
_ATTEMPTS = 20  # at a factorisation; more are of no use to a matrix with NaN
_HIGHEST = jax.lax.Precision.HIGHEST


class Factor(NamedTuple):
    """``A + ridge I`` factored for a positive semidefinite A.

    Attributes:
        lower: its Cholesky factor, [n, n].
        ridge: what was added to the diagonal.
        raised: whether that is more than what was asked for.
    """

    lower: jax.Array
    ridge: jax.Array
    raised: jax.Array

    def solve(self, right: jax.Array) -> jax.Array:
        """Solve ``(A + ridge I) x = b`` for b of [n] or [n, m]."""
        return jax.scipy.linalg.cho_solve((self.lower, True), right)

    def inverse_root(self) -> jax.Array:
        """``L^-1``, [n, n]: ``(A + ridge I)^-1`` is its transpose times itself."""
        return _invert_triangular(self.lower)


def resolution(trace: jax.Array) -> jax.Array:
    """Compute the least ridge that rounding leaves standing beside a matrix.

    Args:
        trace: of a positive semidefinite matrix, which bounds its largest eigenvalue.
    """
    limits = jnp.finfo(trace.dtype)
    return jnp.maximum(trace * limits.eps, limits.tiny)


def factor(
    matrix: jax.Array, ridge: jax.Array | float, trace: jax.Array | None = None
) -> Factor:
    """Factor ``A + ridge I``; where rounding decides what that is, raise the ridge.

    A matrix with pivots below `resolution`, singular up to rounding, and one that
    rounding made indefinite, is damped by that or by ten times as much until it can be
    factored, and says so.

    Args:
        matrix: A, [n, n], symmetric and positive semidefinite up to rounding.
        ridge: 0 or more; may be traced.
        trace: of the part of A that counts, where some of its diagonal is filled up.
    """
    eye = jnp.eye(len(matrix), dtype=matrix.dtype)
    smallest = resolution(jnp.trace(matrix) if trace is None else trace)

    def again(carry: tuple) -> jax.Array:
        count, _, _, good = carry
        return ~good & (count < _ATTEMPTS)

    def attempt(carry: tuple) -> tuple:
        count, ridge, _, _ = carry
        ridge = jnp.where(count > 0, jnp.maximum(10 * ridge, smallest), ridge)
        lower = jax.lax.linalg.cholesky(matrix + ridge * eye, symmetrize_input=False)
        # Rounding may let a singular matrix pass: it has tiny pivots.
        pivots = jnp.square(jnp.diagonal(lower))
        sound = (ridge >= smallest) | (jnp.min(pivots) > smallest)
        return count + 1, ridge, lower, sound & jnp.all(jnp.isfinite(pivots))

    none = jnp.zeros((), jnp.int32)
    first = jnp.asarray(ridge, matrix.dtype)
    count, ridge, lower, _ = jax.lax.while_loop(
        again, attempt, (none, first, eye, jnp.asarray(False))
    )
    return Factor(lower, ridge, count > 1)


def _invert_triangular(lower: jax.Array) -> jax.Array:
    """Invert by halves: the inverse keeps the zeros, which a solve would multiply."""
    n = len(lower)
    if n <= _SMALL:
        eye = jnp.eye(n, dtype=lower.dtype)
        return jax.scipy.linalg.solve_triangular(lower, eye, lower=True)
    half, product = n // 2, functools.partial(jnp.matmul, precision=_HIGHEST)
    first = _invert_triangular(lower[:half, :half])
    last = _invert_triangular(lower[half:, half:])
    below = -product(last, product(lower[half:, :half], first))
    return jnp.block([[first, jnp.zeros_like(below.T)], [below, last]])
