"""G as arrays: every product is a matrix product."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from swapjax.core.compiled import Compiled
from swapjax.core.types import Leaves
from swapjax.gradients import products
from swapjax.gradients.matrix_free import MatrixFreeRows
from swapjax.gradients.operator import Blocks, Columns


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["matrices", "source"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class StoredRows:
    """G as arrays, one per prunable leaf.

    Attributes:
        matrices: arrays [n, *shape], float32, or bfloat16 to halve the memory; their
            products are accumulated in float32 in both cases.
        source: the recipe they were formed from.
    """

    matrices: Leaves
    source: MatrixFreeRows

    @property
    def n(self) -> int:
        """The number of rows."""
        return self.source.n

    @property
    def batch(self) -> int:
        """The number of examples averaged into a row."""
        return self.source.batch

    @property
    def unit(self) -> jax.Array | None:
        """What the rows were divided by, see `unit.in_unit`; None if by nothing."""
        return self.source.unit

    def project(self, leaves: Leaves) -> jax.Array:
        """Compute ``G v``."""
        return products.project(self.matrices, leaves)

    def pull_back(self, residual: jax.Array) -> Leaves:
        """Compute ``G^T r``."""
        return products.pull_back(self.matrices, residual)

    def gram(self, support: Leaves | None = None) -> jax.Array:
        """Compute ``G_S G_S^T``."""
        return products.gram(self.matrices, support)

    def mean_squares(self) -> Leaves:
        """Compute ``(1/n) sum_i G_iq^2``."""
        lanes = 1 if self.n % self.source.lanes else self.source.lanes
        total = products.sum_squares(self.matrices, jnp.ones(self.n, bool), lanes)
        return tuple(t / self.n for t in total)

    def energies(self, factor: jax.Array) -> Leaves:
        """Compute ``|F G_q|^2``."""
        return products.energies(self.matrices, factor)

    def columns(self, index: jax.Array) -> jax.Array:
        """Take some columns, [n, m]."""
        return products.columns(self.matrices, index)

    def map_blocks(
        self, work: Callable, blocks: Blocks, *extras: tuple[jax.Array, ...]
    ) -> tuple:
        """Do as `GradientOperator.map_blocks`, one block at a time."""

        def of_columns(columns: jax.Array, *extra: jax.Array) -> Any:
            return work(products.moment(columns) / self.n, *extra)

        return self.map_columns(of_columns, blocks, *extras)

    def map_columns(
        self, work: Callable, blocks: Blocks, *extras: tuple[jax.Array, ...]
    ) -> tuple:
        """Compute ``work(G_B, *extra_B)`` for every block of columns B.

        As `GradientOperator.map_blocks`, but of the columns themselves, [n, c].
        """

        def map_one(of: Columns, *own: jax.Array) -> Any:
            matrix = self.matrices[of.leaf]

            def one(args: tuple) -> Any:
                index, *rest = args
                return work(products.some_columns(matrix, index), *rest)

            return jax.lax.map(one, (of.places, *own))

        return tuple(map(map_one, blocks, *extras))

    def at(self, leaves: Leaves) -> "StoredRows":
        """Return the rows of the same examples at other weights, stored as well."""
        return store(self.source.at(leaves))

    def loss(self, leaves: Leaves) -> jax.Array:
        """Compute the mean loss of the rows' examples at other weights."""
        return self.source.loss(leaves)

    def curve(self, leaves: Leaves) -> Leaves:
        """Compute ``H v`` in passes over the data: it does not follow from G."""
        return self.source.curve(leaves)


def store(free: MatrixFreeRows) -> StoredRows:
    """Form all rows, chunk by chunk, into arrays that are written in place."""
    return _store((), free, owners=free.functions)


@Compiled
def _store(free: MatrixFreeRows) -> StoredRows:
    return StoredRows(free.store(), free)
