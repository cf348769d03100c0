"""Drop the weakest weights and grow as many elsewhere: what rules choose by."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from swapjax.core.types import Leaves
from swapjax.sparsity.budget import select
from swapjax.sparsity.patterns import NM
from swapjax.sparsity.pieces import count_groups
from swapjax.sparsity.scores import magnitude
from swapjax.sparsity.segments import Segments
from swapjax.sparsity.stacking import Stacking
from swapjax.sparsity.topk import common_width, sort_keys, top_keys_of_groups
from swapjax.training.rule import Choose, Grow, MaskStep, by_entry


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
    return exchange_all(
        (weight,),
        (score,),
        (mask,),
        jnp.asarray(drop, jnp.int32)[None],
        None if within is None else (within,),
        stacking=Stacking.none(1),
        patterns=(pattern,),
    )[0]


def exchange_all(
    weights: Leaves,
    wanted: Leaves,
    masks: Leaves,
    drop: jax.Array,
    within: Leaves | None,
    *,
    stacking: Stacking,
    patterns: Sequence[NM | None],
) -> Leaves:
    """Exchange in every layer of several leaves, as `exchange` does in one.

    Args:
        weights: the leaves.
        wanted: scores, large means grow.
        masks: the active entries.
        drop: ``int32[layers]``, how many to exchange in each layer.
        within: where entries may grow; None for anywhere.
        stacking: the layers of each leaf.
        patterns: of each leaf, or None.
    """
    layers = Segments.of_layers(stacking)
    (active,) = count_groups([[m] for m in masks], layers)
    # Key 0 marks entries that cannot be chosen; no number has it, once NaN has 1.
    strength = common_width(
        jnp.where(m, jnp.maximum(sort_keys(jnp.abs(w)), 1), 0)
        for m, w in zip(masks, weights, strict=True)
    )
    kept = top_keys_of_groups(strength, active - jnp.clip(drop, 0, active), layers)

    def rank(i: int, score: jax.Array) -> jax.Array:
        key = score
        if not jnp.issubdtype(score.dtype, jnp.unsignedinteger):
            key = sort_keys(score)
        most = ~jnp.zeros((), key.dtype)
        key = jnp.clip(key, 1, most - 1)
        if within is not None:
            key = jnp.where(within[i], key, 0)
        # What was kept has a key that nothing else has: one selection fills up the
        # rest.
        return jnp.where(kept[i], most, key)

    ranked = common_width(rank(i, score) for i, score in enumerate(wanted))
    chosen = ranked
    if any(pattern is None for pattern in patterns):
        chosen = top_keys_of_groups(ranked, active, layers)
    return tuple(
        (free if pattern is None else pattern.top(key)) & (key > 0)
        for free, key, pattern in zip(chosen, ranked, patterns, strict=True)
    )


def random_score(
    key: jax.Array, weight: jax.Array, stacking: Stacking | None = None, leaf: int = 0
) -> jax.Array:
    """Draw scores by which `exchange` grows entries uniformly at random.

    Args:
        key: a JAX PRNG key, another one for every exchange.
        weight: an array of the wanted shape.
        stacking: the layers of some leaves, of which weight is one; each layer draws by
            its number. None for a leaf by itself, which draws by the key as it is.
        leaf: its number.

    Returns:
        ``uint32`` of that shape, which `exchange` compares as integers: uniform floats
        have only 2^23 values, and ties favour low indices.
    """
    if stacking is None:
        return jax.random.bits(key, weight.shape, jnp.uint32)
    return stacking.draw(leaf, weight.shape, _draw_by(key))


def _random_scores(key: jax.Array, weights: Leaves, stacking: Stacking) -> Leaves:
    """Draw `random_score` for all leaves."""
    return stacking.draw_all([w.shape for w in weights], _draw_by(key))


def _draw_by(key: jax.Array) -> Callable[[jax.Array, tuple[int, ...]], jax.Array]:
    def draw(number: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        return jax.random.bits(jax.random.fold_in(key, number), shape, jnp.uint32)

    return draw


@by_entry
def prune_smallest(step: MaskStep) -> Leaves:
    """Keep the largest of the weights that are active."""
    return select(magnitude(step.weights), step.budget, step.masks)


@by_entry
def keep_largest(step: MaskStep) -> Leaves:
    """Keep the largest weights, active so far or not."""
    # Made from masks, it has their sharding, also on a mesh with explicit axes.
    within = step.within or tuple(m | True for m in step.masks)
    return select(magnitude(step.weights), step.budget, within)


def exchange_by(grow: Grow) -> Choose:
    """Make a choice that exchanges a fraction of each layer, rounded up.

    Args:
        grow: where the ``"gradient"`` is largest, or at ``"random"``. Entries whose
            gradient is not finite do not grow: a layer without others stays as it is.
    """

    def choose(step: MaskStep) -> Leaves:
        stacking = step.budget.layers
        if grow == "gradient":
            sizes = tuple(map(jnp.abs, step.gradients))
            scores = tuple(jnp.where(jnp.isfinite(s), s, jnp.nan) for s in sizes)
        else:
            assert step.key is not None  # since rules that grow so need one
            scores = _random_scores(step.key, step.weights, stacking)
        layers = Segments.of_layers(stacking)
        (active,) = count_groups([[m] for m in step.masks], layers)
        # In float32 0.3 of 50 is above 15: a little less before it is rounded up.
        share = step.fraction * (1 - 2.0**-21) * active.astype(jnp.float32)
        drop = jnp.ceil(share).astype(jnp.int32)
        if grow == "gradient":
            drop = _as_many_as_known(drop, scores, step, stacking)
        return exchange_all(
            step.weights,
            scores,
            step.masks,
            drop,
            step.within,
            stacking=stacking,
            patterns=tuple(map(step.budget.pattern, range(len(step.weights)))),
        )

    # Random scores are drawn leaf by leaf.
    return by_entry(choose) if grow == "gradient" else choose


def _as_many_as_known(
    drop: jax.Array, scores: Leaves, step: MaskStep, stacking: Stacking
) -> jax.Array:
    """Lower numbers to exchange to those of the inactive entries with a gradient.

    Gradients that overflowed would have entries grow by their index.
    """
    inside = step.within or (None,) * len(step.masks)
    pairs = []
    for score, mask, within in zip(scores, step.masks, inside, strict=True):
        free = ~mask if within is None else within & ~mask
        unknown = free & jnp.isnan(score)
        pairs.append((free & ~unknown, unknown))
    known, unknown = count_groups(pairs, Segments.of_layers(stacking))
    return jnp.where(unknown > 0, jnp.minimum(drop, known), drop)
