"""The operator G: one row a gradient, of an example or of a mini-batch.

`GradientOperator` is what pruning methods may ask of G, n rows of p prunable entries.
`stored.StoredRows` holds G as arrays; `matrix_free.MatrixFreeRows` recomputes what it
needs from the data, chunk by chunk, so that no array of size n x p is ever live. Both
give the same answers up to rounding, and both are pytrees: they pass through ``jit``.

Vectors of R^p are tuples of the prunable leaves, in the order of params.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple, Protocol

import jax

from swapjax.core.types import Leaves

# How rows are corrupted: (key of the row, key of all rows, index of the row, n, row) ->
# row. See noise.py.
Corruption = Callable[[jax.Array, jax.Array, jax.Array, int, Leaves], Leaves]
Storage = Literal["auto", "stored", "matrix-free"]


class Columns(NamedTuple):
    """Blocks of the columns of one leaf, all as wide.

    Attributes:
        leaf: its number.
        places: ``int32[number, c]``, the columns of each block as places in the leaf; a
            place beyond its end stands for a column of zeros.
    """

    leaf: int
    places: jax.Array


Blocks = tuple[Columns, ...]


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

    @property
    def unit(self) -> jax.Array | None:
        """What the gradients were divided by, None for gradients as they are.

        `prune` hands rows over in the root mean square of their norms; see `unit.py`.
        """
        ...

    def project(self, leaves: Leaves) -> jax.Array:
        """Compute ``G v``: leaves to [n]."""
        ...

    def pull_back(self, residual: jax.Array) -> Leaves:
        """Compute ``G^T r``: [n] to leaves."""
        ...

    def gram(self, support: Leaves | None = None) -> jax.Array:
        """Compute ``G_S G_S^T``, [n, n], for bool leaves S; by default all columns."""
        ...

    def mean_squares(self) -> Leaves:
        """Compute ``(1/n) sum_i G_iq^2`` of every column q, the Fisher diagonal."""
        ...

    def energies(self, factor: jax.Array) -> Leaves:
        """Compute ``|F G_q|^2`` of every column q, for a factor F, [any, n]."""
        ...

    def columns(self, index: jax.Array) -> jax.Array:
        """Take some columns, [n, m].

        Args:
            index: ``int32[m]``, places in the leaves laid end to end; a place beyond
                their end gives a column of zeros.
        """
        ...

    def map_blocks(
        self, work: Callable, blocks: Blocks, *extras: tuple[jax.Array, ...]
    ) -> tuple:
        """Compute ``work(G_B^T G_B / n, *extra_B)`` for every block of columns B.

        Args:
            work: a function of an array [c, c] and of one entry of each extra; compiled
                once for each of ``blocks``.
            blocks: of any leaves.
            extras: an array [number, ...] for each of ``blocks``.

        Returns:
            The results for each of ``blocks``, stacked.
        """
        ...

    def at(self, leaves: Leaves) -> "GradientOperator":
        """Return the rows of the same examples at other weights, stored like these."""
        ...

    def loss(self, leaves: Leaves) -> jax.Array:
        """Compute the mean loss of the rows' examples at other weights, not divided."""
        ...

    def curve(self, leaves: Leaves) -> Leaves:
        """Compute ``H v``: leaves to leaves.

        H is the Hessian of the mean loss, without corruption and divided by the unit,
        in the prunable entries alone, at the weights where the rows are taken.
        """
        ...
