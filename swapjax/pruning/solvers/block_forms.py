"""One diagonal block of the Fisher, in the smaller of two forms.

``H = G^T G / n + lambda I`` of n rows and c columns is kept as its moment ``G^T G /
n``, [c, c], or as the columns G themselves. Of more columns than rows the moment is
mostly null space: by the identity of Woodbury all there is to know of ``H^-1`` follows
from the n x n system ``G G^T + n lambda I``, in O(n^2 c) time instead of O(c^3).
"""

from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from swapjax.pruning.solvers import cholesky

_HIGHEST = jax.lax.Precision.HIGHEST


class Inverse(Protocol):
    """``H^-1`` of a block."""

    @property
    def damping(self) -> jax.Array:
        """Lambda as it was used."""
        ...

    @property
    def raised(self) -> jax.Array:
        """Whether that is more than what was asked for."""
        ...

    def diagonal(self) -> jax.Array:
        """``[H^-1]_qq``, [c]."""
        ...

    def solve(self, v: jax.Array) -> jax.Array:
        """``H^-1 v``, [c]."""
        ...


class Block(Protocol):
    """A block, before it is damped."""

    def curved(self, v: jax.Array) -> jax.Array:
        """``v^T G^T G v / n``."""
        ...

    def invert(self, damping: jax.Array) -> Inverse:
        """Invert H for a lambda, raised where it would be singular."""
        ...

    def make_up(
        self, keep: jax.Array, gone: jax.Array, damping: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Find the change of kept entries that makes up best for what is removed.

        Args:
            keep: ``bool[c]``.
            gone: the weights removed, zero where kept, [c].
            damping: lambda.

        Returns:
            The change, [c], of which entries that are not kept have no meaning; lambda
            as it was used; and whether that is more than what was asked for.
        """
        ...


class ByMoment(NamedTuple):
    """A block as its moment.

    Attributes:
        moment: ``G^T G / n``, [c, c].
        real: which entries there are, ``bool[c]``: others stand apart.
    """

    moment: jax.Array
    real: jax.Array

    def curved(self, v: jax.Array) -> jax.Array:
        """Do as `Block.curved`."""
        return jnp.vdot(v, _product(self.moment, v))

    def invert(self, damping: jax.Array) -> "_MomentInverse":
        """Do as `Block.invert`."""
        # What is not real needs no damping.
        filled = self.moment + jnp.diag(jnp.where(self.real, 0.0, 1.0))
        trace = jnp.trace(self.moment)
        return _MomentInverse(cholesky.factor(filled, damping, trace))

    def make_up(
        self, keep: jax.Array, gone: jax.Array, damping: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Do as `Block.make_up`."""
        inside = jnp.where(keep[:, None] & keep, self.moment, 0)
        found = ByMoment(inside, self.real & keep).invert(damping)
        pull = _product(self.moment, gone)
        return found.solve(jnp.where(keep, pull, 0)), found.damping, found.raised


class _MomentInverse(NamedTuple):
    factor: cholesky.Factor

    @property
    def damping(self) -> jax.Array:
        return self.factor.ridge

    @property
    def raised(self) -> jax.Array:
        return self.factor.raised

    def diagonal(self) -> jax.Array:
        return jnp.sum(jnp.square(self.factor.inverse_root()), axis=0)

    def solve(self, v: jax.Array) -> jax.Array:
        return self.factor.solve(v)


class ByColumns(NamedTuple):
    """A block as its columns, of fewer rows.

    Attributes:
        columns: G, [n, c].
        gram: ``G G^T``, [n, n].
    """

    columns: jax.Array
    gram: jax.Array

    @classmethod
    def of(cls, columns: jax.Array) -> "ByColumns":
        """Make a block of its columns, [n, c]."""
        return cls(columns, _product(columns, columns.T))

    def curved(self, v: jax.Array) -> jax.Array:
        """Do as `Block.curved`."""
        moved = _product(self.columns, v)
        return jnp.vdot(moved, moved) / len(self.columns)

    def invert(self, damping: jax.Array) -> "_ColumnsInverse":
        """Do as `Block.invert`."""
        # H is singular without lambda, whatever G G^T is, which is what the Cholesky
        # factor of the moment would find out.
        least = cholesky.resolution(jnp.trace(self.gram))
        asked = jnp.asarray(len(self.gram) * damping, self.gram.dtype)
        enough = asked >= least
        used = jnp.where(enough, asked, jnp.maximum(10 * asked, least))
        found = cholesky.factor(self.gram, used)
        found = found._replace(raised=found.raised | ~enough)
        return _ColumnsInverse(self.columns, found)

    def make_up(
        self, keep: jax.Array, gone: jax.Array, damping: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Do as `Block.make_up`."""
        n, kept = len(self.columns), jnp.where(keep, self.columns, 0)
        found = cholesky.factor(_product(kept, kept.T), n * damping)
        change = _product(found.solve(_product(self.columns, gone)), kept)
        return change, found.ridge / n, found.raised


class _ColumnsInverse(NamedTuple):
    columns: jax.Array
    factor: cholesky.Factor

    @property
    def damping(self) -> jax.Array:
        return self.factor.ridge / len(self.columns)

    @property
    def raised(self) -> jax.Array:
        return self.factor.raised

    def diagonal(self) -> jax.Array:
        moved = _product(self.factor.inverse_root(), self.columns)
        left = 1 - jnp.sum(jnp.square(moved), axis=0)
        # Positive, but for rounding.
        least = jnp.finfo(left.dtype).eps
        return jnp.maximum(left, least) / self.damping

    def solve(self, v: jax.Array) -> jax.Array:
        inner = self.factor.solve(_product(self.columns, v))
        return (v - _product(inner, self.columns)) / self.damping


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision=_HIGHEST)
