"""Drop the weakest weights and grow as many elsewhere: what rules choose by."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from swapjax.core.types import Leaves
from swapjax.sparsity.budget import select
from swapjax.sparsity.patterns import NM
from swapjax.sparsity.scores import magnitude
from swapjax.sparsity.topk import sort_keys, top_keys
from swapjax.training.rule import Grow, MaskStep


def exchange(
    weight: jax.Array,
    score: jax.Array,
    mask: jax.Array,
    drop: jax.Array | int,
    within: jax.Array | None = None,
    *,
    pattern: NM | None = None,
) -> jax.Array:
    """Move a number of active entries to where the score is largest.

    The `drop` active entries with the smallest ``|weight|`` are removed, then as many
    with the largest scores are added, among all entries that are inactive by then:
    those just removed may come back. The count stays as it was. With scores ``|g|``, g
    the gradient, this is the exchange of RigL (Evci et al., ICML 2020,
    arXiv:1911.11134) and the regeneration of GraNet (Liu et al., NeurIPS 2021,
    arXiv:2106.10404); with random ones that of SET (Mocanu et al., 2018,
    arXiv:1707.04780).

    Only the mask is made here: set weights to zero that are new in it or no longer.

    Args:
        weight: floats of any shape. NaN is the smallest.
        score: of the same shape, large means grow: ``|g|``, g the gradient where
            inactive weights are zero but not hidden from it; or `random_score`. NaN
            ranks lowest.
        mask: bool of the same shape, the active entries.
        drop: how many to exchange, may be traced; clipped to 0 and the number of
            active entries.
        within: bool of the same shape; nothing grows where it is False. Where that
            leaves too little room, which a mask inside of it never does, fewer grow.
        pattern: an N:M pattern that mask has. Each group keeps its n entries.

    Returns:
        The new mask, bool of the same shape. Ties go to the lower flat index, among
        what stays and among what grows.

    Raises:
        ValueError: for shapes that differ, and for masks that are not bool.

    Example:
        >>> weight = jnp.asarray([3.0, -1.0, 0.0, 0.0])
        >>> gradient = jnp.asarray([0.0, 0.1, 0.2, -9.0])
        >>> exchange(weight, jnp.abs(gradient), weight != 0, 1).tolist()
        [True, False, False, True]
    """
    others = {"score": score, "mask": mask, "within": within}
    for name, other in others.items():
        if other is not None and other.shape != weight.shape:
            raise ValueError(
                f"{name}: must have the shape {weight.shape} of weight, got "
                f"{other.shape}"
            )
    for name, given in (("mask", mask), ("within", within)):
        if given is not None and given.dtype != bool:
            raise ValueError(f"{name}: must be bool, got {given.dtype}")
    active = jnp.sum(mask, dtype=jnp.int32)
    # Key 0 marks entries that cannot be chosen; no number has it, once NaN has 1.
    strength = jnp.where(mask, jnp.maximum(sort_keys(jnp.abs(weight)), 1), 0)
    (kept,) = top_keys((strength,), active - jnp.clip(drop, 0, active))

    wanted = score if jnp.issubdtype(score.dtype, jnp.unsignedinteger) else None
    wanted = sort_keys(score) if wanted is None else wanted
    most = ~jnp.zeros((), wanted.dtype)
    wanted = jnp.clip(wanted, 1, most - 1)
    if within is not None:
        wanted = jnp.where(within, wanted, 0)
    # What was kept has a key that nothing else has: one selection fills up the rest.
    wanted = jnp.where(kept, most, wanted)
    if pattern is None:
        (chosen,) = top_keys((wanted,), active)
    else:
        chosen = pattern.top(wanted)
    return chosen & (wanted > 0)


def random_score(key: jax.Array, weight: jax.Array) -> jax.Array:
    """Draw scores by which `exchange` grows entries uniformly at random.

    Args:
        key: a JAX PRNG key, another one for every exchange.
        weight: an array of the wanted shape.

    Returns:
        ``uint32`` of that shape, which `exchange` compares as integers: uniform floats
        have only 2^23 values, and ties favour low indices.
    """
    return jax.random.bits(key, weight.shape, jnp.uint32)


def prune_smallest(step: MaskStep) -> Leaves:
    """Keep the largest of the weights that are active."""
    return select(magnitude(step.weights), step.budget, step.masks)


def keep_largest(step: MaskStep) -> Leaves:
    """Keep the largest weights, active so far or not."""
    # Made from masks, it has their sharding, also on a mesh with explicit axes.
    within = step.within or tuple(m | True for m in step.masks)
    return select(magnitude(step.weights), step.budget, within)


def exchange_by(grow: Grow) -> Callable[[MaskStep], Leaves]:
    """Make a choice that exchanges a fraction of each leaf, rounded up.

    Args:
        grow: where the ``"gradient"`` is largest, or at ``"random"``. Entries whose
            gradient is not finite do not grow: a leaf without others stays as it is.
    """

    def choose(step: MaskStep) -> Leaves:
        new = []
        for i, (weight, mask) in enumerate(zip(step.weights, step.masks, strict=True)):
            if grow == "gradient":
                score = jnp.abs(step.gradients[i])
                score = jnp.where(jnp.isfinite(score), score, jnp.nan)
            else:
                assert step.key is not None  # since rules that grow so need one
                score = random_score(jax.random.fold_in(step.key, i), weight)
            active = jnp.sum(mask, dtype=jnp.int32)
            # In float32 0.3 of 50 is above 15: a little less before it is rounded up.
            share = step.fraction * (1 - 2.0**-21) * active.astype(jnp.float32)
            drop = jnp.ceil(share).astype(jnp.int32)
            within = None if step.within is None else step.within[i]
            if grow == "gradient":
                drop = _as_many_as_known(drop, score, mask, within)
            new.append(
                exchange(
                    weight,
                    score,
                    mask,
                    drop,
                    within,
                    pattern=step.budget.pattern(i),
                )
            )
        return tuple(new)

    return choose


def _as_many_as_known(
    drop: jax.Array, score: jax.Array, mask: jax.Array, within: jax.Array | None
) -> jax.Array:
    """Lower a number to exchange to that of the inactive entries with a gradient.

    Gradients that overflowed would have entries grow by their index.
    """
    free = ~mask if within is None else within & ~mask
    unknown = free & jnp.isnan(score)
    known = jnp.sum(free & ~unknown, dtype=jnp.int32)
    return jnp.where(jnp.any(unknown), jnp.minimum(drop, known), drop)
