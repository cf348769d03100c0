"""The exact greedy order of Optimal Brain Compression (arXiv:2208.11580).

Each output removes its weights one by one, always the one whose loss raises the error
least while all that are left are re-fitted. The order does not depend on how many are
to go, so it is found once, to the end, and any budget is a cut through it.
"""

import jax
import jax.numpy as jnp

from swapjax.oneshot.quadratic import inverse
from swapjax.patterns import NM

_PATH_BYTES = 2**24  # of the inverses that are updated at a time


def order(
    root: jax.Array,
    weights: jax.Array,
    alive: jax.Array,
    factor: jax.Array,
    pattern: NM | None = None,
    obey: jax.Array | bool = True,
) -> jax.Array:
    """Score every weight by when it goes.

    O(outputs * inputs^3) time.

    Args:
        root: U, from `quadratic.damp`, [groups, inputs, inputs].
        weights: [groups, inputs, outputs].
        alive: bool; what is not goes first.
        factor: [groups, 1, outputs], what the errors of an output are multiplied with.
        pattern: lets no more go of each m inputs in a row than it asks for.
        obey: False leaves the pattern to what is done with the scores; may be traced.

    Returns:
        Scores [groups, inputs, outputs], rising strictly along the order in which an
        output's weights go: -1 for those not alive, then the scaled rises of the
        error, each no less than those before it; infinity for what a pattern holds.
    """
    groups, inputs, outputs = weights.shape
    inverses = inverse(root)
    flat = lambda x: x.swapaxes(1, 2).reshape(groups * outputs, -1)  # noqa: E731
    items = (
        jnp.repeat(jnp.arange(groups), outputs),
        flat(weights),
        flat(alive),
        flat(factor)[:, 0],
    )

    def one(item: tuple[jax.Array, jax.Array, jax.Array, jax.Array]) -> jax.Array:
        group, w, living, counts = item
        return _path(inverses[group], w, living, counts, pattern, obey)

    together = max(1, _PATH_BYTES // (inputs * inputs * weights.dtype.itemsize))
    scores = jax.lax.map(one, items, batch_size=min(together, groups * outputs))
    return scores.reshape(groups, outputs, inputs).swapaxes(1, 2)


def _path(
    inverse: jax.Array,
    weights: jax.Array,
    alive: jax.Array,
    factor: jax.Array,
    pattern: NM | None,
    obey: jax.Array | bool,
) -> jax.Array:
    """The scores of one output, [inputs]."""
    tiny = jnp.finfo(weights.dtype).tiny
    groups = 1 if pattern is None else len(weights) // pattern.m
    room = len(weights) if pattern is None else pattern.m - pattern.n

    def step(_: jax.Array, state: tuple) -> tuple:
        w, inverse, left, scores, last = state
        # Rounding may leave what should be a small positive number at or below zero.
        diagonal = jnp.maximum(jnp.diagonal(inverse), tiny)
        rises = jnp.square(w) / diagonal
        gone = jnp.sum(~left.reshape(groups, -1), axis=-1, keepdims=True)
        free = jnp.broadcast_to(gone < room, (groups, len(w) // groups)).ravel()
        rank = jnp.where(
            alive, jnp.where(free | ~jnp.asarray(obey), rises, jnp.inf), -1
        )
        rank = jnp.where(left, rank, jnp.inf)
        q = jnp.argmin(rank)
        held = jnp.isinf(rank[q])
        last = jnp.where(
            alive[q], jnp.maximum(jnp.nextafter(last, jnp.inf), factor * rises[q]), last
        )
        score = jnp.where(alive[q], last, -1)
        row = inverse[q]
        return jax.tree.map(
            lambda old, new: jnp.where(held, old, new),
            state,
            (
                (w - w[q] / diagonal[q] * row).at[q].set(0),
                inverse - jnp.outer(row / diagonal[q], row),
                left.at[q].set(False),
                scores.at[q].set(score),
                last,
            ),
        )

    # From a normal number on: the next after zero is one that processors flush to it.
    start = (
        weights,
        inverse,
        jnp.ones(weights.shape, bool),
        jnp.full(weights.shape, jnp.inf),
        jnp.asarray(tiny, weights.dtype),
    )
    return jax.lax.fori_loop(0, len(weights), step, start)[3]
