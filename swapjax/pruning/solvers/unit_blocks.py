"""The matrix ``kappa T + lambda I`` on a support, solved output by output.

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
import numpy as np

from swapjax.core import trees
from swapjax.core.types import Leaves
from swapjax.gradients import products
from swapjax.gradients.operator import GradientOperator
from swapjax.pruning.solvers.cholesky import resolution
from swapjax.pruning.solvers.kfac import Kronecker

_COLUMNS = 1024  # entries at a time, of as many blocks as hold them
_NARROWEST = 16
_WIDENING = 2  # from each width to the next
_MOST = 2**31 - 1  # entries that an int32 numbers


@dataclasses.dataclass(frozen=True, eq=False)
class Units:
    """The blocks of T, one for each output; an entry of a leaf is a slot of one.

    Attributes:
        first: the first slot of each unit.
        sizes: how many slots it has.
        begins: where its moment begins in `moments`.
        strides: the side of this moment; 0 for a unit without one.
        places: ``int32[slots]``, each slot's place in the leaves laid end to end;
            beyond their end where there is no entry.
        gammas: [units].
        moments: all moments, flat; then a zero, for units without one.
        alone: [slots], what T has on its diagonal beside that.
        traces: [units], of the blocks.
    """

    first: np.ndarray
    sizes: np.ndarray
    begins: np.ndarray
    strides: np.ndarray
    places: jax.Array
    gammas: jax.Array
    moments: jax.Array
    alone: jax.Array
    traces: jax.Array


def units_of(kronecker: Kronecker, dtype: jnp.dtype) -> Units:
    """List the blocks of T."""
    sizes: list[np.ndarray] = []
    begins: list[np.ndarray] = []
    strides: list[np.ndarray] = []
    places, gammas, moments, alone, traces = [], [], [], [], []
    total = sum(d.size for d in kronecker.diagonals)
    offset = length = 0
    for layer, gamma, diagonal in zip(
        kronecker.layers, kronecker.gammas, kronecker.diagonals, strict=True
    ):
        if layer is None:
            count = math.ceil(diagonal.size / _NARROWEST)
            slots = jnp.arange(count * _NARROWEST, dtype=jnp.int32)
            spare = count * _NARROWEST - diagonal.size
            sizes.append(np.full(count, _NARROWEST))
            begins.append(np.full(count, -1))
            strides.append(np.zeros(count, int))
            gammas.append(jnp.zeros(count, dtype))
            found = jnp.where(slots < diagonal.size, slots + offset, total)
            alone.append(jnp.pad(diagonal.ravel().astype(dtype), (0, spare)))
            traces.append(jnp.sum(alone[-1].reshape(count, _NARROWEST), axis=1))
        else:
            assert gamma is not None
            groups, inputs, outputs = layer.index.shape
            sizes.append(np.full(groups * outputs, inputs))
            each = length + inputs**2 * np.arange(groups)
            begins.append(np.repeat(each, outputs))
            strides.append(np.full(groups * outputs, inputs))
            gammas.append(gamma.ravel().astype(dtype))
            moments.append(layer.moment.ravel().astype(dtype))
            length += layer.moment.size
            trace = jnp.trace(layer.moment, axis1=1, axis2=2)[:, None, None]
            traces.append((gamma * trace).ravel().astype(dtype))
            index = layer.index.swapaxes(1, 2).ravel()
            found = jnp.where(index < 0, total, index + offset)
            alone.append(jnp.zeros(found.size, dtype))
        places.append(found.astype(jnp.int32))
        offset += diagonal.size
    flat_sizes = np.concatenate(sizes)
    start = np.concatenate(begins)
    return Units(
        first=np.cumsum(flat_sizes) - flat_sizes,
        sizes=flat_sizes,
        begins=np.where(start < 0, length, start),
        strides=np.concatenate(strides),
        places=jnp.concatenate(places),
        gammas=jnp.concatenate(gammas),
        moments=jnp.concatenate([*moments, jnp.zeros(1, dtype)]),
        alone=jnp.concatenate(alone),
        traces=jnp.concatenate(traces),
    )


@dataclasses.dataclass(frozen=True, eq=False)
class SupportRidge:
    """``R = kappa T + lambda I`` on a support. Lives while a program is traced.

    Attributes:
        kronecker: T.
        units: its blocks.
        support: bool leaves.
        kappa: the weight of T.
        damping: lambda.
        raised: whether rounding hides it in some block, which has more of it then.
    """

    kronecker: Kronecker
    units: Units
    support: Leaves
    kappa: jax.Array
    damping: jax.Array
    raised: jax.Array

    @classmethod
    def of(
        cls,
        kronecker: Kronecker,
        units: Units,
        support: Leaves,
        kappa: jax.Array,
        damping: jax.Array,
    ) -> "SupportRidge":
        """Make a ridge, and tell whether rounding hides its damping."""
        hidden = jnp.any(damping < resolution(kappa * units.traces))
        return cls(kronecker, units, support, kappa, damping, hidden)

    def multiply(self, vectors: Leaves) -> Leaves:
        """Compute ``R v`` with all of R, not only what is on the support."""
        return self.kronecker.ridge(vectors, self.kappa, self.damping)

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
        units, count = self.units, len(self.units.sizes)
        flat = jnp.concatenate([m.ravel() for m in self.support])
        kept = jnp.take(flat, units.places, mode="fill", fill_value=False)
        running = jnp.cumsum(kept, dtype=jnp.int32)
        running = jnp.concatenate([jnp.zeros(1, jnp.int32), running])
        before = running[units.first]
        counts = running[units.first + units.sizes] - before
        order = jnp.argsort(-counts, stable=True).astype(jnp.int32)
        slots = kept.size
        _require_numbers(max(slots, flat.size, units.moments.size))
        # The i-th entry kept is at the i-th of these slots.
        (compact,) = jnp.nonzero(kept, size=slots, fill_value=slots)
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

            def some(unit: jax.Array, slot: jax.Array, right: Any) -> Any:
                blocks = self._blocks(cut(unit)[:, 0], cut(slot))
                pair = blocks, jax.tree.map(cut, right)
                # One by one: see `layer_quadratic.damp`.
                return jax.tree.map(join, jax.lax.map(lambda x: solve(*x), pair))

            return some

        branches = [of_width(*pair) for pair in zip(widths, several, strict=True)]
        entries = jnp.arange(total, dtype=jnp.int32)

        def step(state: tuple[jax.Array, Any]) -> tuple[jax.Array, Any]:
            at, carry = state
            fits = jnp.searchsorted(jnp.asarray(widths, jnp.int32), counts[order[at]])
            fits = fits.astype(jnp.int32)
            width, many = (jnp.asarray(x, jnp.int32)[fits] for x in (widths, several))
            rank, number = at + entries // width, entries % width
            unit = order[jnp.minimum(rank, count - 1)]
            there = (number < counts[unit]) & (rank < jnp.minimum(at + many, count))
            entry = jnp.minimum(before[unit] + number, slots - 1)
            slot = jnp.where(there, compact[entry], slots)
            places = jnp.take(units.places, slot, mode="fill", fill_value=flat.size)
            solved = jax.lax.switch(fits, branches, unit, slot, take(places))
            return at + many, put(carry, places, solved)

        busy = jnp.sum(counts > 0, dtype=jnp.int32)
        start = (jnp.zeros((), jnp.int32), carry)
        return jax.lax.while_loop(lambda state: state[0] < busy, step, start)[1]

    def _blocks(self, unit: jax.Array, slot: jax.Array) -> jax.Array:
        """Take the blocks of R for slots of some units, [several, width, width].

        Those of slots beyond the last are of the identity.
        """
        units = self.units
        there = slot < units.places.size
        inputs = slot - jnp.asarray(units.first, jnp.int32)[unit][:, None]
        inputs = jnp.where(there, inputs, 0)
        stride = jnp.asarray(units.strides, jnp.int32)[unit][:, None, None]
        index = jnp.asarray(units.begins, jnp.int32)[unit][:, None, None]
        # A unit without a moment reads the zero at the end.
        index = index + jnp.where(stride > 0, inputs[:, :, None] * stride, 0)
        index = index + jnp.where(stride > 0, inputs[:, None, :], 0)
        blocks = self.kappa * units.gammas[unit][:, None, None] * units.moments[index]
        both = there[:, :, None] & there[:, None, :]
        alone = jnp.take(units.alone, slot, mode="fill", fill_value=0)
        least = resolution(self.kappa * units.traces[unit])
        damping = jnp.maximum(self.damping, least)[:, None]
        diagonal = jnp.where(there, self.kappa * alone + damping, 1)
        eye = jnp.eye(slot.shape[1], dtype=blocks.dtype)
        return jnp.where(both, blocks, 0) + diagonal[:, :, None] * eye


def _divide(lower: jax.Array, right: jax.Array, transpose: bool = False) -> jax.Array:
    """Solve with a triangle, [width, width], for rows, [any, width]."""
    # LAPACK takes columns: as rows lie in memory, they are those of the transpose.
    found = jax.lax.linalg.triangular_solve(
        lower, right.T, left_side=True, lower=True, transpose_a=transpose
    )
    return found.T


def _require_numbers(entries: int) -> None:
    """Raise where an int32 cannot number all entries.

    Raises:
        ValueError: for more.
    """
    if entries > _MOST:
        raise ValueError(
            f"ridge: the blocks of 'kfac' have {entries:,} entries, more than the "
            f"{_MOST:,} that an int32 numbers; take algebra='cg', which forms none"
        )


def _widths(largest: int) -> tuple[int, ...]:
    """List the widths that blocks are solved in."""
    widths = [min(_NARROWEST, largest)]
    while widths[-1] < largest:
        widths.append(min(_WIDENING * widths[-1], largest))
    return tuple(widths)
