"""The operator G: one row a gradient, of an example or of a mini-batch.

What pruning methods may ask of G, n rows of p prunable entries, however it is held:
`stored.StoredRows` holds arrays; `matrix_free.MatrixFreeRows` recomputes what it needs
from the data, chunk by chunk, so that nothing of size n x p is ever live. Both give the
same answers up to rounding, and both are pytrees: they pass through ``jit``.

Vectors of R^p are tuples of the prunable leaves, in the order of params.
"""

from collections.abc import Callable
from typing import Literal, Protocol

import jax

from swapjax.core.types import Leaves

# How rows are corrupted: (key of the row, key of all rows, index of the row, n, row) ->
# row. See noise.py.
Corruption = Callable[[jax.Array, jax.Array, jax.Array, int, Leaves], Leaves]
Storage = Literal["auto", "stored", "matrix-free"]


class GradientOperator(Protocol):
    """What a pruning method may ask of the gradient rows."""

    @property
    def n(self) -> int:
        """The number of rows."""
        ...

    @property
    def batch(self) -> int:
        """The number of examples averaged into a row."""
        ...

    def project(self, leaves: Leaves) -> jax.Array:
        """``G v``: leaves to [n]."""
        ...

    def pull_back(self, residual: jax.Array) -> Leaves:
        """``G^T r``: [n] to leaves."""
        ...

    def gram(self, support: Leaves | None = None) -> jax.Array:
        """``G_S G_S^T``, [n, n], for bool leaves S; of all columns without one."""
        ...

    def mean_squares(self) -> Leaves:
        """``(1/n) sum_i G_iq^2`` for every column q, the diagonal of the Fisher."""
        ...

    def energies(self, factor: jax.Array) -> Leaves:
        """``|F G_q|^2`` for every column q, and a factor F of [n, n]."""
        ...

    def columns(self, index: jax.Array) -> jax.Array:
        """Some columns, [n, m], by ``int32[m]`` places in the leaves end to end.

        A place beyond their end stands for a column of zeros.
        """
        ...

    def map_blocks(self, work: Callable, blocks: Leaves, *extras: Leaves) -> tuple:
        """``work(G_B^T G_B / n, *extra_B)`` for every block of columns B.

        Args:
            work: a function of an array [c, c] and of one entry of each extra.
            blocks: a leaf's blocks as ``int32[number, c]``, places in that leaf, beyond
                its end for a column of zeros.
            extras: arrays [number, ...] a leaf.

        Returns:
            A leaf's results, stacked, for each leaf.
        """
        ...

    def at(self, leaves: Leaves) -> "GradientOperator":
        """The rows of the same examples at other weights, stored like these."""
        ...

    def loss(self, leaves: Leaves) -> jax.Array:
        """The mean loss of the rows' examples at other weights."""
        ...

    def curve(self, leaves: Leaves) -> Leaves:
        """``H v``, H the Hessian of the mean loss without corruption: leaves to leaves.

        Of the prunable entries alone, at the weights that the rows are of.
        """
        ...
