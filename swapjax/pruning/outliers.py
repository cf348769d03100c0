"""Outlier weighed layer-wise sparsity: layers with many outliers keep more."""

import functools
import re
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from swapjax.activations.layer import Layer
from swapjax.core.checks import require_fraction, take_amount
from swapjax.core.types import Leaves, LossFn, Params
from swapjax.pruning.methods.wanda import score, wanda
from swapjax.pruning.once import sight
from swapjax.sparsity.leaf_rules import exact_sparsity
from swapjax.sparsity.plan import Plan
from swapjax.sparsity.segments import Segments, count_layers
from swapjax.sparsity.stacking import Stacking

_LEAST = 0.5  # of what it would keep otherwise, that a layer keeps
_PLACE = re.compile(r"^(?P<block>.*?\d+)(?:/|$|\[)|(?P<slice>\[[\d, ]+\])$")


def owl(
    loss_fn: LossFn,
    params: Params,
    data: Any,
    sparsity: float,
    *,
    outlier: float = 5.0,
    width: float = 0.08,
    blocks: Callable[[str], str] | None = None,
    plan: Plan | None = None,
    samples: int = 128,
    batch: int = 1,
    key: jax.Array | None = None,
) -> dict[str, float]:
    """Give layers with many outliers a lower sparsity (OWL).

    An outlier is an entry whose score ``|w_ij| sqrt(H_ii)``, as `wanda` has it, is more
    than ``outlier`` times the mean of its block. With ``D`` the fraction of outliers of
    each block, laid from 0 to 1, densities are ``1 - sparsity + 2 width (D - mean D)``
    (Yin et al., ICML 2024, arXiv:2310.05175; defaults, blocks and formula are those of
    the authors' code). The mean is over entries here, so that the whole comes to the
    sparsity; there blocks have one size. Takes one forward pass.

    Args:
        loss_fn: ``loss_fn(params, batch)``, as `prune` takes it.
        params: the trained weights.
        data: as `prune` takes them.
        sparsity: of all prunable entries together.
        outlier: M of the paper.
        width: lambda of the paper. It is cut where a layer would keep less than half of
            what it would in a uniform allocation, or more than all.
        blocks: from the name of a layer to that of its block, whose matrices have one
            sparsity. By default what the first number in a path ends, as
            ``layers/3``, and what is in the same place of scanned stacks; other layers
            are blocks of their own.
        plan: which leaves, of whatever counts; by default all that are prunable.
        samples: rows of examples.
        batch: examples a row.
        key: seeds the draw.

    Returns:
        The sparsity of each layer by its name, for ``swapjax.plan(allocation=...)``,
        which meets the whole exactly.

    Raises:
        ValueError: for arguments out of range, and as `prune` does.

    Example:
        >>> import jax, jax.numpy as jnp, swapjax
        >>> kernel = jax.random.normal(jax.random.key(0), (2, 8, 8))
        >>> params = {"0": {"kernel": kernel[0] ** 5}, "1": {"kernel": kernel[1]}}
        >>> x = jax.random.normal(jax.random.key(1), (50, 8))
        >>> def loss_fn(params, x):
        ...     x = x @ params["0"]["kernel"]
        ...     return jnp.mean((x @ params["1"]["kernel"]) ** 2)
        >>> found = swapjax.owl(
        ...     loss_fn, params, x, 0.5, samples=50, key=jax.random.key(2))
        >>> {name: round(value, 3) for name, value in found.items()}
        {'0/kernel': 0.42, '1/kernel': 0.58}
    """
    exact = exact_sparsity(sparsity, "sparsity")
    outlier = take_amount("outlier", outlier, zero=False)
    require_fraction("width", width)
    if blocks is not None and not callable(blocks):
        raise ValueError(f"blocks must be a function of a layer's name, got {blocks!r}")
    seen = sight(
        loss_fn, params, data, method=wanda(), plan=plan, samples=samples,
        batch=batch, key=key,
    )  # fmt: skip
    layout, layers = seen.plan.layout, seen.seen.layers
    assert layers is not None
    weights = layout.take(seen.inputs.params)
    scores = score(weights, cast("tuple[Layer, ...]", layers), per_output=False)
    stacking, names = layout.stacking, layout.layers
    sizes = np.asarray(
        [stacking.layer_size(i, layout.shapes[i]) for i in stacking.leaf_of], np.float64
    )
    name_block = _block_of if blocks is None else blocks
    named = [name_block(name) for name in names]
    for name, block in zip(names, named, strict=True):
        if not isinstance(block, str):
            raise ValueError(
                f"blocks must tell the name of the block of {name}, got {block!r}"
            )
    known = list(dict.fromkeys(named))
    owner = np.asarray([known.index(block) for block in named])
    add = functools.partial(np.bincount, owner, minlength=len(known))
    totals = np.asarray(_sum(scores, stacking), np.float64)
    means = add(totals) / np.maximum(add(sizes), 1)
    limits = jnp.asarray(outlier * means[owner], jnp.float32)
    above = count_layers(_above(scores, limits, stacking), stacking)
    ratios = add(np.asarray(above, np.float64)) / np.maximum(add(sizes), 1)
    found = _sparsities(ratios, add(sizes), float(exact), width)
    return {name: float(found[i]) for name, i in zip(names, owner, strict=True)}


def _block_of(name: str) -> str:
    """Name the block of a layer: what a first number ends, or its place in a stack."""
    found = _PLACE.search(name)
    if found is None:
        return name
    return found["block"] or found["slice"]


@functools.partial(jax.jit, static_argnums=1)
def _sum(scores: Leaves, stacking: Stacking) -> jax.Array:
    """Add up the scores of each layer."""
    return stacking.gather(
        [jnp.sum(x, axis=stacking.inner(i, x.ndim)) for i, x in enumerate(scores)]
    )


@functools.partial(jax.jit, static_argnums=2)
def _above(scores: Leaves, limits: jax.Array, stacking: Stacking) -> Leaves:
    """Mark the scores above the limits of their layers."""
    along = Segments.of_layers(stacking).spread(limits, scores)
    return tuple(x > limit for x, limit in zip(scores, along, strict=True))


def _sparsities(
    ratios: np.ndarray, sizes: np.ndarray, sparsity: float, width: float
) -> np.ndarray:
    """Make sparsities of the fractions of outliers of blocks."""
    lowest, highest = ratios.min(), ratios.max()
    if highest == lowest:
        return np.full(len(ratios), sparsity)
    moves = 2 * (ratios - lowest) / (highest - lowest)
    moves -= np.average(moves, weights=sizes)
    density = 1 - sparsity
    room = min(sparsity / moves.max(), (1 - _LEAST) * density / -moves.min())
    return np.clip(sparsity - min(width, room) * moves, 0.0, None)
