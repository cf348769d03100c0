"""Passes over a few rows: losses, forward and reverse mode, gradients."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from swapjax.core import trees
from swapjax.core.batches import over_batches
from swapjax.core.types import Leaves
from swapjax.loops.convolutions.canonical import canonical_convolutions


@dataclasses.dataclass(frozen=True)
class Passes:
    """A loss, evaluated and differentiated on several rows of examples.

    Products are in the highest precision.

    Attributes:
        loss: ``loss(leaves, batch)``, of one row.
        weights: where derivatives are taken.
        one_by_one: whether there are convolutions in the loss, which are rewritten on a
            CPU, and gradients of rows are taken one after the other.
    """

    loss: Callable[[Leaves, Any], jax.Array]
    weights: Leaves
    one_by_one: bool

    def losses(self, leaves: Leaves, batches: Any) -> jax.Array:
        """Evaluate the loss of each row at any weights, [rows]."""
        return self._run(self._losses, leaves, batches)

    def forward(self, tangent: Leaves, batches: Any) -> jax.Array:
        """Take the derivative of each loss along a tangent, [rows]."""

        def work(weights: Leaves, tangent: Leaves, batches: Any) -> jax.Array:
            losses = lambda at: self._losses(at, batches)  # noqa: E731
            return jax.jvp(losses, (weights,), (tangent,))[1]

        return self._run(work, self.weights, tangent, batches)

    def reverse(self, residual: jax.Array, batches: Any) -> Leaves:
        """Take the gradient of the losses, weighted by ``residual`` [rows]."""

        def work(weights: Leaves, r: jax.Array, batches: Any) -> Leaves:
            values, pull = jax.vjp(lambda at: self._losses(at, batches), weights)
            return pull(r.astype(values.dtype))[0]

        return self._run(work, self.weights, residual, batches)

    def gradients(self, batches: Any) -> Leaves:
        """Take the gradient of each loss, [rows, *shape] a leaf.

        Where there are convolutions, of one row after the other: those of several rows
        at once have a group for each of them, and take much longer.
        """

        def work(weights: Leaves, batches: Any) -> Leaves:
            def row(batch: Any) -> Leaves:
                leaves = jax.grad(self.loss)(weights, batch)
                return tuple(x.astype(trees.wide(leaves)) for x in leaves)

            return over_batches(row, batches, one_by_one=self.one_by_one)

        return self._run(work, self.weights, batches)

    def _losses(self, leaves: Leaves, batches: Any) -> jax.Array:
        losses = over_batches(lambda batch: self.loss(leaves, batch), batches)
        return losses.astype(trees.wide(leaves))

    def _run(self, work: Callable, *args: Any) -> Any:
        work = canonical_convolutions(work) if self.one_by_one else work
        with jax.default_matmul_precision("highest"):
            return work(*args)
