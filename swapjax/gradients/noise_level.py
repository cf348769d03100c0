"""How noisy gradient rows are, told from the rows alone.

Noise on all entries lifts what is small without it: the columns of weights whose
gradients hardly ever move, and the small eigenvalues of the Gram matrix, most of which
few directions of gradients leave near zero. Noise on whole rows makes some of them
heavy. Gradients of wrong labels or images are gradients all the same: they show in
neither, and a little in heavy rows.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from swapjax.core.types import Leaves
from swapjax.gradients.matrix_free import MatrixFreeRows
from swapjax.gradients.stored import StoredRows
from swapjax.sparsity.topk import top_k_masks

_FLOOR = 0.02  # of the columns are taken to be noise alone
_TOP = 0.05  # of the rows are looked at for a share beyond their number


class NoiseLevel(NamedTuple):
    """How noisy gradient rows are; scalars that the unit of the rows does not change.

    Attributes:
        columns: the share of the rows' energy that is noise, if all columns have that
            of the quietest 2 %. Too much in a network without quiet weights, too little
            by a tenth for 1,000 rows, by a third for 40.
        spectrum: the same, if all eigenvalues of the Gram matrix, of rows brought to
            one norm, have the noise of the median one. Too much where half of the rows
            are no combinations of the others even without noise.
        heaviest: the energy of the heaviest row, in that of the median row.
        heavy: the share of the energy that the heaviest 5 % of the rows hold; 0.05
            where all are alike.
    """

    columns: jax.Array
    spectrum: jax.Array
    heaviest: jax.Array
    heavy: jax.Array


def noise_level(rows: StoredRows | MatrixFreeRows) -> NoiseLevel:
    """Estimate how noisy gradient rows are, from the columns of the non-zero weights.

    Takes the Gram matrix and its eigenvalues, ``O(n^2 p + n^3)``: as much as a re-fit
    of the dense network. Pure.

    Args:
        rows: from `per_example_gradients`, n of them.

    Returns:
        The level; NaN for rows of zeros.

    Example:
        >>> import jax, jax.numpy as jnp, swapjax
        >>> from swapjax.gradients import noise_level, per_example_gradients
        >>> params = {"kernel": jax.random.normal(jax.random.key(0), (500, 3))}
        >>> x = jax.random.normal(jax.random.key(1), (100, 500)).at[:, 2:].set(0.0)
        >>> loss_fn = lambda p, x: jnp.mean(jnp.tanh(x @ p["kernel"]))
        >>> target = swapjax.plan(params, 0.5)
        >>> clean = per_example_gradients(loss_fn, params, x, target)
        >>> bool(noise_level(clean).columns == 0)
        True
        >>> noisy = per_example_gradients(
        ...     loss_fn, params, x, target, key=jax.random.key(2),
        ...     corruption=swapjax.GradientNoise(scale=1.0, proportion=1.0))
        >>> bool(0.3 < noise_level(noisy).columns < 0.6)  # half of the energy
        True
    """
    free = rows.source if isinstance(rows, StoredRows) else rows
    weights = free.layout.split(free.params)
    support = tuple(w != 0 for w in weights)
    gram = rows.gram(support)
    norms = jnp.sqrt(jnp.diagonal(gram))
    energies = jnp.sort(jnp.square(norms))
    norms = jnp.where(norms > 0, norms, 1)
    # A few heavy rows would have most of the trace, and hide the noise of the others.
    values = jnp.linalg.eigvalsh(gram / norms / norms[:, None])
    squares = rows.mean_squares()
    floor = column_floor(squares, support)
    top = max(1, round(_TOP * rows.n))
    return NoiseLevel(
        columns=column_share(floor, squares, support),
        spectrum=jnp.maximum(jnp.median(values), 0) / jnp.mean(values),
        heaviest=energies[-1] / jnp.median(energies),
        heavy=jnp.sum(energies[-top:]) / jnp.sum(energies),
    )


def column_floor(squares: Leaves, inside: Leaves) -> jax.Array:
    """Take the 2 % quantile of the Fisher's diagonal: what noise raises columns to.

    Args:
        squares: ``F_qq``, the rows' `mean_squares`.
        inside: bool leaves, the entries that count.
    """
    count = sum(jnp.sum(m, dtype=jnp.float32) for m in inside)
    rank = jnp.maximum(jnp.ceil(_FLOOR * count), 1).astype(jnp.int32)
    rank = jnp.minimum(rank, sum(math.prod(m.shape) for m in inside))
    pairs = tuple(zip(squares, inside, strict=True))
    lowest = top_k_masks(tuple(jnp.where(m, -f, -jnp.inf) for f, m in pairs), rank)
    tops = [
        jnp.max(jnp.where(low & m, f, 0), initial=0)
        for low, (f, m) in zip(lowest, pairs, strict=True)
    ]
    return jnp.stack(tops).max()


def column_share(floor: jax.Array, squares: Leaves, inside: Leaves) -> jax.Array:
    """Tell the share of the Fisher's trace that is noise, if a floor is; NaN of none.

    Args:
        floor: from `column_floor`.
        squares: ``F_qq``.
        inside: bool leaves, the entries that count.
    """
    pairs = list(zip(squares, inside, strict=True))
    count = sum(jnp.sum(m, dtype=jnp.float32) for m in inside)
    return floor * count / sum(jnp.sum(jnp.where(m, f, 0)) for f, m in pairs)
