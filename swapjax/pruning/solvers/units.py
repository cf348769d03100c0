"""The blocks of T, one for the inputs of each output, as lists that one program reads.

Shapes are those of all entries, on whatever support: blocks of any sizes are made of
the same few arrays.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from swapjax.core.types import Leaves
from swapjax.pruning.solvers.cholesky import resolution
from swapjax.pruning.solvers.kfac import Kronecker

NARROWEST = 16  # entries of a block at least
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
        means: [units], `Kronecker.means` of the outputs.
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
    means: jax.Array
    traces: jax.Array

    def damping(self, kappa: jax.Array, damping: jax.Array, share: float) -> jax.Array:
        """Tell what each block has on its diagonal besides kappa T, [units]."""
        return damping + kappa * share * self.means

    def entries(
        self, unit: jax.Array, slot: jax.Array, kappa: jax.Array, damping: jax.Array
    ) -> "Entries":
        """Tell what blocks of ``kappa T``, damped, are made of.

        Args:
            unit: the unit of each row.
            slot: its slot; that of one beyond the last is of the identity.
            kappa: the weight of T.
            damping: of each unit, raised where rounding hides it.
        """
        there = slot < self.places.size
        first, strides, begins = (
            jnp.asarray(x, jnp.int32)[unit]
            for x in (self.first, self.strides, self.begins)
        )
        # A unit without a moment reads the zero at the end.
        column = jnp.where(there & (strides > 0), slot - first, 0)
        alone = jnp.take(self.alone, slot, mode="fill", fill_value=0)
        least = resolution(kappa * self.traces[unit])
        damping = jnp.maximum(damping[unit], least)
        return Entries(
            there=there,
            row=begins + column * strides,
            column=column,
            scale=kappa * self.gammas[unit],
            diagonal=jnp.where(there, kappa * alone + damping, 1),
        )


class Entries(NamedTuple):
    """What blocks are made of, one value for each of their rows.

    Attributes:
        there: whether there is such a row: others are of the identity.
        row: where its moments begin.
        column: its place among them.
        scale: of the moments.
        diagonal: what is added on the diagonal.
    """

    there: jax.Array
    row: jax.Array
    column: jax.Array
    scale: jax.Array
    diagonal: jax.Array

    def blocks(self, moments: jax.Array) -> jax.Array:
        """Make blocks of entries [several, width]: [several, width, width].

        Args:
            moments: all moments, flat.
        """
        both = self.there[:, :, None] & self.there[:, None, :]
        index = self.row[:, :, None] + self.column[:, None, :]
        blocks = jnp.where(both, self.scale[:, :, None] * moments[index], 0)
        eye = jnp.eye(self.row.shape[1], dtype=blocks.dtype)
        return blocks + self.diagonal[:, :, None] * eye


def units_of(kronecker: Kronecker, dtype: jnp.dtype) -> Units:
    """List the blocks of T."""
    sizes: list[np.ndarray] = []
    begins: list[np.ndarray] = []
    strides: list[np.ndarray] = []
    places, gammas, moments, alone, means, traces = [], [], [], [], [], []
    total = sum(d.size for d in kronecker.diagonals)
    offset = length = 0
    for layer, gamma, diagonal, mean in zip(
        kronecker.layers,
        kronecker.gammas,
        kronecker.diagonals,
        kronecker.means,
        strict=True,
    ):
        if layer is None:
            count = math.ceil(diagonal.size / NARROWEST)
            slots = jnp.arange(count * NARROWEST, dtype=jnp.int32)
            spare = count * NARROWEST - diagonal.size
            sizes.append(np.full(count, NARROWEST))
            begins.append(np.full(count, -1))
            strides.append(np.zeros(count, int))
            gammas.append(jnp.zeros(count, dtype))
            found = jnp.where(slots < diagonal.size, slots + offset, total)
            alone.append(jnp.pad(diagonal.ravel().astype(dtype), (0, spare)))
            means.append(jnp.full(count, mean, dtype))
            traces.append(jnp.sum(alone[-1].reshape(count, NARROWEST), axis=1))
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
            means.append(mean.ravel().astype(dtype))
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
        means=jnp.concatenate(means),
        traces=jnp.concatenate(traces),
    )


class Kept(NamedTuple):
    """What blocks have of a support: entries kept are numbered by block.

    Attributes:
        before: how many entries the units before each keep, [units].
        counts: how many it keeps itself, [units].
        order: of the units, those that keep most first.
        slots: of the entries kept; beyond them their number, [slots].
    """

    before: jax.Array
    counts: jax.Array
    order: jax.Array
    slots: jax.Array


def keep(units: Units, support: Leaves) -> Kept:
    """List the entries that blocks keep of a support, by number.

    Raises:
        ValueError: for more of them than an int32 numbers.
    """
    flat = jnp.concatenate([m.ravel() for m in support])
    kept = jnp.take(flat, units.places, mode="fill", fill_value=False)
    _require_numbers(max(kept.size, flat.size, units.moments.size))
    running = jnp.cumsum(kept, dtype=jnp.int32)
    running = jnp.concatenate([jnp.zeros(1, jnp.int32), running])
    before = running[units.first]
    counts = running[units.first + units.sizes] - before
    order = jnp.argsort(-counts, stable=True).astype(jnp.int32)
    (slots,) = jnp.nonzero(kept, size=kept.size, fill_value=kept.size)
    return Kept(before, counts, order, slots.astype(jnp.int32))


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
