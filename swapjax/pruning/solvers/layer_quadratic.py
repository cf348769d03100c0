"""The quadratic of a layer: how far its outputs move when its weights do.

For a layer ``outputs = inputs @ W`` with reference ``Wbar`` the mean squared change of
the outputs, damped, is a sum over outputs o that share one Hessian,

    E(W) = sum_o (w_o - wbar_o)^T H (w_o - wbar_o),    H = moment + damping I,

and so is every formula here. Arrays have a leading axis of groups, layers side by side
that share nothing: weights are [groups, inputs, outputs], Hessians
[groups, inputs, inputs].

Systems are solved one after the other: on a CPU a batch of LAPACK calls shares a thread
pool with what waits for it, and was seen to hang.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from swapjax.activations.layer import Layer
from swapjax.pruning.solvers import by_output, cholesky

_HIGHEST = jax.lax.Precision.HIGHEST


class Quadratic(NamedTuple):
    """A damped Hessian and its factor.

    Attributes:
        hessian: H, [groups, inputs, inputs].
        root: upper triangular U with ``U^T U = H^-1``. Its rows from j on belong in the
            same way to the inputs from j on.
        damping: the largest used of a group, in units of the mean of its diagonal.
        raised: whether that is more than was asked for.
    """

    hessian: jax.Array
    root: jax.Array
    damping: jax.Array
    raised: jax.Array


def of_layers(layers: Sequence[Layer], damping: float) -> list[Quadratic]:
    """Damp the moments of several layers, in units of the inputs that there are."""
    units = [
        _units(
            layer.moment,
            layer.layers,
            jnp.any(layer.index >= 0, axis=2) if layer.filled else None,
        )
        for layer in layers
    ]
    return _damp([layer.moment for layer in layers], units, damping)


def damp(moment: jax.Array, damping: float) -> Quadratic:
    """Damp a moment, and if that leaves it singular, tenfold more until it is not.

    Args:
        moment: [groups, inputs, inputs], symmetric.
        damping: 0 or more, in units of the mean of the diagonal: of the group, or of
            the layer where a group reads only zeros. A layer that reads only zeros
            has the unit 1.
    """
    (found,) = _damp([moment], [_units(moment, 1, None)], damping)
    return found


def _units(moment: jax.Array, layers: int, inside: jax.Array | None) -> jax.Array:
    """Find the unit of each group's damping, [groups].

    Args:
        moment: [groups, inputs, inputs].
        layers: how many layers the groups belong to, the same number to each.
        inside: bool[groups, inputs], the inputs that there are; None for all.
    """
    diagonal = jnp.diagonal(moment, axis1=-2, axis2=-1)
    if inside is None:
        means = jnp.sum(diagonal, axis=-1) / max(diagonal.shape[-1], 1)
    else:
        count = jnp.maximum(jnp.sum(inside, axis=-1, dtype=jnp.int32), 1)
        means = jnp.sum(diagonal, axis=-1) / count.astype(moment.dtype)
    whole = jnp.mean(means.reshape(layers, -1), axis=-1, keepdims=True)
    whole = jnp.broadcast_to(whole, (layers, len(means) // layers)).reshape(-1)
    return jnp.where(means > 0, means, jnp.where(whole > 0, whole, 1))


def _damp(
    moments: Sequence[jax.Array], units: Sequence[jax.Array], damping: float
) -> list[Quadratic]:
    """Damp moments, those of equal inputs in one program (see `by_output`)."""

    def one(matrix: jax.Array) -> tuple[jax.Array, ...]:
        # Of the matrix turned round, so that the factor becomes upper triangular.
        found = cholesky.factor(matrix[::-1, ::-1], damping)
        upper = found.lower[::-1, ::-1]
        eye = jnp.eye(len(matrix), dtype=matrix.dtype)
        root = jax.scipy.linalg.solve_triangular(upper, eye)
        return root, found.ridge, found.raised

    found: dict[int, Quadratic] = {}
    for places in by_output.alike(moments):
        scaled = [moments[i] / units[i][:, None, None] for i in places]
        joined = jnp.concatenate(scaled)
        solved = jax.lax.map(one, joined) if joined.size else _undamped(joined, damping)
        ends = np.cumsum([len(moments[i]) for i in places])
        each = zip(*(jnp.split(x, ends[:-1]) for x in solved), strict=True)
        for i, (root, ridge, raised) in zip(places, each, strict=True):
            eye = jnp.eye(moments[i].shape[-1], dtype=moments[i].dtype)
            hessian = moments[i] + (ridge * units[i])[:, None, None] * eye
            root = root / jnp.sqrt(units[i])[:, None, None]
            found[i] = Quadratic(hessian, root, jnp.max(ridge), jnp.any(raised))
    return [found[i] for i in range(len(moments))]


def _undamped(empty: jax.Array, damping: float) -> tuple[jax.Array, ...]:
    """Take matrices without inputs for their own roots."""
    count = len(empty)
    return empty, jnp.full(count, damping, empty.dtype), jnp.zeros(count, bool)


def error(hessian: jax.Array, weights: jax.Array, reference: jax.Array) -> jax.Array:
    """Evaluate the layer's output error E, a scalar."""
    change = weights - reference
    return jnp.sum(change * jnp.matmul(hessian, change, precision=_HIGHEST))


def relative(
    moment: jax.Array, weights: jax.Array, layers: int | None = None
) -> jax.Array:
    """Find what makes errors relative to outputs, [groups, 1, outputs].

    That is one over the mean square of each output, or of all outputs of its layer,
    summed over positions as errors are; 0 where that is zero.

    Args:
        moment: [groups, inputs, inputs], not damped.
        weights: [groups, inputs, outputs].
        layers: how many layers the groups belong to; None for each output by itself.
    """

    def one(group: tuple[jax.Array, jax.Array]) -> jax.Array:
        hessian, w = group
        made = w * jnp.matmul(hessian, w, precision=_HIGHEST)
        return jnp.sum(made, axis=0, keepdims=True)

    energies = jax.lax.map(one, (moment, weights))
    if layers is not None:
        total = jnp.sum(energies.reshape(layers, -1), axis=1)
        each = jnp.repeat(total, len(energies) // layers)
        energies = jnp.broadcast_to(each[:, None, None], energies.shape)
    return jnp.where(energies > 0, 1 / jnp.where(energies > 0, energies, 1), 0)


def saliency(root: jax.Array, weights: jax.Array) -> jax.Array:
    """``w_q^2 / [H^-1]_qq``: what E rises by if the entry alone is removed.

    The others of its output are re-fitted then (Optimal Brain Surgeon).
    """
    # Group by group, so that the sums of one do not depend on how many there are.
    diagonal = jax.lax.map(lambda u: jnp.sum(jnp.square(u), axis=0), root)
    return jnp.square(weights) / diagonal[:, :, None]


def refit(
    hessians: Sequence[jax.Array],
    references: Sequence[jax.Array],
    supports: Sequence[jax.Array],
) -> list[jax.Array]:
    """Find the weights on supports that minimise E: one system for each output.

    Takes O(outputs * inputs^3) time. It solves for the change of the weights, which
    loses fewer digits than solving for the weights would.

    Args:
        hessians: H of each of several layers.
        references: Wbar.
        supports: bool, where weights may be other than zero.
    """
    return by_output.solve(_refit, hessians, references, supports)


def _refit(
    hessian: jax.Array, group: jax.Array, reference: jax.Array, support: jax.Array
) -> jax.Array:
    """Do so for outputs of layers of equal inputs, [outputs, inputs]."""
    eye = jnp.eye(hessian.shape[-1], dtype=hessian.dtype)

    def one(item: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        group, wbar, kept = item
        h = hessian[group]
        inside = kept[:, None] & kept[None, :]
        lost = jnp.matmul(h, jnp.where(kept, 0, wbar), precision=_HIGHEST)
        change = jax.scipy.linalg.solve(
            jnp.where(inside, h, eye), jnp.where(kept, lost, 0), assume_a="pos"
        )
        return jnp.where(kept, wbar + change, 0)

    return jax.lax.map(one, (group, reference, support))
