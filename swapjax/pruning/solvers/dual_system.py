"""The n x n system of a support, solved for one damping after the other."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from swapjax.pruning.solvers.cholesky import factor, resolution
from swapjax.pruning.solvers.least_squares import Fit

_SOUND = 100  # times what rounding leaves standing: a damping a Cholesky factor bears
_HIGHEST = jax.lax.Precision.HIGHEST


class Spectrum(NamedTuple):
    """The n x n system of a support, before it is damped.

    Attributes:
        gram: ``K = G_S G_S^T``, [n, n].
        values: the eigenvalues of ``L^T K L`` with ``M = L L^T``, rising.
        vectors: its eigenvectors in columns, times L.
        images: ``K @ vectors``; None without a metric, where they follow from values.
        factored: whether every damping leaves enough for a Cholesky factor, so that
            values and vectors were not looked for and are empty.
    """

    gram: jax.Array
    values: jax.Array
    vectors: jax.Array
    images: jax.Array | None
    factored: jax.Array


class System(NamedTuple):
    """The n x n system of a support, solved: ``c = inverse(residual)``.

    Neither the inverse, ``V diag(d) V^T``, nor what a re-fit leaves of a residual,
    ``I - K V diag(d) V^T``, is ever formed: nobody reads more of them than products
    with vectors and a diagonal, which take O(n^2).

    Attributes:
        gram: ``K = G_S G_S^T``, [n, n].
        vectors: V, [n, n].
        inverted: d, [n].
        images: ``K V``, or None where the rest is ``V diag(left) V^T``.
        left: [n]. Not as a difference: a row that is nearly fitted would lose all
            digits.
        ridge: ``n lambda`` as it was used.
        raised: whether that is more than what was asked for.
        deficient: whether the system was singular, so that inverse is a pseudo-inverse.
    """

    gram: jax.Array
    vectors: jax.Array
    inverted: jax.Array
    images: jax.Array | None
    left: jax.Array
    ridge: jax.Array
    raised: jax.Array
    deficient: jax.Array

    def inverse(self, v: jax.Array) -> jax.Array:
        """``L (L^T K L + n lambda I)^-1 L^T v`` with ``M = L L^T``, [n]."""
        return _product(self.vectors, self.inverted * self._inner(v))

    def rest(self, v: jax.Array) -> jax.Array:
        """``(I - K inverse) v``, what a re-fit leaves of a residual, [n]."""
        if self.images is None:
            return _product(self.vectors, self.left * self._inner(v))
        return v - _product(self.images, self.inverted * self._inner(v))

    def rest_diagonal(self) -> jax.Array:
        """Take the diagonal of the matrix of `rest`, [n]."""
        if self.images is None:
            return jnp.sum(jnp.square(self.vectors) * self.left, axis=1)
        return 1 - jnp.sum(self.images * self.vectors * self.inverted, axis=1)

    def _inner(self, v: jax.Array) -> jax.Array:
        return _product(v, self.vectors)


def diagonalise(
    gram: jax.Array,
    metric: jax.Array | None = None,
    least: jax.Array | float = 0.0,
) -> Spectrum:
    """Prepare the system of a support once, for every damping that may be tried.

    Dampings far above the rounding of K need no more than a Cholesky factor each, which
    takes a tenth of the time of eigenvalues. Rounding can exceed smaller ones, and then
    leaves a matrix that is not positive definite: that takes eigenvalues. Which of the
    two is chosen when the program runs.

    Args:
        gram: ``G_S G_S^T``, [n, n].
        metric: M of the fit.
        least: the smallest damping there will be; 0 for any.
    """
    root = _root(metric)

    def decompose() -> tuple[jax.Array, jax.Array]:
        values, vectors = jnp.linalg.eigh(_sandwich(root, gram))
        return values, vectors if root is None else _times(root, vectors)

    if root is not None:
        values, vectors = decompose()
        images = _product(gram, vectors)
        return Spectrum(gram, values, vectors, images, jnp.asarray(False))
    n = gram.shape[0]
    factored = n * least > _SOUND * resolution(jnp.trace(gram))
    values, vectors = jax.lax.cond(
        factored, lambda: (jnp.zeros(n, gram.dtype), jnp.zeros_like(gram)), decompose
    )
    return Spectrum(gram, values, vectors, None, factored)


def damp(spectrum: Spectrum, damping: jax.Array | float) -> System:
    """Solve the system for one damping, for every target that will come.

    Args:
        spectrum: from `diagonalise`.
        damping: lambda, 0 or more, and not below its least; may be traced. Raised to
            `resolution` where it is all that keeps the system from being singular. With
            0 the inverse is a pseudo-inverse, which takes the smallest change of the
            weights that fits.
    """
    if spectrum.images is not None:
        return _damp_values(spectrum, damping)
    return jax.lax.cond(
        spectrum.factored,
        lambda: _damp_gram(spectrum, damping),
        lambda: _damp_values(spectrum, damping),
    )


def _damp_gram(spectrum: Spectrum, damping: jax.Array | float) -> System:
    """Solve by ``K + n lambda I = L L^T``, whose inverse is ``V V^T``, ``V = L^-T``."""
    gram = spectrum.gram
    found = factor(gram, len(gram) * damping)
    ones = jnp.ones(len(gram), gram.dtype)
    return System(
        gram=gram,
        vectors=found.inverse_root().T,
        inverted=ones,
        images=None,
        left=found.ridge * ones,
        ridge=found.ridge,
        raised=found.raised,
        deficient=jnp.asarray(False),
    )


def _damp_values(spectrum: Spectrum, damping: jax.Array | float) -> System:
    gram, values, vectors, images, _ = spectrum
    n = gram.shape[0]
    positive = jnp.maximum(values, 0)
    least = resolution(jnp.sum(positive))
    asked = jnp.asarray(n * damping, values.dtype)
    hidden = (asked > 0) & (jnp.min(values) + asked < least)
    ridge = jnp.where(hidden, least, asked)
    shifted = positive + ridge
    floor = values[-1] * n * jnp.finfo(values.dtype).eps
    usable = shifted > jnp.where(asked > 0, 0, floor)
    safe = jnp.where(usable, shifted, 1)
    return System(
        gram=gram,
        vectors=vectors,
        inverted=jnp.where(usable, 1 / safe, 0),
        images=images,
        left=jnp.where(usable, ridge / safe, 1),
        ridge=ridge,
        raised=ridge > asked,
        deficient=~jnp.all(usable),
    )


def solve(system: System, fit: Fit, start: jax.Array) -> jax.Array:
    """Find the dual weights of the minimiser on a support, ``w_S = wbar_S + G_S^T c``.

    Args:
        system: of the support.
        fit: the part in R^n; its metric must be that of the system.
        start: ``G_S wbar_S``, [n].

    Returns:
        c, [n]. The new projections are ``start + gram @ c``.
    """
    return system.inverse(fit.targets - start)


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
    return _product(root.T, _product(gram, root))


def _times(root: jax.Array, matrix: jax.Array) -> jax.Array:
    """``L A``."""
    return root[:, None] * matrix if root.ndim == 1 else _product(root, matrix)


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision=_HIGHEST)
