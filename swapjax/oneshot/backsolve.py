"""The back-solve: the best weights on a support, for fixed targets.

The minimiser of ``1/2 |G_S d - r|^2 + n lambda/2 |d|^2`` is

    d = G_S^T (G_S G_S^T + n lambda I)^-1 r = (G_S^T G_S + n lambda I)^-1 G_S^T r,

an n x n system or one of the size of the support, whichever is smaller. CHITA's
back-solve, the update of the Combinatorial Brain Surgeon and the multi-weight Optimal
Brain Surgeon are this one function.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from swapjax import regression, trees
from swapjax.masks import apply_masks
from swapjax.rows import Rows
from swapjax.types import Leaves

_SIZES = (1.0, 0.7, 0.4)  # of n: the smaller systems that are compiled
_HIGHEST = jax.lax.Precision.HIGHEST


class Backsolve(NamedTuple):
    """What the best change on a support is.

    Attributes:
        change: d, leaves, zero off the support.
        value: what was minimised, at d.
        ridge: what was added to the diagonal, ``n lambda`` or more.
        raised: whether it was more.
    """

    change: Leaves
    value: jax.Array
    ridge: jax.Array
    raised: jax.Array


def backsolve(
    rows: Rows, support: Leaves, residual: jax.Array, ridge: jax.Array | float
) -> Backsolve:
    """Find the change on a support that makes up for a residual.

    Args:
        rows: the operator G, of n rows.
        support: bool leaves.
        residual: r, [n].
        ridge: n lambda, 0 or more; may be traced.
    """
    total = sum(s.size for s in support)
    kept = sum(jnp.sum(s, dtype=jnp.int32) for s in support)
    largest = min(rows.n, total)
    sizes = [max(1, round(largest * share)) for share in _SIZES]

    flat = jnp.concatenate([s.ravel() for s in support])
    (places,) = jnp.nonzero(flat, size=sizes[0], fill_value=total)

    def dual() -> Backsolve:
        factor = regression.factor(rows.gram(support).astype(residual.dtype), ridge)
        c = factor.solve(residual)
        change = apply_masks(rows.pull_back(c), support)
        value = 0.5 * factor.ridge * jnp.vdot(residual, c)
        return Backsolve(change, value, factor.ridge, factor.raised)

    def primal(size: int) -> Backsolve:
        index = places[:size]
        columns = rows.columns(index).astype(residual.dtype)
        gram = jnp.matmul(columns.T, columns, precision=_HIGHEST)
        # A column beyond the support stays at zero whatever the ridge.
        gram += jnp.diag((index >= total).astype(gram.dtype))
        factor = regression.factor(gram, ridge)
        d = factor.solve(jnp.matmul(residual, columns, precision=_HIGHEST))
        left = residual - jnp.matmul(columns, d, precision=_HIGHEST)
        value = 0.5 * (jnp.vdot(left, left) + factor.ridge * jnp.vdot(d, d))
        change = jnp.zeros(total, d.dtype).at[index].set(d, mode="drop")
        return Backsolve(
            trees.split_flat(change, support), value, factor.ridge, factor.raised
        )

    # Which of the two forms, and in what size, is chosen when the program runs: one
    # compilation serves all stages.
    fitting = sum(jnp.asarray(kept <= size, jnp.int32) for size in sizes)
    branches = [dual, *(lambda size=size: primal(size) for size in sizes)]
    return jax.lax.switch(fitting, branches)
