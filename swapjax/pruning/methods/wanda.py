"""Wanda: weights ranked by their size times what they read."""

import jax
import jax.numpy as jnp

from swapjax.activations.layer import Layer
from swapjax.core.types import Leaves
from swapjax.pruning.by_score import by_score
from swapjax.pruning.method import Method, Problem, layers_of


def wanda(*, per_output: bool = True) -> Method:
    """Keep what is large times how much it reads; kept weights stay as they are.

    Scores ``|w_ij| sqrt(H_ii)`` with H the second moment of what the layer reads
    (Sun et al., ICLR 2024, arXiv:2306.11695). Takes one forward pass, no gradients and
    nothing to solve.

    Args:
        per_output: whether weights are compared within their output alone, so that each
            output of all layers that share a budget keeps the same share, as in the
            paper. False lets outputs compete by the scores themselves, and layers too
            where the plan lets them, which does better at high sparsity on small
            networks. Where a pattern chooses among the inputs of an output, both are
            the same.

    Returns:
        The method, for `swapjax.prune`.
    """

    def rank(problem: Problem) -> Leaves:
        return score(problem.weights, layers_of(problem), per_output=per_output)

    settings = (("per_output", per_output),)
    return by_score(
        "wanda", rank, settings=settings, needs_rows=False, needs_layers=True
    )


def score(
    weights: Leaves, layers: tuple[Layer, ...], *, per_output: bool = True
) -> Leaves:
    """Score by ``|w_ij| sqrt(H_ii)``: how much of an output its input i makes up.

    Args:
        weights: the leaves.
        layers: what each of them reads, with its second moment H.
        per_output: whether to score by the rank among the weights of an output, as a
            fraction of their number, so that every output keeps the same share.
    """

    def one(leaf: jax.Array, layer: Layer) -> jax.Array:
        size = jnp.sqrt(layer.reads)
        result = jnp.abs(layer.matrix(leaf)).astype(size.dtype) * size
        if per_output:
            # What only fills a group up ranks below all that is there.
            there = layer.index >= 0
            result = jnp.where(there, result, -1)
            rank = _ranks(result)
            count = jnp.sum(there, axis=1, keepdims=True, dtype=rank.dtype)
            rank = rank - (result.shape[1] - count)
            result = rank.astype(size.dtype) / count.astype(size.dtype)
        return layer.leaf(result, leaf.shape)

    return tuple(one(w, layer) for w, layer in zip(weights, layers, strict=True))


def _ranks(score: jax.Array) -> jax.Array:
    """Rank the inputs of each output, [groups, inputs, outputs], the smallest first.

    Those alike rank by their number. XLA for CPUs sorts whole numbers alone five times
    as fast as floats with their places, so these go by halves of their bits: first the
    lower, then the upper, each with the place in the half that is free.

    Args:
        score: not negative, or -1.
    """
    by_output = jnp.swapaxes(score, 1, 2)
    inputs = by_output.shape[2]
    if by_output.dtype == jnp.float32 and inputs <= 2**16:
        bits = jax.lax.bitcast_convert_type(by_output, jnp.uint32) ^ jnp.uint32(1 << 31)
        lower = _sorted_places(bits & 0xFFFF)
        upper = _sorted_places(jnp.take_along_axis(bits >> 16, lower, axis=2))
        order = jnp.take_along_axis(lower, upper, axis=2)
    else:
        order = jnp.argsort(by_output, axis=2)
    number = jnp.broadcast_to(jnp.arange(inputs, dtype=order.dtype), order.shape)
    found = jnp.put_along_axis(number, order, number, axis=2, inplace=False)
    return jnp.swapaxes(found, 1, 2)


def _sorted_places(halves: jax.Array) -> jax.Array:
    """Tell which entry of the last axis is the smallest, the next, and so on.

    Args:
        halves: of 16 bits, in uint32.
    """
    places = jnp.arange(halves.shape[-1], dtype=jnp.uint32)
    return (jnp.sort((halves << 16) | places, axis=-1) & 0xFFFF).astype(jnp.int32)
