"""The column order of SparseGPT (arXiv:2301.00774), for layers too large for more.

Inputs are visited once, in their order, for all outputs together. What an output
removes of an input is made up for by the inputs that come after, through the factor U
of the inverse Hessian, whose row j holds the update for the inputs from j on. So one
factorisation serves all outputs: O(inputs^3 + inputs^2 * outputs) time.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from swapjax.sparsity.patterns import NM
from swapjax.sparsity.topk import top_k_mask

_HIGHEST = jax.lax.Precision.HIGHEST


def sweep(
    root: jax.Array,
    weights: jax.Array,
    ranks: jax.Array,
    support: jax.Array,
    *,
    block: int,
    pattern: NM | None = None,
    adapt: jax.Array | bool = True,
) -> tuple[jax.Array, jax.Array]:
    """Remove weights input by input, updating those that come after.

    Args:
        root: U, from `quadratic.damp`, [groups, inputs, inputs].
        weights: [groups, inputs, outputs].
        ranks: int32 of the same shape: 0 for weights that compete, lower ones for what
            is kept only if there are too few of those; at -2 a pattern keeps nothing.
        support: bool of the same shape: a first choice. Each block of inputs keeps as
            many entries as it has in it, chosen anew with the weights as they are when
            the block is reached, by ``w^2 / U_jj^2``.
        block: inputs of a block.
        pattern: chooses instead among every m inputs, when the first is reached.
        adapt: False keeps to `support` as it is; may be traced.

    Returns:
        The weights, zero off the support, and the support.
    """
    one = functools.partial(_sweep, block=block, pattern=pattern, adapt=adapt)
    # One group after the other: each then takes the steps it would take alone.
    return jax.lax.map(lambda group: one(*group), (root, weights, ranks, support))


def _sweep(
    root: jax.Array,
    weights: jax.Array,
    ranks: jax.Array,
    support: jax.Array,
    *,
    block: int,
    pattern: NM | None,
    adapt: jax.Array | bool,
) -> tuple[jax.Array, jax.Array]:
    """`sweep` for one group."""
    inputs = weights.shape[0]
    if pattern is not None:
        # Groups of a pattern do not cross blocks.
        block = -(-block // pattern.m) * pattern.m
    block = min(block, inputs)
    blocks = -(-inputs // block)
    # Inputs that read nothing and keep nothing fill the last block up.
    fill = (0, blocks * block - inputs)
    root = jnp.pad(root, (fill, fill))
    diagonal = jnp.pad(jnp.diagonal(root)[:inputs], fill, constant_values=1)
    weights, support = (
        jnp.pad(weights, (fill, (0, 0))),
        jnp.pad(support, (fill, (0, 0))),
    )
    ranks = jnp.pad(ranks, (fill, (0, 0)), constant_values=-2)
    place = jnp.arange(blocks * block)

    def visit(carry: tuple, start: jax.Array) -> tuple[tuple, None]:
        weights, support = carry
        cut = functools.partial(
            jax.lax.dynamic_slice_in_dim, start_index=start, slice_size=block
        )
        rows, scale = cut(root), cut(diagonal)
        local = jax.lax.dynamic_slice_in_dim(rows, start, block, axis=1)
        part, ranked, first = cut(weights), cut(ranks), cut(support)
        kept = first
        if pattern is None:
            best = _best(part, scale, ranked, jnp.sum(first, dtype=jnp.int32))
            kept = jnp.where(adapt, best, first)

        def column(j: jax.Array, state: tuple) -> tuple:
            part, kept, errors = state
            if pattern is not None:
                kept = jax.lax.cond(
                    (j % pattern.m == 0) & adapt,
                    lambda: _keep_pattern(part, kept, scale, ranked, j, pattern),
                    lambda: kept,
                )
            lost = jnp.where(kept[j], 0, part[j])
            miss = lost / scale[j]
            later = jnp.where(jnp.arange(block) > j, local[j], 0)
            part = (part - jnp.outer(later, miss)).at[j].add(-lost)
            return part, kept, errors.at[j].set(miss)

        part, kept, errors = jax.lax.fori_loop(
            0, block, column, (part, kept, jnp.zeros_like(part))
        )
        later = jnp.where(place >= start + block, rows, 0)
        weights -= jnp.matmul(later.T, errors, precision=_HIGHEST)
        put = functools.partial(
            jax.lax.dynamic_update_slice_in_dim, start_index=start, axis=0
        )
        return (put(weights, part), put(support, kept)), None

    starts = block * jnp.arange(blocks)
    (weights, support), _ = jax.lax.scan(visit, (weights, support), starts)
    return weights[:inputs], support[:inputs]


def _best(
    weights: jax.Array, scale: jax.Array, ranks: jax.Array, count: jax.Array
) -> jax.Array:
    """So many of a block's entries, by rank and then by ``w^2 / U_jj^2``."""
    return top_k_mask(_scores(weights, scale, ranks), count)


def _keep_pattern(
    weights: jax.Array,
    kept: jax.Array,
    scale: jax.Array,
    ranks: jax.Array,
    start: jax.Array,
    pattern: NM,
) -> jax.Array:
    """Choose among the m inputs from `start` on."""
    cut = functools.partial(
        jax.lax.dynamic_slice_in_dim, start_index=start, slice_size=pattern.m
    )
    ranked = cut(ranks)
    down = dataclasses.replace(pattern, axis=0)
    chosen = down.top(_scores(cut(weights), cut(scale), ranked)) & (ranked > -2)
    return jax.lax.dynamic_update_slice_in_dim(kept, chosen, start, 0)


def _scores(weights: jax.Array, scale: jax.Array, ranks: jax.Array) -> jax.Array:
    return jnp.where(
        ranks < 0, ranks.astype(weights.dtype), jnp.square(weights / scale[:, None])
    )
