"""The matrix ``kappa T + lambda I``, T damped, on a support, solved output by output.

T has a block for the inputs of each output, so that its inverse on a support has one
for the inputs *kept* of each output. Their number is traced, and shapes are not: blocks
are sorted by size and solved several at a time, in the smallest of a few widths that
holds them. One program serves all leaves.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from swapjax.core import trees
from swapjax.core.types import Leaves
from swapjax.gradients import products
from swapjax.gradients.operator import GradientOperator
from swapjax.pruning.solvers.cholesky import resolution
from swapjax.pruning.solvers.kfac import Kronecker
from swapjax.pruning.solvers.units import NARROWEST, Entries, Kept, Units, keep

_COLUMNS = 1024  # entries at a time, of as many blocks as hold them
_WIDENING = 2  # from each width to the next


@dataclasses.dataclass(frozen=True, eq=False)
class SupportRidge:
    """``R = kappa (T + D) + lambda I`` on a support. Lives while a program is traced.

    Attributes:
        kronecker: T.
        units: its blocks.
        support: bool leaves.
        kappa: the weight of T.
        damping: lambda.
        share: D is this share of the mean diagonal of T in each output.
        raised: whether rounding hides what damps some block, which has more of it then.
        kept: what blocks have of the support; None where R is only multiplied.
    """

    kronecker: Kronecker
    units: Units
    support: Leaves
    kappa: jax.Array
    damping: jax.Array
    share: float
    raised: jax.Array
    kept: Kept | None

    @classmethod
    def of(
        cls,
        kronecker: Kronecker,
        units: Units,
        support: Leaves,
        kappa: jax.Array,
        damping: jax.Array,
        *,
        share: float = 0.0,
        in_blocks: bool = True,
    ) -> "SupportRidge":
        """Make a ridge, and tell whether rounding hides its damping.

        Args:
            kronecker: T.
            units: its blocks.
            support: bool leaves.
            kappa: the weight of T.
            damping: lambda.
            share: of the mean diagonal of T in each output, which damps it, too.
            in_blocks: whether it will be solved with, and not only multiplied.

        Raises:
            ValueError: for more entries of blocks than an int32 numbers.
        """
        every = units.damping(kappa, damping, share)
        hidden = jnp.any(every < resolution(kappa * units.traces))
        kept = keep(units, support) if in_blocks else None
        return cls(kronecker, units, support, kappa, damping, share, hidden, kept)

    def multiply(self, vectors: Leaves) -> Leaves:
        """Compute ``R v`` with all of R, not only what is on the support."""
        return self.kronecker.ridge(vectors, self.kappa, self.damping, self.share)

    def diagonal(self) -> Leaves:
        """Take the diagonal of all of R."""
        found = self.kronecker.diagonal(self.share)
        return tuple(self.kappa * t + self.damping for t in found)

    def solve(self, vectors: Leaves) -> Leaves:
        """Compute ``R_SS^-1 v_S``, zero off the support."""
        one = self.solve_several(tuple(v[None] for v in vectors))
        return tuple(v[0] for v in one)

    def solve_several(self, vectors: Leaves) -> Leaves:
        """Compute the same of several vectors, along a leading axis, at once."""
        flat = self._flat(vectors)

        def take(places: jax.Array) -> jax.Array:
            return jnp.take(flat, places, axis=1, mode="fill", fill_value=0)

        def solve(block: jax.Array, right: jax.Array) -> jax.Array:
            lower = jax.lax.linalg.cholesky(block, symmetrize_input=False)
            return _divide(lower, _divide(lower, right), transpose=True)

        def put(found: jax.Array, places: jax.Array, solved: jax.Array) -> jax.Array:
            return found.at[:, places].set(solved, mode="drop")

        found = self._sweep(take, solve, put, jnp.zeros_like(flat))
        return trees.cast_like(jax.vmap(self._leaves)(found), vectors)

    def solve_and_gram(
        self, vectors: Leaves, rows: GradientOperator
    ) -> tuple[Leaves, jax.Array]:
        """Compute ``R_SS^-1 v_S``, and ``G_S R_SS^-1 G_S^T``, [n, n], in one sweep."""
        dtype = self.units.moments.dtype
        flat = self._flat(tuple(v[None] for v in vectors))

        def take(places: jax.Array) -> tuple[jax.Array, jax.Array]:
            right = jnp.take(flat, places, axis=1, mode="fill", fill_value=0)
            # A place beyond the leaves is a column of zeros.
            return right, rows.columns(places).astype(dtype)

        def solve(block: jax.Array, right: tuple) -> tuple[jax.Array, jax.Array]:
            lower = jax.lax.linalg.cholesky(block, symmetrize_input=False)
            some, halves = (_divide(lower, x) for x in right)
            return _divide(lower, some, transpose=True), halves

        def put(carry: tuple, places: jax.Array, solved: tuple) -> tuple:
            (found, total), (some, halves) = carry, solved
            found = found.at[:, places].set(some, mode="drop")
            return found, total + products.gram((halves,))

        start = jnp.zeros_like(flat), jnp.zeros((rows.n, rows.n), dtype)
        found, gram = self._sweep(take, solve, put, start)
        return trees.cast_like(self._leaves(found[0]), vectors), gram

    def _flat(self, vectors: Leaves) -> jax.Array:
        """Lay several vectors end to end, [several, entries]."""
        dtype, count = self.units.moments.dtype, len(vectors[0])
        parts = [v.reshape(count, -1).astype(dtype) for v in vectors]
        return jnp.concatenate(parts, axis=1)

    def _leaves(self, flat: jax.Array) -> Leaves:
        """Undo it for one vector."""
        return trees.split_flat(flat, self.support)

    def _sweep(
        self,
        take: Callable[[jax.Array], Any],
        solve: Callable[[jax.Array, Any], Any],
        put: Callable[[Any, jax.Array, Any], Any],
        carry: Any,
    ) -> Any:
        """Go through all blocks that keep anything, the largest first.

        There is a program for each width, which only solves: what it solves for is
        taken, and what comes of it is put, in one that all widths share.

        Args:
            take: of the places of some entries in the leaves laid end to end, beyond
                their end where there is none, what to solve for: arrays [any, entries].
            solve: of a block of R, [width, width], and of what was taken for its
                entries, arrays [any, width].
            put: of the carry, the places and what was solved: the carry.
            carry: what put is given first.
        """
        units, kept, count = self.units, self.kept, len(self.units.sizes)
        assert kept is not None
        slots = kept.slots.size
        widths = _widths(int(units.sizes.max()))
        room = max(_COLUMNS, widths[-1])
        several = [min(count, room // width) for width in widths]
        total = max(map(math.prod, zip(widths, several, strict=True)))

        def of_width(width: int, many: int) -> Callable:
            def cut(x: jax.Array) -> jax.Array:
                x = x[..., : many * width]
                return jnp.moveaxis(x.reshape(*x.shape[:-1], many, width), -2, 0)

            def join(x: jax.Array) -> jax.Array:
                x = jnp.moveaxis(x, 0, -2)
                x = x.reshape(*x.shape[:-2], many * width)
                spare = total - many * width
                return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, spare)])

            def some(entries: Entries, right: Any) -> Any:
                pair = (
                    Entries(*map(cut, entries)).blocks(units.moments),
                    jax.tree.map(cut, right),
                )
                # One by one: see `layer_quadratic`.
                return jax.tree.map(join, jax.lax.map(lambda x: solve(*x), pair))

            return some

        branches = [of_width(*pair) for pair in zip(widths, several, strict=True)]
        places = jnp.arange(total, dtype=jnp.int32)
        beyond = sum(m.size for m in self.support)
        damping = units.damping(self.kappa, self.damping, self.share)

        def step(state: tuple[jax.Array, Any]) -> tuple[jax.Array, Any]:
            at, carry = state
            largest = kept.counts[kept.order[at]]
            fits = jnp.sum(jnp.asarray(widths, jnp.int32) < largest, dtype=jnp.int32)
            width, many = (jnp.asarray(x, jnp.int32)[fits] for x in (widths, several))
            # Nothing is below zero: `//` and `%` would look, and take ten times more.
            rank, number = at + jax.lax.div(places, width), jax.lax.rem(places, width)
            unit = kept.order[jnp.minimum(rank, count - 1)]
            there = number < kept.counts[unit]
            there &= rank < jnp.minimum(at + many, count)
            entry = jnp.minimum(kept.before[unit] + number, slots - 1)
            slot = jnp.where(there, kept.slots[entry], slots)
            found = jnp.take(units.places, slot, mode="fill", fill_value=beyond)
            entries = units.entries(unit, slot, self.kappa, damping)
            solved = jax.lax.switch(fits, branches, entries, take(found))
            return at + many, put(carry, found, solved)

        busy = jnp.sum(kept.counts > 0, dtype=jnp.int32)
        start = (jnp.zeros((), jnp.int32), carry)
        return jax.lax.while_loop(lambda state: state[0] < busy, step, start)[1]


def _divide(lower: jax.Array, right: jax.Array, transpose: bool = False) -> jax.Array:
    """Solve with a triangle, [width, width], for rows, [any, width]."""
    # LAPACK takes columns: as rows lie in memory, they are those of the transpose.
    found = jax.lax.linalg.triangular_solve(
        lower, right.T, left_side=True, lower=True, transpose_a=transpose
    )
    return found.T


def _widths(largest: int) -> tuple[int, ...]:
    """List the widths that blocks are solved in."""
    widths = [min(NARROWEST, largest)]
    while widths[-1] < largest:
        widths.append(min(_WIDENING * widths[-1], largest))
    return tuple(widths)
