"""The support of ALPS: ADMM with a penalty that rises as the support settles.

Meng et al., NeurIPS 2024, arXiv:2406.07831, Algorithm 1. The weights W of the layers
and a sparse copy D of them are drawn together by a penalty rho and a dual V::

    W <- argmin E(W) + <V, W - D> + rho/2 |W - D|^2
       = (H + rho I)^-1 (H Wbar - V + rho D)
    D <- the entries of W + V / rho that the budget chooses
    V <- V + rho (W - D)

with E half the error of the layers. Weights are measured in units in which the
diagonal of every H is one, so that a square is what an entry adds to the error by
itself, layers can compete for one budget, and rho means the same for all of them. One
decomposition into eigenvectors serves all rho.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from swapjax.core.types import Leaves
from swapjax.pruning.solvers.candidates import count_new
from swapjax.pruning.solvers.layer_parts import Part
from swapjax.sparsity.budget import Budget, select

_HIGHEST = jax.lax.Precision.HIGHEST
_EVERY = 3  # iterations from one penalty to the next
# Shares of the support that moved in these, and what the penalty is multiplied with.
_RISES = ((0.1, 1.3), (0.005, 1.2), (0.0, 1.1))


class Found(NamedTuple):
    """What the iterations end with.

    Attributes:
        masks: the support, a bool leaf a part.
        weights: D, [groups, inputs, outputs] a part, in the units of the weights.
        penalty: rho at the end.
        iterations: how many there were.
    """

    masks: Leaves
    weights: Leaves
    penalty: jax.Array
    iterations: jax.Array


class _System(NamedTuple):
    """A part in units in which the diagonal of its Hessian is one.

    Attributes:
        basis: its eigenvectors, [groups, inputs, inputs].
        values: its eigenvalues, [groups, inputs, 1].
        target: ``basis^T H Wbar``, [groups, inputs, outputs].
        units: of the weights, [groups, inputs, outputs].
        place: where in the matrices each entry of the leaf stands.
    """

    basis: jax.Array
    values: jax.Array
    target: jax.Array
    units: jax.Array
    place: jax.Array


def search(
    parts: list[Part],
    shapes: list[tuple[int, ...]],
    budget: Budget,
    within: Leaves | None,
    *,
    penalty: float,
    steps: int,
) -> Found:
    """Search a support for all parts at once, until it does not move any more.

    Args:
        parts: the layers.
        shapes: of their leaves.
        budget: what the supports keep to, of all leaves.
        within: bool leaves, or None.
        penalty: rho to begin with, in units of the mean eigenvalue of each H.
        steps: the most iterations.
    """
    systems = [_system(part, shape) for part, shape in zip(parts, shapes, strict=True)]

    def project(wanted: Leaves) -> tuple[Leaves, Leaves]:
        scores = tuple(
            _to_leaf(jnp.where(part.ranks == 0, jnp.square(z), -1), system)
            for part, system, z in zip(parts, systems, wanted, strict=True)
        )
        masks = select(scores, budget, within)
        return masks, tuple(
            jnp.where(part.layer.matrix(mask), z, 0)
            for part, mask, z in zip(parts, masks, wanted, strict=True)
        )

    def iterate(sparse: Leaves, dual: Leaves, rho: jax.Array) -> tuple[Leaves, ...]:
        """Take one iteration; dual is V / rho."""
        wanted = tuple(
            _pulled(system, d - u, rho) + u
            for system, d, u in zip(systems, sparse, dual, strict=True)
        )
        masks, sparse = project(wanted)
        return masks, sparse, optax.tree.sub(wanted, sparse)

    def moves(carry: tuple) -> jax.Array:
        i, *_, moved = carry
        return (i < steps) & (moved > 0)

    def round_of(carry: tuple) -> tuple:
        i, before, sparse, dual, rho, _ = carry
        count = jnp.minimum(_EVERY, steps - i)
        masks, sparse, dual = jax.lax.fori_loop(
            0, count, lambda _, c: iterate(c[1], c[2], rho), (before, sparse, dual)
        )
        moved, kept = count_new(masks, before), count_new(masks, nothing)
        share = moved / jnp.maximum(kept, 1)
        rise = jnp.select([share >= s for s, _ in _RISES], [r for _, r in _RISES])
        rise = rise.astype(rho.dtype)
        dual = tuple((u / rise).astype(u.dtype) for u in dual)
        return i + count, masks, sparse, dual, rho * rise, moved

    nothing = tuple(jnp.zeros(shape, bool) for shape in shapes)
    start = tuple(p.weights * s.units for p, s in zip(parts, systems, strict=True))
    carry = (
        jnp.zeros((), jnp.int32),
        nothing,
        start,
        optax.tree.zeros_like(start),
        jnp.asarray(penalty, jnp.float32),
        jnp.ones((), jnp.int32),
    )
    i, masks, sparse, _, rho, _ = jax.lax.while_loop(moves, round_of, carry)
    weights = tuple(
        jnp.where(s.units > 0, d / jnp.where(s.units > 0, s.units, 1), 0)
        for d, s in zip(sparse, systems, strict=True)
    )
    return Found(masks, weights, rho, i)


def _system(part: Part, shape: tuple[int, ...]) -> _System:
    """Change the units of a part, and decompose its Hessian."""
    hessian = part.system.hessian
    size = jnp.sqrt(jnp.diagonal(hessian, axis1=1, axis2=2))[:, :, None]
    units = size * jnp.sqrt(part.factor)

    def one(item: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        # One group after the other, see `layer_quadratic`.
        h, scale, wbar = item
        values, basis = jnp.linalg.eigh(h / scale / scale.T)
        turned = jnp.matmul(basis.T, wbar, precision=_HIGHEST)
        return basis, values[:, None], values[:, None] * turned

    basis, values, target = jax.lax.map(one, (hessian, size, units * part.weights))
    count = part.weights.size
    place = jax.lax.iota(jnp.int32, count).reshape(part.weights.shape)
    return _System(basis, values, target, units, part.layer.leaf(place + 1, shape) - 1)


def _to_leaf(matrix: jax.Array, system: _System) -> jax.Array:
    """As `Layer.leaf`; reading is faster than writing, and this is done often."""
    return jnp.where(system.place < 0, -1, matrix.ravel()[system.place])


def _pulled(system: _System, towards: jax.Array, rho: jax.Array) -> jax.Array:
    """Compute ``(H + rho I)^-1 (H Wbar + rho towards)``, a group after the other."""

    def one(item: tuple[jax.Array, ...]) -> jax.Array:
        basis, values, target, group = item
        turned = jnp.matmul(basis.T, group, precision=_HIGHEST)
        weight = rho.astype(values.dtype)
        turned = (target + weight * turned) / (values + weight)
        return jnp.matmul(basis, turned, precision=_HIGHEST)

    return jax.lax.map(one, (system.basis, system.values, system.target, towards))
