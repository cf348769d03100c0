"""What the error of a layer comes to the sparser it is, as scores of its weights.

By what single weights are worth no budget can be shared among layers: where inputs say
much the same, each weight can be made up for by the others and is worth next to nothing
alone, and all of them much. So a layer too large for the greedy order is pruned in the
column order, to some sparsities for trial, and its weights compete by how fast the
error rises where their turn comes.
"""

import jax
import jax.numpy as jnp
import numpy as np

from swapjax.pruning.solvers.layer_parts import Part

# Removed of the weights that compete: finer towards the end, where errors rise fast.
_SHARES = np.asarray(
    [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98,
     0.99, 1],
)  # fmt: skip
_APART = 1.001  # the least that rises differ by, so that few weights tie


def scores(part: Part, block: int) -> jax.Array:
    """Score weights by the rise of the layer's error when they go.

    In the order of what each is worth alone. ``O(inputs^2 * outputs)`` time for each
    of 17 trials.

    Args:
        part: the leaf as its layer, or its layers, which have a curve each.
        block: inputs of a block of the column order.

    Returns:
        Scores [groups, inputs, outputs] in the unit of rises along a greedy path; -1
        for weights that do not compete.
    """
    layers = part.layer.layers
    compete = part.ranks == 0
    alone = part.saliency().reshape(layers, -1)
    turn = jnp.argsort(jnp.argsort(alone, axis=1), axis=1)
    count = jnp.sum(compete.reshape(layers, -1), axis=1, dtype=jnp.int32)[:, None]
    # Those that do not compete come first.
    turn = turn - (alone.shape[1] - count)
    size = jnp.maximum(count, 1).astype(alone.dtype)
    place = ((turn + 0.5) / size).reshape(part.weights.shape)

    def trial(share: jax.Array) -> tuple[jax.Array, jax.Array]:
        kept = compete & (place > share)
        fitted, _ = part.sweep(kept, block)
        error = jnp.sum(part.weighed_errors(fitted).reshape(layers, -1), axis=1)
        return error, jnp.sum(kept.reshape(layers, -1), axis=1, dtype=jnp.int32)

    errors, kept = jax.lax.map(trial, jnp.asarray(_SHARES, alone.dtype))
    removed = (count - kept.T).astype(alone.dtype)
    # Where there are few, none may leave between two trials.
    gone = jnp.diff(removed, axis=1)
    rises = jnp.where(gone > 0, jnp.diff(errors.T, axis=1) / jnp.maximum(gone, 1), 0)
    # No less than those before, as along a greedy path.
    apart = _APART ** jnp.arange(rises.shape[1], dtype=alone.dtype)
    rises = apart * jax.lax.cummax(jnp.maximum(rises, 0) / apart, axis=1)
    # From nothing for the first weight to twice the last rise for the last weight.
    rises = jnp.pad(rises, ((0, 0), (1, 0)))
    rises = jnp.concatenate([rises, 2 * rises[:, -1:]], axis=1)
    middle = (removed[:, 1:] + removed[:, :-1]) / (2 * size)
    known = jnp.pad(middle, ((0, 0), (1, 1)), constant_values=((0, 0), (0, 1)))
    found = jax.vmap(jnp.interp)(place.reshape(layers, -1), known, rises)
    return jnp.where(compete, found.reshape(part.weights.shape), -1)
