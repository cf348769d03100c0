"""The back-solve: the best weights on a support, for fixed targets.

The minimiser of ``1/2 |G_S d - r|^2 + n lambda/2 |d|^2`` is

    d = G_S^T (G_S G_S^T + n lambda I)^-1 r = (G_S^T G_S + n lambda I)^-1 G_S^T r,

an n x n system or one of the size of the support, whichever is smaller. CHITA's
back-solve, the update of the Combinatorial Brain Surgeon and the multi-weight Optimal
Brain Surgeon are this one function. For n and supports too large for either system,
`sweep` goes through the support block by block.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from swapjax.core.types import Leaves
from swapjax.gradients.operator import GradientOperator
from swapjax.pruning.solvers import cholesky
from swapjax.sparsity import kept_index
from swapjax.sparsity.masks import apply_masks

_SIZES = (1.0, 0.7, 0.4)  # of n: the smaller systems that are compiled
_SMALL = 256  # rows up to which the n x n system alone is, since it costs nothing
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
    rows: GradientOperator,
    support: Leaves,
    residual: jax.Array,
    ridge: jax.Array | float,
) -> Backsolve:
    """Find the change on a support that makes up for a residual.

    Args:
        rows: the operator G, of n rows.
        support: bool leaves.
        residual: r, [n].
        ridge: n lambda, 0 or more; may be traced.
    """
    entries = kept_index.number(support)
    largest = min(rows.n, sum(s.size for s in support))
    sizes = [max(1, round(largest * share)) for share in _SIZES]

    def dual() -> Backsolve:
        factor = cholesky.factor(rows.gram(support).astype(residual.dtype), ridge)
        c = factor.solve(residual)
        change = apply_masks(rows.pull_back(c), support)
        value = 0.5 * factor.ridge * jnp.vdot(residual, c)
        return Backsolve(change, value, factor.ridge, factor.raised)

    def primal(size: int) -> Backsolve:
        columns, factor = _factor(rows, entries, 0, size, residual.dtype, ridge)
        d = factor.solve(jnp.matmul(residual, columns, precision=_HIGHEST))
        left = residual - jnp.matmul(columns, d, precision=_HIGHEST)
        value = 0.5 * (jnp.vdot(left, left) + factor.ridge * jnp.vdot(d, d))
        return Backsolve(entries.spread(d), value, factor.ridge, factor.raised)

    if rows.n <= _SMALL:
        return dual()
    # Which of the two forms, and in what size, is chosen when the program runs: one
    # compilation serves all stages.
    fitting = sum(jnp.asarray(entries.total <= size, jnp.int32) for size in sizes)
    branches = [dual, *(lambda size=size: primal(size) for size in sizes)]
    return jax.lax.switch(fitting, branches)


def sweep(
    rows: GradientOperator,
    support: Leaves,
    residual: jax.Array,
    ridge: jax.Array | float,
    *,
    block: int,
    sweeps: int,
) -> Backsolve:
    """Lower what `backsolve` minimises, a block of the support after the other.

    Each block makes up in closed form for what the others leave over, so that the value
    never rises, and many sweeps end where `backsolve` does; a block that holds all of
    the support is there at once. O(n k block) time a sweep for a support of k entries,
    and one pass over the data a block if rows are matrix-free.

    Args:
        rows: the operator G, of n rows.
        support: bool leaves.
        residual: r, [n].
        ridge: n lambda, 0 or more; may be traced.
        block: entries solved for at a time, consecutive ones of the support.
        sweeps: times that every block is solved for.
    """
    entries = kept_index.number(support)
    width = min(block, sum(s.size for s in support))
    blocks = -(-entries.total // width)

    def solve(i: jax.Array, carry: tuple) -> tuple:
        change, left, largest, raised = carry
        start = (i % blocks) * width
        columns, factor = _factor(rows, entries, start, width, residual.dtype, ridge)
        old = jax.lax.dynamic_slice(change, (start,), (width,))
        left = left + jnp.matmul(columns, old, precision=_HIGHEST)
        new = factor.solve(jnp.matmul(left, columns, precision=_HIGHEST))
        left = left - jnp.matmul(columns, new, precision=_HIGHEST)
        change = jax.lax.dynamic_update_slice(change, new, (start,))
        return change, left, jnp.maximum(largest, factor.ridge), raised | factor.raised

    total = sum(s.size for s in support)
    start = (
        jnp.zeros(total + -total % width, residual.dtype),
        residual,
        jnp.asarray(ridge, residual.dtype),
        jnp.asarray(False),
    )
    change, left, largest, raised = jax.lax.fori_loop(0, sweeps * blocks, solve, start)
    value = 0.5 * (jnp.vdot(left, left) + largest * jnp.vdot(change, change))
    return Backsolve(entries.spread(change), value, largest, raised)


def _factor(
    rows: GradientOperator,
    entries: kept_index.Kept,
    start: jax.Array | int,
    width: int,
    dtype: jnp.dtype,
    ridge: jax.Array | float,
) -> tuple[jax.Array, cholesky.Factor]:
    """Columns C of some kept entries, and ``C^T C + ridge I`` factored."""
    columns = rows.columns(entries.places(start, width)).astype(dtype)
    gram = jnp.matmul(columns.T, columns, precision=_HIGHEST)
    # What is beyond the last entry stays at zero whatever the ridge.
    none = start + jnp.arange(width) >= entries.total
    filled = gram + jnp.diag(none.astype(dtype))
    return columns, cholesky.factor(filled, ridge, jnp.trace(gram))
