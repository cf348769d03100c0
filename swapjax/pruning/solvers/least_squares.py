"""The regression behind every method: Q, its gradient, exact steps, the re-fit.

With ``x = G w`` and a coupling held fixed, the objective is a quadratic in x and a
ridge in w:

    Q(w) = 1/2 (x - t)^T M (x - t) + constant + n lambda/2 |w - wbar|^2

`Fit` holds its part in R^n. Linear regression has ``t = y``, ``M = I``; a transport
plan moves the targets t; smoothing over neighbours makes M a plan. All formulas below
hold for every one of them.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from swapjax.core.types import Leaves

_HIGHEST = jax.lax.Precision.HIGHEST
_ATTEMPTS = 20  # at a Cholesky factorisation; more are of no use to a matrix with NaN


class Fit(NamedTuple):
    """The part of the objective that depends on the projections x only.

    Attributes:
        targets: t, [n].
        metric: M: None for the identity, [n] for a diagonal, [n, n] for a symmetric
            positive semidefinite matrix whose rows sum to 1.
        constant: what does not depend on x while the coupling is held.
    """

    targets: jax.Array
    metric: jax.Array | None
    constant: jax.Array


class Spectrum(NamedTuple):
    """The n x n system of a support, before it is damped.

    Attributes:
        gram: ``K = G_S G_S^T``, [n, n].
        root: L with ``M = L L^T``: None, [n] or [n, n] like the metric.
        values: the eigenvalues of ``L^T K L``, rising.
        vectors: its eigenvectors, in columns.
    """

    gram: jax.Array
    root: jax.Array | None
    values: jax.Array
    vectors: jax.Array


class System(NamedTuple):
    """The n x n system of a support, solved: ``c = inverse @ residual``.

    Attributes:
        gram: ``K = G_S G_S^T``, [n, n].
        inverse: ``L (L^T K L + n lambda I)^-1 L^T`` with ``M = L L^T``, [n, n].
        rest: ``I - gram @ inverse``, what a re-fit leaves of a residual, [n, n].
        ridge: ``n lambda`` as it was used.
        raised: whether that is more than what was asked for.
        deficient: whether the system was singular, so that inverse is a pseudo-inverse.
    """

    gram: jax.Array
    inverse: jax.Array
    rest: jax.Array
    ridge: jax.Array
    raised: jax.Array
    deficient: jax.Array


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
        eye = jnp.eye(len(self.lower), dtype=self.lower.dtype)
        return jax.scipy.linalg.solve_triangular(self.lower, eye, lower=True)


def misfit(fit: Fit, x: jax.Array) -> jax.Array:
    """Evaluate the part in R^n; add `ridge` for Q."""
    residual = x - fit.targets
    return 0.5 * jnp.vdot(residual, apply_metric(fit.metric, residual)) + fit.constant


def slope(fit: Fit, x: jax.Array) -> jax.Array:
    """Differentiate `misfit` in x; G pulls it back to the gradient in w.

    For a plan with row sums a and ``M = diag(n a)`` this is ``n (a x - Pi y)``, which
    by the envelope theorem is also the gradient through a converged Sinkhorn.
    """
    return apply_metric(fit.metric, x - fit.targets)


def ridge(
    weights: Leaves, reference: Leaves, n: int, damping: jax.Array | float
) -> jax.Array:
    """``n lambda/2 |w - wbar|^2``."""
    return (
        0.5
        * n
        * damping
        * optax.tree.norm(optax.tree.sub(weights, reference), squared=True)
    )


def gradient(
    pulled: Leaves,
    weights: Leaves,
    reference: Leaves,
    n: int,
    damping: jax.Array | float,
) -> Leaves:
    """Form the gradient of Q in w, from ``G^T slope``."""
    return tuple(
        g + n * damping * (w - r)
        for g, w, r in zip(pulled, weights, reference, strict=True)
    )


def line_step(
    fit: Fit,
    x: jax.Array,
    direction: Leaves,
    moved: jax.Array,
    offset: Leaves,
    damping: jax.Array | float,
) -> jax.Array:
    """Find the exact minimiser tau of Q along ``w - tau d``, the coupling held.

    Args:
        fit: the part in R^n.
        x: ``G w``.
        direction: d.
        moved: ``G d``.
        offset: ``w - wbar``.
        damping: lambda.

    Returns:
        A scalar; 0 along a direction that changes nothing.
    """
    n = x.shape[0]
    rise = jnp.vdot(moved, slope(fit, x)) + n * damping * optax.tree.vdot(
        direction, offset
    )
    bend = jnp.vdot(moved, apply_metric(fit.metric, moved)) + n * damping * (
        optax.tree.norm(direction, squared=True)
    )
    return jnp.where(bend > 0, rise / jnp.where(bend > 0, bend, 1), 0)


def support_limit(weights: Leaves, gradient: Leaves, support: Leaves) -> jax.Array:
    """tau_c: how far ``w - tau g`` may go before its top-k leaves the support.

    Closed form, O(p). Weights must be zero off the support.

    Returns:
        The largest such tau; infinity if no step leaves the support.
    """
    reach = jnp.stack(
        [
            jnp.max(jnp.where(s, 0, jnp.abs(g)), initial=0)
            for g, s in zip(gradient, support, strict=True)
        ]
    ).max()

    def bound(w: jax.Array, g: jax.Array, s: jax.Array) -> jax.Array:
        shrinks = w * g > 0
        rate = jnp.where(shrinks, reach + jnp.abs(g), reach - jnp.abs(g))
        meets = s & (rate > 0)
        limit = jnp.abs(w) / jnp.where(meets, rate, 1)
        return jnp.min(jnp.where(meets, limit, jnp.inf), initial=jnp.inf)

    bounds = [
        bound(w, g, s) for w, g, s in zip(weights, gradient, support, strict=True)
    ]
    return jnp.stack(bounds).min()


def diagonalise(gram: jax.Array, metric: jax.Array | None = None) -> Spectrum:
    """Prepare the system of a support once, for every damping that may be tried.

    Through the eigenvalues, not a Cholesky factor: rounding of K in float32 can exceed
    a small damping, and then leaves a matrix that is not positive definite.

    Args:
        gram: ``G_S G_S^T``, [n, n].
        metric: M of the fit.
    """
    root = _root(metric)
    values, vectors = jnp.linalg.eigh(_sandwich(root, gram))
    return Spectrum(gram, root, values, vectors)


def damp(spectrum: Spectrum, damping: jax.Array | float) -> System:
    """Solve the system for one damping, for every target that will come.

    Args:
        spectrum: from `diagonalise`.
        damping: lambda, 0 or more; may be traced. Raised to `resolution` where it is
            all that keeps the system from being singular. With 0 the inverse is a
            pseudo-inverse, which takes the smallest change of the weights that fits.
    """
    gram, root, values, vectors = spectrum
    n = gram.shape[0]
    positive = jnp.maximum(values, 0)
    least = resolution(jnp.sum(positive))
    asked = jnp.asarray(n * damping, values.dtype)
    hidden = (asked > 0) & (jnp.min(values) + asked < least)
    ridge = jnp.where(hidden, least, asked)
    shifted = positive + ridge
    floor = values[-1] * n * jnp.finfo(values.dtype).eps
    usable = shifted > jnp.where(asked > 0, 0, floor)

    def rebuild(diagonal: jax.Array) -> jax.Array:
        return jnp.matmul(vectors * diagonal, vectors.T, precision=_HIGHEST)

    safe = jnp.where(usable, shifted, 1)
    inverse = _sandwich_transposed(root, rebuild(jnp.where(usable, 1 / safe, 0)))
    if root is None:
        # Not as a difference: a row that is nearly fitted would lose all digits.
        rest = rebuild(jnp.where(usable, ridge / safe, 1))
    else:
        rest = jnp.eye(n) - jnp.matmul(gram, inverse, precision=_HIGHEST)
    return System(gram, inverse, rest, ridge, ridge > asked, ~jnp.all(usable))


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
        lower = jnp.linalg.cholesky(matrix + ridge * eye)
        # Rounding may let a singular matrix pass: it has tiny pivots.
        pivots = jnp.square(jnp.diagonal(lower))
        sound = (ridge >= smallest) | (jnp.min(pivots) > smallest)
        return count + 1, ridge, lower, sound & jnp.all(jnp.isfinite(lower))

    none = jnp.zeros((), jnp.int32)
    first = jnp.asarray(ridge, matrix.dtype)
    count, ridge, lower, _ = jax.lax.while_loop(
        again, attempt, (none, first, eye, jnp.asarray(False))
    )
    return Factor(lower, ridge, count > 1)


def solve(system: System, fit: Fit, start: jax.Array) -> jax.Array:
    """Find the dual weights of the minimiser on a support, ``w_S = wbar_S + G_S^T c``.

    Args:
        system: of the support.
        fit: the part in R^n; its metric must be that of the system.
        start: ``G_S wbar_S``, [n].

    Returns:
        c, [n]. The new projections are ``start + gram @ c``.
    """
    return jnp.matmul(system.inverse, fit.targets - start, precision=_HIGHEST)


def apply_metric(metric: jax.Array | None, v: jax.Array) -> jax.Array:
    """``M v``, for the metric of a `Fit`."""
    if metric is None:
        return v
    if metric.ndim == 1:
        return metric * v
    return jnp.matmul(metric, v, precision=_HIGHEST)


def _root(metric: jax.Array | None) -> jax.Array | None:
    """L with ``M = L L^T``."""
    if metric is None:
        return None
    if metric.ndim == 1:
        return jnp.sqrt(metric)
    values, vectors = jnp.linalg.eigh(metric)
    return vectors * jnp.sqrt(jnp.maximum(values, 0))


def _sandwich(root: jax.Array | None, gram: jax.Array) -> jax.Array:
    """``L^T K L``."""
    if root is None:
        return gram
    if root.ndim == 1:
        return root[:, None] * gram * root
    inner = jnp.matmul(gram, root, precision=_HIGHEST)
    return jnp.matmul(root.T, inner, precision=_HIGHEST)


def _sandwich_transposed(root: jax.Array | None, inner: jax.Array) -> jax.Array:
    """``L A L^T``."""
    if root is None:
        return inner
    return _sandwich(root if root.ndim == 1 else root.T, inner)
