"""The exact greedy order of Optimal Brain Compression (arXiv:2208.11580).

Each output removes its weights one by one, always the one whose loss raises the error
least while all that are left are re-fitted. The order does not depend on how many are
to go, so it is found once, to the end, and any budget is a cut through it.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from swapjax.pruning.solvers import by_output
from swapjax.sparsity.patterns import NM

_HIGHEST = jax.lax.Precision.HIGHEST
_PATH_BYTES = 2**24  # of the inverses that are updated at a time


def order(
    hessians: Sequence[jax.Array],
    weights: Sequence[jax.Array],
    alive: Sequence[jax.Array],
    factors: Sequence[jax.Array],
    pattern: NM | None = None,
    obey: Sequence[jax.Array] | None = None,
) -> list[jax.Array]:
    """Score every weight of several layers by when it goes.

    O(outputs * inputs^3) time.

    Args:
        hessians: H of each layer's quadratic, [groups, inputs, inputs].
        weights: [groups, inputs, outputs] each.
        alive: bool; what is not goes first.
        factors: [groups, 1, outputs], what the errors of an output are multiplied with.
        pattern: lets no more go of each m inputs in a row than it asks for.
        obey: bool[] each, False leaves the pattern to what is done with the scores; may
            be traced. None for True.

    Returns:
        Scores [groups, inputs, outputs], rising strictly along the order in which an
        output's weights go: -1 for those not alive, then the scaled rises of the
        error, each no less than those before it; infinity for what a pattern holds.
    """
    obeyed = [True] * len(weights) if obey is None else obey
    obeyed = [
        jnp.broadcast_to(jnp.asarray(o), f.shape)
        for o, f in zip(obeyed, factors, strict=True)
    ]
    each = functools.partial(_order, pattern=pattern)
    return by_output.solve(each, hessians, weights, alive, factors, obeyed)


def _order(
    hessian: jax.Array,
    group: jax.Array,
    weights: jax.Array,
    alive: jax.Array,
    factor: jax.Array,
    obey: jax.Array,
    pattern: NM | None,
) -> jax.Array:
    """Score outputs of layers of equal inputs, [outputs, inputs]."""
    count, inputs = weights.shape
    items = group, weights, alive, factor[:, 0], obey[:, 0]

    def several(items: tuple) -> jax.Array:
        group, w, living, counts, obeys = items
        begin = lambda item: _start(hessian[item[0]], *item[1:])  # noqa: E731
        starts = jax.lax.map(begin, (group, w, living))
        # A layer of which little is left is done sooner than those beside it.
        steps = jnp.max(jnp.sum(living, axis=1, dtype=jnp.int32))
        path = functools.partial(_path, steps=steps, pattern=pattern)
        new, inverses = starts
        return jax.vmap(path)(new, inverses, living, counts, obeys)

    # The systems one by one (see `layer_quadratic`), the paths side by side.
    bytes_each = inputs * inputs * weights.dtype.itemsize
    together = min(max(1, _PATH_BYTES // bytes_each), count)
    chunks = -(-count // together)

    def fold(x: jax.Array) -> jax.Array:
        # What is missing to whole chunks is filled up with the first, and cut off.
        filled = jnp.concatenate([x, jnp.repeat(x[:1], chunks * together - count, 0)])
        return filled.reshape(chunks, together, *x.shape[1:])

    scores = jax.lax.map(several, jax.tree.map(fold, items))
    return scores.reshape(-1, inputs)[:count]


def _start(
    hessian: jax.Array, weights: jax.Array, alive: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Find one output's weights and inverse, once what is not alive is gone."""
    inside = alive[:, None] & alive[None, :]
    eye = jnp.eye(len(weights), dtype=hessian.dtype)
    factored = jax.scipy.linalg.cho_factor(jnp.where(inside, hessian, eye))
    inverse = jnp.where(inside, jax.scipy.linalg.cho_solve(factored, eye), 0)
    lost = jnp.matmul(hessian, jnp.where(alive, 0, weights), precision=_HIGHEST)
    change = jnp.matmul(inverse, lost, precision=_HIGHEST)
    return jnp.where(alive, weights + change, 0), inverse


def _path(
    weights: jax.Array,
    inverse: jax.Array,
    alive: jax.Array,
    factor: jax.Array,
    obey: jax.Array,
    steps: jax.Array,
    pattern: NM | None,
) -> jax.Array:
    """Score one output, [inputs], in no more steps than any output needs."""
    size = len(weights)
    tiny = jnp.finfo(weights.dtype).tiny
    groups = 1 if pattern is None else size // pattern.m
    room = size if pattern is None else pattern.m - pattern.n

    def step(_: jax.Array, state: tuple) -> tuple:
        w, inverse, left, scores, last = state
        # Rounding may leave what should be a small positive number at or below zero.
        diagonal = jnp.maximum(jnp.diagonal(inverse), tiny)
        rises = jnp.square(w) / diagonal
        gone = jnp.sum(~left.reshape(groups, -1), axis=-1, keepdims=True)
        free = jnp.broadcast_to(gone < room, (groups, size // groups)).ravel()
        free |= ~obey
        rank = jnp.where(left & free, rises, jnp.inf)
        q = jnp.argmin(rank)
        row = inverse[q]
        last = jnp.maximum(jnp.nextafter(last, jnp.inf), factor * rises[q])
        moved = (
            (w - w[q] / diagonal[q] * row).at[q].set(0),
            inverse - jnp.outer(row / diagonal[q], row),
            left.at[q].set(False),
            scores.at[q].set(last),
            last,
        )
        done = jnp.isinf(rank[q])
        return jax.tree.map(lambda old, new: jnp.where(done, old, new), state, moved)

    # From a normal number on: the next after zero is one that processors flush to it.
    start = (
        weights,
        inverse,
        alive,
        jnp.where(alive, jnp.inf, -1).astype(weights.dtype),
        jnp.asarray(tiny, weights.dtype),
    )
    return jax.lax.fori_loop(0, steps, step, start)[3]
