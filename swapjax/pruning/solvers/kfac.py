"""What layers read, as a second opinion on the Fisher of the rows: a Kronecker factor.

Noise on gradients does not touch what a layer reads. So the Fisher ``G^T G / n`` may be
shrunk towards

    T_(l,i,o),(l,i',o) = gamma_lo (A_l)_ii',    all other entries zero,

with the second moment A of what layer l reads and one number gamma for each of its
outputs o: K-FAC (Martens and Grosse, ICML 2015, arXiv:1503.05671) with an output factor
that is diagonal. Gamma is what makes T agree with the Fisher in trace, output by
output, above a floor that noise raises all columns to.

T may be damped, each output in its own units: one damping for all would hold outputs of
small gamma too firmly, and noise on gradients makes gammas differ by orders.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from swapjax.activations.layer import Layer
from swapjax.core.types import Leaves
from swapjax.gradients.noise_level import column_floor, column_share

_LEAST = 1e-6  # of the largest gamma: no output may weigh nothing
_HIGHEST = jax.lax.Precision.HIGHEST


@dataclasses.dataclass(frozen=True, eq=False)
class Kronecker:
    """T, leaf by leaf. Lives while a program is traced.

    Attributes:
        layers: what each leaf reads; None where that could not be followed, and T is
            the diagonal of the Fisher.
        gammas: [groups, 1, outputs] of each layer.
        diagonals: ``T_qq`` of each leaf, of its shape.
        means: of the diagonal of T in each output, [groups, 1, outputs], or in a leaf
            that could not be followed, [].
        noise: the share of the Fisher's trace below the floor, ``float[]``.
        unpack: makes leaves of what the problem calls leaves, perhaps one vector.
        pack: undoes it.
    """

    layers: tuple[Layer | None, ...]
    gammas: tuple[jax.Array | None, ...]
    diagonals: Leaves
    means: tuple[jax.Array, ...]
    noise: jax.Array
    unpack: Callable[[Leaves], Leaves]
    pack: Callable[[Leaves], Leaves]

    def multiply(self, vectors: Leaves, share: float = 0.0) -> Leaves:
        """Compute ``T v``: leaves to leaves, one product of matrices a layer.

        Args:
            vectors: v.
            share: of the mean diagonal of each output, added to its diagonal.
        """
        parts = zip(
            self.layers,
            self.gammas,
            self.diagonals,
            self.means,
            self.unpack(vectors),
            strict=True,
        )
        return self.pack(tuple(_multiply(*part, share) for part in parts))

    def ridge(
        self,
        vectors: Leaves,
        kappa: jax.Array,
        damping: jax.Array,
        share: float = 0.0,
    ) -> Leaves:
        """Compute ``(kappa T + lambda I) v``, T damped, in the dtypes of v."""
        return tuple(
            (kappa * t + damping * v).astype(v.dtype)
            for t, v in zip(self.multiply(vectors, share), vectors, strict=True)
        )

    def diagonal(self, share: float = 0.0) -> Leaves:
        """Take ``T_qq``, in the leaves of the problem.

        Args:
            share: of the mean diagonal of each output, added to it.
        """
        return self.pack(
            tuple(
                d + share * _spread(layer, mean, d)
                for layer, mean, d in zip(
                    self.layers, self.means, self.diagonals, strict=True
                )
            )
            if share
            else self.diagonals
        )


def _spread(layer: Layer | None, mean: jax.Array, diagonal: jax.Array) -> jax.Array:
    """Give each entry the mean of its output."""
    if layer is not None:
        mean = layer.leaf(jnp.broadcast_to(mean, layer.index.shape), diagonal.shape)
    return mean.astype(diagonal.dtype)


def _multiply(
    layer: Layer | None,
    gamma: jax.Array | None,
    diagonal: jax.Array,
    mean: jax.Array,
    v: jax.Array,
    share: float,
) -> jax.Array:
    if layer is None or gamma is None:
        return (diagonal + share * mean) * v if share else diagonal * v
    matrix = layer.matrix(v).astype(layer.moment.dtype)
    moved = jnp.matmul(layer.moment, matrix, precision=_HIGHEST) * gamma
    if share:
        moved += share * mean * matrix
    return layer.leaf(moved.astype(v.dtype), v.shape)


def estimate(
    layers: tuple[Layer | None, ...],
    weights: Leaves,
    squares: Leaves,
    unpack: Callable[[Leaves], Leaves] = lambda leaves: leaves,
    pack: Callable[[Leaves], Leaves] = lambda leaves: leaves,
) -> Kronecker:
    """Estimate T from what layers read and the diagonal of the Fisher.

    Args:
        layers: of each leaf, None where it could not be followed.
        weights: the leaves of the problem; only what is not zero counts.
        squares: ``F_qq``, the rows' `mean_squares`.
        unpack: makes leaves of what the problem calls leaves.
        pack: undoes it.
    """
    there = tuple(w != 0 for w in weights)
    floor = column_floor(squares, there)
    above = tuple(
        jnp.where(m, jnp.maximum(f - floor, 0), 0)
        for f, m in zip(squares, there, strict=True)
    )
    rough: list[jax.Array | None] = []
    for layer, excess, inside in zip(layers, unpack(above), unpack(there), strict=True):
        if layer is None:
            rough.append(None)
            continue
        energy = jnp.sum(layer.matrix(excess), axis=1, keepdims=True)
        reads = layer.reads
        read = jnp.sum(jnp.where(layer.matrix(inside), reads, 0), axis=1, keepdims=True)
        rough.append(jnp.where(read > 0, energy / jnp.where(read > 0, read, 1), 0))
    known = [jnp.max(g, initial=0) for g in rough if g is not None]
    least = _LEAST * jnp.stack(known).max() if known else None
    gammas = tuple(
        None if g is None or least is None else jnp.maximum(g, least) for g in rough
    )
    diagonals = tuple(
        f
        if layer is None or gamma is None
        else layer.leaf((layer.reads * gamma).astype(f.dtype), f.shape)
        for layer, gamma, f in zip(layers, gammas, unpack(squares), strict=True)
    )
    means = tuple(map(_mean, layers, gammas, diagonals))
    noise = column_share(floor, squares, there)
    return Kronecker(layers, gammas, diagonals, means, noise, unpack, pack)


def _mean(
    layer: Layer | None, gamma: jax.Array | None, diagonal: jax.Array
) -> jax.Array:
    """Average the diagonal in each output, over all inputs there are, or in a leaf."""
    if layer is None or gamma is None:
        return jnp.sum(diagonal) / max(diagonal.size, 1)
    inside = layer.index >= 0
    total = jnp.sum(jnp.where(inside, layer.reads, 0), axis=1, keepdims=True)
    return gamma * total / jnp.maximum(jnp.sum(inside, axis=1, keepdims=True), 1)
