"""Cyclic coordinate descent on a support, column by column of stored rows."""

import math

import jax
import jax.numpy as jnp
import optax

from swapjax.core import trees
from swapjax.core.types import Leaves
from swapjax.gradients import products
from swapjax.gradients.stored import StoredRows
from swapjax.sparsity.masks import apply_masks

_SIZES = 4  # how many numbers of gathered columns are compiled, each half of the last


def descend(
    rows: StoredRows,
    support: Leaves,
    weights: Leaves,
    reference: Leaves,
    target: jax.Array,
    *,
    damping: jax.Array | float,
    sweeps: int,
) -> tuple[Leaves, jax.Array]:
    """Lower ``1/2 |G w - t|^2 + n lambda/2 |w - wbar|_S^2``, one weight at a time.

    Every step is the exact minimiser in its weight,

        w_j = (n lambda wbar_j + g_j^T r + |g_j|^2 w_j) / (|g_j|^2 + n lambda),

    with ``r = t - G w`` kept up to date: O(n) a weight, and as many steps one after the
    other as there are weights. It tends to what the back-solve gives in closed form.

    Args:
        rows: stored, of n rows.
        support: bool leaves.
        weights: where to start, zero off the support.
        reference: wbar.
        target: t, [n].
        damping: lambda.
        sweeps: over all weights.

    Returns:
        The weights, and the objective after every sweep, [sweeps].
    """
    n = rows.n
    ridge = n * jnp.asarray(damping, target.dtype)

    def on_leaf(
        m: jax.Array, s: jax.Array, w: jax.Array, ref: jax.Array, r: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """One sweep over a leaf: its weights and the residual."""
        if not s.size:
            return w, r

        def sweep(size: int) -> tuple[jax.Array, jax.Array]:
            (index,) = jnp.nonzero(s.ravel(), size=size, fill_value=s.size)
            columns = jnp.take(
                products.flat(m), index, axis=1, mode="fill", fill_value=0
            )
            columns = columns.T.astype(r.dtype)

            def step(j: jax.Array, carry: tuple) -> tuple[jax.Array, jax.Array]:
                values, r = carry
                g, old = columns[j], values[j]
                size = jnp.vdot(g, g)
                pull = ridge * start[j] + jnp.vdot(g, r) + size * old
                below = size + ridge
                new = jnp.where(below > 0, pull / jnp.where(below > 0, below, 1), old)
                return values.at[j].set(new), r + g * (old - new)

            take = lambda x: jnp.take(x.ravel(), index, mode="fill", fill_value=0)  # noqa: E731
            start = take(ref).astype(r.dtype)
            found, left = jax.lax.fori_loop(
                0, jnp.sum(s, dtype=jnp.int32), step, (take(w).astype(r.dtype), r)
            )
            new = (
                jnp.zeros(s.size, w.dtype)
                .at[index]
                .set(found.astype(w.dtype), mode="drop")
            )
            return new.reshape(w.shape), left

        sizes = [max(1, math.ceil(s.size / 2**i)) for i in range(_SIZES + 1)]
        fitting = sum(jnp.asarray(jnp.sum(s) <= size, jnp.int32) for size in sizes)
        branches = [lambda size=size: sweep(size) for size in sizes]
        return jax.lax.switch(fitting - 1, branches)

    def sweep(carry: tuple, _: None) -> tuple[tuple, jax.Array]:
        new, r = [], carry[1]
        for m, s, w, ref in zip(
            rows.matrices, support, carry[0], reference, strict=True
        ):
            leaf, r = on_leaf(m, s, w, ref, r)
            new.append(leaf)
        offset = apply_masks(optax.tree.sub(tuple(new), reference), support)
        held = ridge * optax.tree.norm(offset, squared=True)
        return (tuple(new), r), 0.5 * (jnp.vdot(r, r) + held)

    start = trees.cast_like(weights, reference)
    carry = (start, target - rows.project(start))
    (found, _), values = jax.lax.scan(sweep, carry, length=sweeps)
    return found, values
